"""Classifies images with the exported model in this folder.

    pip install jax flatbuffers pillow    # onnxruntime pillow, if there is a model.onnx
    python classify.py IMAGE...

It prepares each image as the evaluation of the model did, and prints the most probable class. For
a model of several labels an image it also prints those whose probability reaches their threshold.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

# This file is copied to the folder of each exported program. It needs no other file of the
# package, and runs on Python 3.11 and newer.
FOLDER = Path(__file__).resolve().parent
# Above this number of pixels (50 MB), only the centre of a picture is resized.
LARGE = 2**24


def area(picture: np.ndarray, size: int, crop: float) -> np.ndarray:
    """The centred square of `crop` of the shorter side: area average to shrink, else linear."""
    side = max(1, round(min(picture.shape[:2]) * crop))
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    part = picture[top : top + side, left : left + side].astype(np.float64)
    shares = _shares(side, size)
    # Matrix products: einsum takes a minute for a large photo.
    made = shares @ (shares @ part.reshape(side, -1)).reshape(size, side, 3)
    # OpenCV rounds halves to even, but up if it halves an image.
    made = np.floor(made + 0.5) if side == 2 * size else np.round(made)
    return np.clip(made, 0, 255).astype(np.uint8)


def _shares(side: int, size: int) -> np.ndarray:
    """The weight of each of `side` pixels in each of `size` pixels, `[size, side]`."""
    place, pixel = np.arange(size)[:, None], np.arange(side)[None]
    shares: np.ndarray
    if side > size:
        first = np.maximum(place * side, pixel * size)
        last = np.minimum((place + 1) * side, (pixel + 1) * size)
        shares = np.maximum(last - first, 0) / side
    else:
        centre = np.clip((place + 0.5) * (side / size) - 0.5, 0, side - 1)
        shares = np.maximum(1 - np.abs(pixel - centre), 0)
    return shares


def inception(picture: np.ndarray, size: int, crop: float) -> np.ndarray:
    """The centre of both sides, resized to a square: bilinear, not antialiased, as in TF-Slim."""
    made = picture
    for axis in np.argsort(picture.shape[:2])[::-1]:
        side = made.shape[axis]
        start = int((side - side * crop) / 2)
        kept = side - 2 * start
        places = np.arange(size, dtype=np.float32) * np.float32(kept / size)
        low = places.astype(np.int32)
        share = (places - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first, second = (
            np.take(made, start + at, axis).astype(np.float32)
            for at in (low, np.minimum(low + 1, kept - 1))
        )
        made = first + (second - first) * share
    return np.round(made).astype(np.uint8)


def keras(picture: np.ndarray, size: int, crop: float) -> np.ndarray:
    """The complete picture, resized to a square with the nearest pixels."""
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.NEAREST))


def timm(picture: np.ndarray, size: int, crop: float) -> np.ndarray:
    """The centre after the shorter side is resized to `size / crop`: antialiased bicubic."""
    shorter, least = math.floor(size / crop), min(picture.shape[:2])
    rows, columns = (
        shorter if side == least else int(side * shorter / least) for side in picture.shape[:2]
    )
    top, left = round((rows - size) / 2), round((columns - size) / 2)
    image = Image.fromarray(picture)
    if rows * columns <= LARGE:
        resized = image.resize((columns, rows), Image.Resampling.BICUBIC)
        return np.asarray(resized)[top : top + size, left : left + size]
    # A long and narrow picture could become huge: only its centre is resized.
    down, across = picture.shape[0] / rows, picture.shape[1] / columns
    box = left * across, top * down, (left + size) * across, (top + size) * down
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


RESIZES: dict[str, Callable[[np.ndarray, int, float], np.ndarray]] = {
    "area": area,
    "inception": inception,
    "keras": keras,
    "timm": timm,
}


def load(path: str, about: dict[str, Any]) -> np.ndarray:
    """An image for the program, uint8 `[height, width, 3]`; `about` is `model.json`."""
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError("it has more than 8 bits per sample; convert it to 8 first")
        white = about.get("white_level", 65_535)
        if white != 65_535 and _cut(image):
            raise ValueError(f"it has 16 bits per sample, of which {white} is white; convert it to "
                             f"8 bits first")  # fmt: skip
        turned = about["exif_orientation"] == "applied"
        picture = np.asarray((ImageOps.exif_transpose(image) if turned else image).convert("RGB"))
    resize = about["resize"]
    if resize["by"] == "program":
        return picture
    return RESIZES[resize["preset"]](picture, resize["size"], resize["crop"])


def _cut(image: Any) -> bool:
    """Whether Pillow cuts the samples of an image from 16 bits to 8."""
    return any(
        ";16" in str(how) or (codec == "ppm" and isinstance(how, tuple) and how[-1] > 255)
        for codec, _, _, how in image.tile
    )


def open_model(about: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """The program as a function from a batch of images, uint8, to probabilities."""
    path = FOLDER / about["program"]["file"]
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run(pixels: np.ndarray) -> np.ndarray:
            if about["input"]["dtype"] == "float32":
                pixels = (pixels.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
            found: np.ndarray = session.run(["probabilities"], {"images": pixels})[0]
            return found

        return run
    import jax
    from jax import export

    model = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
    return lambda pixels: np.asarray(model(pixels))


def labels_of(probabilities: np.ndarray, about: dict[str, Any]) -> str:
    """The labels of an image as text, by the fitted thresholds or else 0.5; empty for softmax."""
    if about["output"]["activation"] != "sigmoid":
        return ""
    fitted = about["source"].get("calibration", {}).get("thresholds") or 0.5
    found = np.flatnonzero(probabilities >= np.asarray(fitted))
    return "  labels: " + (", ".join(about["classes"][i] for i in found) or "none")


def main(paths: list[str]) -> int:
    if not paths:
        print(__doc__.strip())
        return 2
    about = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
    model, failed = open_model(about), 0
    for path in paths:
        try:
            pixels = load(path, about)
        except (OSError, ValueError) as error:
            print(f"error: {path} cannot be classified: {error}", file=sys.stderr)
            failed = 1
            continue
        probabilities = model(pixels[None])[0]
        best = int(probabilities.argmax())
        labels = labels_of(probabilities, about)
        print(f"{path}  {about['classes'][best]}  {probabilities[best]:.6f}{labels}")
    return failed


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
