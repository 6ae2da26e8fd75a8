r"""Draws what each augmentation does to the examples of a config: a contact sheet.

    python -m xception_jax.contact_sheet --config=configs/digits.py --output=sheet.png
    python -m xception_jax.contact_sheet --config=configs/imagenet.py --output=mixed.jpg \
        --config.augment.mixup=0.2 --examples=4 --only=mixup,cutmix

A column is an example of the run's first batch, under the name of its class. The first row is the
whole image; the next one what the host makes of it, where it crops or squeezes; then comes a row
for each augmentation that the config has on, and one with all of them. What is drawn at random is
what the run's first step draws. --only draws others too, in a strength that shows.
Examples that cannot be used are replaced as in the run, as many as may be, and named.
"""

from absl import flags

from xception_jax.commands import cli
from xception_jax.errors import UsageError

_CONFIG = cli.define_config()
flags.declare_key_flag("config")
flags.declare_key_flag(cli.IMPORTS.name)
_OUTPUT = flags.DEFINE(cli.PATH, "output", None, "the picture to write, .png or .jpg")
_EXAMPLES = flags.DEFINE_integer("examples", 8, "columns", lower_bound=1)
_ONLY = flags.DEFINE_list(
    "only", None, "augmentations, by name and separated by commas; unless given, those that are on"
)
_CELL = flags.DEFINE_integer("cell", 96, "side of a picture on the sheet, pixels", lower_bound=8)


_SUFFIXES = (".png", ".jpg")


def main() -> None:
    if not flags.FLAGS["config"].present or not _OUTPUT.value:
        raise UsageError("--config and --output are needed; --help shows an example")
    if _CONFIG.value is None:
        raise UsageError("get_config() of the config file returned None")
    path = _OUTPUT.value
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"--output={path} must end in {' or '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"--output={path}: there is no folder {path.parent}")
    from xception_jax import contact_sheet
    from xception_jax.utils import console

    sheet = contact_sheet.draw(
        _CONFIG.value,
        examples=_EXAMPLES.value,
        only=_ONLY.value or (),
        cell=_CELL.value,
        say=console.make_console(stderr=True).print,
    )
    contact_sheet.write(path, sheet)
    console.make_console().print(str(path))
