"""A contact sheet: the effect of each augmentation on examples of a config."""

if __name__ == "__main__":  # first, so that --help and a misspelt flag do not wait for JAX
    from xception_jax import commands

    commands.run("contact_sheet")

import contextlib
import dataclasses
import itertools
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont

from xception_jax import train
from xception_jax.augment import pipeline, randaugment
from xception_jax.augment.pipeline import Augmentation
from xception_jax.config import SCHEMA
from xception_jax.data.batches import Reader
from xception_jax.data.order import Order, candidates
from xception_jax.data.skips import Skips
from xception_jax.errors import ExampleError, UsageError, nearest
from xception_jax.training import preflight
from xception_jax.utils.text import printable
from xception_jax.weights import initial

# Visible strengths, for augmentations that are off in the config.
_VISIBLE: dict[str, Any] = {
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
_LABELS = 190  # width of the column of names, pixels
_HEADER = 22  # height of the row of classes, pixels
_INK, _PAPER, _GAP = 40, 255, 4


def names() -> list[str]:
    """The names of the possible rows, without the originals and the row of the complete config."""
    return [
        *_VISIBLE,
        *pipeline.registered(),
        *(f"randaugment.{name}" for name in randaugment.NAMES),
    ]


def draw(
    config: ConfigDict,
    *,
    examples: int = 8,
    only: Sequence[str] = (),
    cell: int = 96,
    say: Callable[[str], None] = print,
) -> np.ndarray:
    """Draws the contact sheet.

    Args:
      config: the config of a run.
      examples: number of columns: the first examples of the first step.
      only: the rows to draw, see `names`; empty: those that the config uses.
      cell: side of each image on the sheet, pixels.
      say: prints notes.

    Returns:
      uint8 `[height, width, 3]`, RGB.

    Raises:
      UsageError: the config or its data is invalid, or there is no such row.
      RunError: more examples are unusable than the run may skip.
    """
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
    run = train.build_run(initial.resolve_with_weights(config))
    batch = next(run.batches(0, Skips(None, config.data.max_skipped, say)))
    images = jnp.asarray(np.asarray(batch["image"])[:needed])
    reader = run.batches.reader
    originals = _originals(reader, run.batches.order, examples)
    rows = [("original", originals)]
    if reader.images.crops or any(one.shape[0] != one.shape[1] for one in originals):
        rows.append(("cropped" if reader.images.crops else "squared", [*images]))
    rows += [(label, [*row]) for label, row in _rows(config, images, only)]
    labels = np.asarray(batch["labels" if run.train_source.multilabel else "label"])[:examples]
    header = [_class_of(label, run.train_source.class_names) for label in labels]
    return _sheet(header, [(label, row[:examples]) for label, row in rows], cell)


def _originals(reader: Reader, order: Order, examples: int) -> list[np.ndarray]:
    """The complete images of the first examples; an unusable one is replaced as in the run."""

    def usable(place: int) -> Iterator[np.ndarray]:
        for record in candidates(order, place, len(reader.source)):
            with contextlib.suppress(ExampleError):
                yield reader.decoded(reader.source[record])

    return [image for place in range(examples) for image in itertools.islice(usable(place), 1)]


def _class_of(label: np.ndarray, names: Sequence[str]) -> str:
    """Number and name of an example's class, or of each class in a multi-hot label."""
    numbers = label.nonzero()[0].tolist() if label.ndim else [int(label)]
    return ", ".join(f"{number} {names[number]}" for number in numbers)


def _rows(
    config: ConfigDict, images: jax.Array, only: Sequence[str]
) -> Iterator[tuple[str, jax.Array]]:
    """Yields labels and augmented images, as in the run's first step.

    The rows are those of `only`; if it is empty, the augmentations that are on, then all together.
    """
    settings = pipeline.Augmentation.from_config(config.augment)
    keys = pipeline.example_keys(config.seed, jnp.asarray(0), len(images))
    apply = jax.jit(jax.vmap(randaugment.apply, (0, None, 0)))

    @partial(jax.jit, static_argnums=0)
    def augmented(settings: pipeline.Augmentation, images: jax.Array) -> jax.Array:
        made = pipeline.augment(settings, keys, images)
        targets = jnp.eye(len(images))
        return pipeline.mix(settings, keys, made, targets)[0] if settings.mixes else made

    on = _on(settings)
    for name in only or on:
        if not name.startswith("randaugment."):
            strength, alone = _alone(settings, name, images.shape[1])
            shown = f"{strength:g}" if isinstance(strength, int | float) else str(strength)
            yield name if strength is True else f"{name} {shown}", augmented(alone, images)
            continue
        operation = randaugment.NAMES.index(name.removeprefix("randaugment."))
        # The sign of the magnitude alternates every two columns.
        levels = settings.magnitude / 10 * (-1.0) ** (jnp.arange(len(images)) // 2)
        yield name, apply(images, operation, levels)
    if on and not only:
        yield "the config", augmented(settings, images)


def _on(settings: Augmentation) -> list[str]:
    """The rows of augmentations that are on; with RandAugment, also its operations."""
    on = dict(settings.registered)
    return [
        name for name in names() if on.get(name) or getattr(settings, name.partition(".")[0], 0)
    ]


def _alone(settings: Augmentation, name: str, side: int) -> tuple[Any, Augmentation]:
    """The strength of one augmentation, and settings in which only this one is on."""
    off: dict[str, Any] = {**dict.fromkeys(_VISIBLE, 0), "registered": ()}
    if name in pipeline.registered():
        strength = dict(settings.registered).get(name) or _visible(name)
        return strength, dataclasses.replace(settings, **{**off, "registered": ((name, strength),)})
    strength = getattr(settings, name) or _VISIBLE[name] or max(1, side // 8)
    return strength, dataclasses.replace(settings, **{**off, name: strength})


def _visible(name: str) -> Any:
    """The largest strength of a registered operation that is off in the config, else 1."""
    field = SCHEMA[f"augment.{name}"]
    if field.kind not in (bool, int, float):
        raise UsageError(f"--only={name}: it is off; add --config.augment.{name}=VALUE")
    return field.kind(1 if field.high is None else field.high)


def _sheet(
    header: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray]]], cell: int
) -> np.ndarray:
    """The rows below each other, classes above and names on the left; uint8 RGB."""
    pitch = cell + _GAP
    left, top = _LABELS + _GAP, _HEADER
    size = (left + len(header) * pitch, top + len(rows) * pitch)
    sheet = Image.new("RGB", size, (_PAPER,) * 3)
    draw = ImageDraw.Draw(sheet)
    font, knows = _font()

    def write(text: str, corner: tuple[int, int], room: int) -> None:
        shown = printable(text) if knows else _plain(printable(text))
        while shown and draw.textlength(shown, font) > room:
            shown = shown.removesuffix("...")[:-1] + "..." if len(shown) > 4 else shown[:-1]
        draw.text(corner, shown, (_INK,) * 3, font)

    for column, name in enumerate(header):
        write(name, (left + column * pitch, 2), cell)
    for row, (label, images) in enumerate(rows):
        write(label, (6, top + row * pitch + cell // 2 - 8), _LABELS - 6)
        for column, image in enumerate(images):
            picture = _fitted(np.asarray(image), cell)
            height, width = picture.shape[:2]
            corner = (left + column * pitch + (cell - width) // 2,
                      top + row * pitch + (cell - height) // 2)  # fmt: skip
            sheet.paste(Image.fromarray(picture), corner)
    return np.asarray(sheet)


def _font() -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, bool]:
    """A font of this machine, and whether it has more than ASCII; Pillow's own font has not."""
    for name in ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf"):
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, 13), True
    return ImageFont.load_default(13), False


def _plain(text: str) -> str:
    """The text in ASCII: letters without accents, `?` for other scripts."""
    letters = unicodedata.normalize("NFKD", text)
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return letters.encode("ascii", "replace").decode()


def _fitted(image: np.ndarray, cell: int) -> np.ndarray:
    """An image resized so that its longer side is that of the cell."""
    longer = max(image.shape[:2])
    height, width = (max(1, round(side * cell / longer)) for side in image.shape[:2])
    how = cv2.INTER_AREA if longer > cell else cv2.INTER_NEAREST
    return cv2.resize(image, (width, height), interpolation=how)


def write(path: pathlib.Path, sheet: np.ndarray) -> None:
    """Writes the picture completely or not at all."""
    encoded = cv2.imencode(path.suffix.lower(), sheet[..., ::-1])[1].tobytes()
    draft = path.with_name(path.name + ".tmp")
    try:
        draft.write_bytes(encoded)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UsageError(f"--output={path} cannot be written: {error.strerror}") from None
