r"""Draws a contact sheet: the effect of each augmentation on examples of a config.

    python -m xception_jax.contact_sheet --config=configs/digits.py --output=sheet.png
    python -m xception_jax.contact_sheet --config=configs/imagenet.py --output=mixed.jpg \
        --config.augment.mixup=0.2 --examples=4 --only=mixup,cutmix

A column is an example of the run's first batch, under the name of its class. The first row is the
complete image. If the host crops or squeezes, its result is next. Then follow a row for each
augmentation that is on in the config, and a row with all of them. Random numbers are those of the
run's first step. --only also draws augmentations that are off, with a visible strength.
Unusable examples are named and replaced as in the run, up to the same limit.
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
    "only", None, "names of augmentations, separated by commas; by default those that are on"
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
