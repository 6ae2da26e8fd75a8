"""The folder of an export: its files, what `model.json` says, and whether they are whole."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from xception_jax.config import HALF
from xception_jax.data.render import presets
from xception_jax.data.render.decode import Images
from xception_jax.errors import RunError, UsageError
from xception_jax.serving import card
from xception_jax.serving.calibration import ACTIVATIONS
from xception_jax.utils import seal

PROGRAM, ABOUT, README, CLASSIFY = "model.bin", "model.json", "README.md", "classify.py"
ONNX = "model.onnx"

# The format of `model.json`; increased when an older reader would misread it.
FORMAT = 3
ONNX_FORMAT = 4
_TEXT, _NUMBER = (str,), (int,)
# The type of each field, for each format that can be read.
_FIRST: dict[str, Any] = {
    "format": _NUMBER,
    "source": (dict,),
    "input": {"shape": [(str, int)], "dtype": {"uint8"}, "channels": {"RGB"}},
    "output": {"shape": [(str, int)], "dtype": {"float32"}, "activation": set(ACTIVATIONS)},
    "preprocessing": _TEXT,
    "platforms": [_TEXT],
    "jax": _TEXT,
    "calling_convention": _NUMBER,
    "classes": [_TEXT],
    "program": {"file": {PROGRAM}, "bytes": _NUMBER, "sha256": _TEXT},
}
_SECOND: dict[str, Any] = {
    **_FIRST,
    "exif_orientation": {"applied", "ignored"},
    "readme": {"file": {README}, "sha256": _TEXT},
    seal.NAME: _TEXT,
}
_THIRD: dict[str, Any] = {
    **_SECOND,
    "resize": {"by": {"program", "caller"}, "preset": set(presets.PRESETS), "size": _NUMBER,
               "crop": (float,)},
    "classify": {"file": {CLASSIFY}, "sha256": _TEXT},
}  # fmt: skip
# Fields of exports that need them; only since the third format.
_OPTIONAL = {"white_level": _NUMBER}
_OF_JAX = ("platforms", "jax", "calling_convention")
_FORMATS: dict[int, dict[str, Any]] = {
    1: _FIRST,
    2: _SECOND,
    FORMAT: _THIRD,
    ONNX_FORMAT: {
        **{name: kind for name, kind in _THIRD.items() if name not in _OF_JAX},
        "input": {**_THIRD["input"], "dtype": {"uint8", "float32"}},
        "program": {**_THIRD["program"], "file": {ONNX}},
        "opset": _NUMBER,
    },
}

# Descriptions of the presets in `render.presets`.
_RESIZES = {
    "area": "the centred square of {crop:g} of the shorter side, resized to {size} x {size} pixels "
    "(area average to shrink, else linear)",
    "inception": "the centre of both sides, {crop:g} of each, resized to {size} x {size} pixels "
    "(bilinear, not antialiased)",
    "keras": "the complete picture, resized to {size} x {size} pixels (nearest pixels)",
    "timm": "the centred {size} x {size} pixels, after the shorter side is resized to {shorter} "
    "(antialiased bicubic)",
}


def describe_images(
    images: Images,
    shape: list[str | int],
    out: list[str | int],
    scaled: str,
    *,
    crop_known: bool,
) -> dict[str, Any]:
    """What `model.json` says of images, for programs of each kind.

    Args:
      images: see `export`.
      shape: of the input, `[batch, height, width, 3]`; dynamic sizes have names.
      out: of the output.
      scaled: who scales the pixels, and how.
      crop_known: see `describe`.
    """
    resizes = isinstance(shape[1], str)
    made = _RESIZES[images.eval_preset].format(
        size=images.size, crop=images.eval_crop, shorter=math.floor(images.size / images.eval_crop)
    )
    if not crop_known:
        made += f"; the weights do not specify the crop, {images.eval_crop:g} is a usual value"
    return {
        "input": {"shape": shape, "dtype": "uint8", "channels": "RGB"},
        "output": {"shape": out, "dtype": "float32"},
        "exif_orientation": "applied" if images.exif else "ignored",
        **({"white_level": images.white} if images.white else {}),
        "resize": {
            "by": "program" if resizes else "caller", "preset": images.eval_preset,
            "size": images.size, "crop": float(images.eval_crop),
        },
        "preprocessing": "the caller "
        + (f"takes {images.white} of an image of 16 bits per sample as white; the caller "
           if images.white else "")
        + ("rotates an image by" if images.exif else "ignores")
        + " its EXIF orientation; "
        + (f"the program takes {made}" if resizes else f"then the caller takes {made}")
        + f"; {scaled}",
    }  # fmt: skip


def scaling(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """How a program scales pixels: see `models.network.Network.normalize`."""
    if mean == std == HALF:
        return "the program scales to [-1, 1]"
    shown = (f"[{', '.join(f'{number:g}' for number in each)}]" for each in (mean, std))
    return (
        "the program divides by 255, subtracts the mean {} and divides by the deviation {}"
    ).format(*shown)


def check_output(folder: Path) -> None:
    """Raises `UsageError` unless the folder is empty or does not exist."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output={folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"--output={folder} is not empty; give another folder, or remove it")


def write_files(folder: Path, name: str, program: bytes, about: dict[str, Any]) -> dict[str, Any]:
    """See `write`; the program is the content of the file `name`."""
    check_output(folder)
    about = about | {"program": {**_file(name, program), "bytes": len(program)}}
    readme = card.readme(about).encode()
    classify = Path(__file__).with_name(CLASSIFY).read_bytes()
    about = seal.sealed(
        about | {"readme": _file(README, readme), "classify": _file(CLASSIFY, classify)}
    )
    draft = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
        (draft / name).write_bytes(program)
        text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
        (draft / ABOUT).write_bytes(text.encode())
        (draft / README).write_bytes(readme)
        (draft / CLASSIFY).write_bytes(classify)
        draft.chmod(0o755)  # a server often runs as another user
        os.rename(draft, folder)
    except OSError as error:
        raise UsageError(f"--output={folder} cannot be written: {error.strerror}") from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return about


def _file(name: str, data: bytes) -> dict[str, Any]:
    return {"file": name, "sha256": hashlib.sha256(data).hexdigest()}


def described(folder: Path) -> dict[str, Any]:
    """Reads `model.json` and checks it as far as possible without the program; see `load`."""
    path = folder / ABOUT
    if not any(os.path.lexists(folder / name) for name in (ABOUT, PROGRAM, ONNX)):
        raise UsageError(f"no exported model in {folder}: it needs {ABOUT} and {PROGRAM}")
    try:
        about = seal.parse(_read(path))
        version = about.get("format")
        shape = _FORMATS.get(version) if type(version) is int else None
        if shape is not _FIRST or seal.NAME in about:  # the first format had no seal
            seal.check(about)
        if shape:
            more = {name: kind for name, kind in _OPTIONAL.items() if name in about}
            _check_shape(about, shape | more if "resize" in shape else shape, "it")
            if (resize := about.get("resize")) and not _plausible(resize):
                raise ValueError(f"resize is {resize}")
            if not 0 < (white := about.get("white_level", 1)) < 1 << 16:
                raise ValueError(f"white_level is {white}")
    except ValueError as error:
        raise RunError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    if not shape:
        reads = ", ".join(map(str, _FORMATS))
        raise UsageError(f"{path} has format {version}; this version reads formats {reads}")
    return about


def _plausible(resize: dict[str, Any]) -> bool:
    """Whether a size and a crop can be those of an export; a reader pads images by them."""
    return bool(
        resize["size"] > 0 and 0 < resize["crop"] <= 1 and resize["size"] / resize["crop"] < 1 << 14
    )


def _check_shape(value: Any, wanted: Any, name: str) -> None:
    """Raises `ValueError` unless a JSON value has the expected form.

    Args:
      value: the JSON value.
      wanted: a tuple of allowed types, a set of allowed strings, a list with the form of each
        item, or a dict with the form of each field.
      name: of the value, for the message.
    """
    if isinstance(wanted, dict):
        if not isinstance(value, dict) or value.keys() != wanted.keys():
            fields = value.keys() ^ wanted.keys() if isinstance(value, dict) else "?"
            raise ValueError(f"{name} has a missing or unknown field {sorted(fields)[0]!r}")
        for field, kind in wanted.items():
            _check_shape(value[field], kind, field)
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} is not a list")
        for each in value:
            _check_shape(each, wanted[0], name)
    elif type(value) not in (wanted if isinstance(wanted, tuple) else (str,)) or (
        isinstance(wanted, set) and value not in wanted
    ):
        raise ValueError(f"{name} has the invalid value {value!r}")


def verified(path: Path, digest: str) -> bytes:
    """The content of a file of the export; raises `RunError` if it does not match its digest."""
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise RunError(f"{path} is damaged: it does not match its checksum")
    return data


def _read(path: Path) -> bytes:
    """The bytes of a regular file; raises `RunError`. (Reading a pipe could block forever.)"""
    try:
        if not path.is_file():
            raise RunError(f"{path} is damaged: it is missing, or not a file")
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
