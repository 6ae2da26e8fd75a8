"""Pictures, weights and settings of tiny fine-tunings."""

from pathlib import Path

from tests.weights import builders
from xception_jax.utils.console import make_console
from xception_jax.weights import converted

SMALL = {"width": 0.1, "middle_blocks": 0, "stem_stride": 1}
MADE_FOR = {"image_size": 8, "eval_preset": "area", "eval_crop": 1.0, "exif": True}
# Durations in steps, so that runs on any number of images share a program.
CHANGES = {
    "duration": "6 steps", "optimizer.warmup": "1 step", "eval.every": "3 steps",
    "checkpoint.every": "3 steps", "data.batch_size": 16, "mesh.data": 1, "log.every": "1 step",
}  # fmt: skip
CLASSES = ("one", "two", "three")


def write_weights(path: Path) -> Path:
    """A converted file of a small model."""
    about = converted.About("xception", SMALL, 3, None, MADE_FOR, {"format": "timm"})
    converted.write(path, about, builders.arrays(builders.create("xception", **SMALL)))
    return path


def write_data(folder: Path, digits) -> Path:
    """`train` of 24 images a class and `test` of 10."""
    write_images(folder / "train", digits, "train", 24)
    write_images(folder / "test", digits, "test", 10)
    return folder


def write_images(folder: Path, digits, split: str, each: int) -> Path:
    """Images of three classes of the digits."""
    source, left = digits[split], dict.fromkeys(range(1, 4), each)
    for i in range(len(source)):
        encoded, label, _ = source[i]
        if left.get(label, 0):
            left[label] -= 1
            place = folder / CLASSES[label - 1]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:04}.png").write_bytes(encoded)
    return folder


def said_by(call, *args, **options):
    """The result of a call, and what it printed."""
    console = make_console()
    with console.capture() as captured:
        found = call(*args, console=console, **options)
    return found, captured.get()
