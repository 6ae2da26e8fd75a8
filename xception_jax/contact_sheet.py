r"""Draws what each augmentation does to the examples of a config: a contact sheet.

    python -m xception_jax.contact_sheet --config=configs/digits.py --output=sheet.png
    python -m xception_jax.contact_sheet --config=configs/imagenet.py --output=mixed.jpg \
        --config.augment.mixup=0.2 --examples=4 --only=mixup,cutmix

A column is an example of the run's first batch, as it comes from the host; a row is an
augmentation, as strong as the config has it, or of a telling strength where the config has it off.
What is drawn at random is what the run's first step draws. The last row has on what the config has.
Examples that cannot be used are replaced as in the run, as many as may be, and named.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import ConfigDict

from xception_jax import cli
from xception_jax.errors import UsageError, nearest

if TYPE_CHECKING:
    import jax
    import numpy as np

    from xception_jax.data.augment import Augmentation

_CONFIG = cli.define_config()
flags.declare_key_flag("config")
_OUTPUT = flags.DEFINE(cli.PATH, "output", None, "the picture to write, .png or .jpg")
_EXAMPLES = flags.DEFINE_integer("examples", 8, "columns", lower_bound=1)
_ONLY = flags.DEFINE_list("only", None, "rows, by name and separated by commas; unless given, all")
_CELL = flags.DEFINE_integer("cell", 96, "side of a picture on the sheet, pixels", lower_bound=8)

# Strengths that show, where a config has an augmentation off.
_TELLING: dict[str, Any] = {
    "flip": True,
    "shift": 0,  # an eighth of the side
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.9,
    "erase": 1.0,
    "mixup": 1.0,
    "cutmix": 1.0,
    "randaugment": 2,
}
_SUFFIXES = (".png", ".jpg")
_LABELS = 190  # width of the column of names, pixels
_INK, _PAPER, _GAP = 40, 255, 4


def names() -> list[str]:
    """The rows there are, besides the originals and the whole config."""
    from xception_jax.data import randaugment

    return [*_TELLING, *(f"randaugment.{name}" for name in randaugment.NAMES)]


def draw(
    config: ConfigDict,
    *,
    examples: int = 8,
    only: Sequence[str] = (),
    cell: int = 96,
    say: Callable[[str], None] = print,
) -> "np.ndarray":
    """The contact sheet; the arguments are the command's flags, and `say` takes its notes.

    Returns:
      uint8 `[height, width, 3]`, RGB.

    Raises:
      UsageError: the config or its data will not do, or there is no such row.
      RunError: more examples cannot be used than the run may skip.
    """
    import jax.numpy as jnp
    import numpy as np

    from xception_jax import config as config_lib
    from xception_jax import preflight, train
    from xception_jax.data.skips import Skips

    for name in only:
        if name not in names():
            raise UsageError(f"no augmentation {name!r}{nearest(name, names())}")
    preflight.validate(config)
    needed = examples + examples % 2  # mixing takes pairs
    if needed > config.data.batch_size:
        raise UsageError(
            f"--examples={examples} takes a batch of {needed}; config.data.batch_size is "
            f"{config.data.batch_size}"
        )
    run = train.prepare(config_lib.resolve(config))
    batch = next(run.batches(0, Skips(None, config.data.max_skipped, say)))
    images = jnp.asarray(np.asarray(batch["image"])[:needed])
    rows = [("original", images), *_rows(config, images, only)]
    return _sheet([(label, np.asarray(row)[:examples]) for label, row in rows], cell)


def _rows(
    config: ConfigDict, images: "jax.Array", only: Sequence[str]
) -> Iterator[tuple[str, "jax.Array"]]:
    """Labels and what becomes of the images, as in the run's first step."""
    import jax
    import jax.numpy as jnp

    from xception_jax.data import augment, randaugment

    settings = augment.Augmentation.from_config(config.augment)
    keys = augment.example_keys(config.seed, jnp.asarray(0), len(images))
    apply = jax.jit(jax.vmap(randaugment.apply, (0, None, 0)))

    @partial(jax.jit, static_argnums=0)
    def augmented(settings: augment.Augmentation, images: jax.Array) -> jax.Array:
        made = augment.augment(settings, keys, images)
        targets = jnp.eye(len(images))
        return augment.mix(settings, keys, made, targets)[0] if settings.mixes else made

    for name in only or names():
        if not name.startswith("randaugment."):
            strength, alone = _alone(settings, name, images.shape[1])
            yield name if strength is True else f"{name} {strength:g}", augmented(alone, images)
            continue
        operation = randaugment.NAMES.index(name.removeprefix("randaugment."))
        # Two columns to the one side, two to the other.
        levels = settings.magnitude / 10 * (-1.0) ** (jnp.arange(len(images)) // 2)
        yield name, apply(images, operation, levels)
    if not only:
        yield "the config", augmented(settings, images)


def _alone(settings: "Augmentation", name: str, side: int) -> tuple[float, "Augmentation"]:
    """The strength of one augmentation, and settings in which it alone is on."""
    off: dict[str, Any] = dict.fromkeys(_TELLING, 0)
    strength = getattr(settings, name) or _TELLING[name] or max(1, side // 8)
    return strength, dataclasses.replace(settings, **{**off, name: strength})


def _sheet(rows: Sequence[tuple[str, "np.ndarray"]], cell: int) -> "np.ndarray":
    """The rows below each other, their labels on the left; uint8 RGB."""
    import cv2
    import numpy as np

    lines = []
    for label, images in rows:
        name = np.full((cell, _LABELS, 3), _PAPER, np.uint8)
        cv2.putText(
            name, label, (6, cell // 2 + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (_INK,) * 3, 1,
            cv2.LINE_AA,
        )  # fmt: skip
        shrinks = images.shape[1] > cell
        how = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
        pictures = [cv2.resize(image, (cell, cell), interpolation=how) for image in images]
        framed = [
            cv2.copyMakeBorder(part, 0, _GAP, 0, _GAP, cv2.BORDER_CONSTANT, value=(_PAPER,) * 3)
            for part in (name, *pictures)
        ]
        lines.append(np.concatenate(framed, axis=1))
    return np.concatenate(lines)


def _write(path: pathlib.Path, sheet: "np.ndarray") -> None:
    """Writes the picture as a whole or not at all."""
    import cv2

    encoded = cv2.imencode(path.suffix.lower(), sheet[..., ::-1])[1].tobytes()
    draft = path.with_name(path.name + ".tmp")
    try:
        draft.write_bytes(encoded)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UsageError(f"--output={path} cannot be written: {error.strerror}") from None


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
    from xception_jax import console

    sheet = draw(
        _CONFIG.value,
        examples=_EXAMPLES.value,
        only=_ONLY.value or (),
        cell=_CELL.value,
        say=console.make_console(stderr=True).print,
    )
    _write(path, sheet)
    console.make_console().print(str(path))


if __name__ == "__main__":
    cli.run(main, __doc__)
