"""A model as a program that needs nothing of this package: StableHLO, by `jax.export`.

The program holds the weights and what is done to the pixels before the model, so that one file is
all that a server needs. docs/export.md shows how to load it.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from xception_jax.data.render import presets
from xception_jax.data.render.decode import Images
from xception_jax.errors import RunError, UsageError
from xception_jax.serving import resize
from xception_jax.training.state import Tree
from xception_jax.training.step import apply, normalize
from xception_jax.utils import seal

PLATFORMS = ("cpu", "cuda", "tpu")
ACTIVATIONS = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}
PROGRAM, ABOUT, README, CLASSIFY = "model.bin", "model.json", "README.md", "classify.py"

# Of `model.json`; raised when a reader of today would misread it.
FORMAT = 3
_TEXT, _NUMBER = (str,), (int,)
# What each field is, of each format that is read.
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
_FORMATS: dict[int, dict[str, Any]] = {
    1: _FIRST,
    2: _SECOND,
    FORMAT: {
        **_SECOND,
        "resize": {"by": {"program", "caller"}, "preset": set(presets.PRESETS), "size": _NUMBER,
                   "crop": (float,)},
        "classify": {"file": {CLASSIFY}, "sha256": _TEXT},
    },
}  # fmt: skip

# What each preset of `render.presets` does to a picture.
_RESIZES = {
    "area": "the centred square of {crop:g} of the shorter side, resized to {size} x {size} pixels "
    "(averaged where it shrinks, else linear)",
    "inception": "the centre of both sides, {crop:g} of each, squeezed to {size} x {size} pixels "
    "(bilinear, not antialiased)",
    "keras": "all of the picture, squeezed to {size} x {size} pixels (the nearest ones)",
    "timm": "the centred {size} x {size} pixels, after the shorter side has become {shorter} "
    "(antialiased bicubic)",
}


def export(
    graphdef: Any,
    weights: Tree,
    images: Images,
    *,
    activation: str = "softmax",
    resizes: bool = True,
    platforms: tuple[str, ...] = PLATFORMS,
) -> jax_export.Exported:
    """Lowers a model with its weights, and all that is done to an image, for each platform.

    Args:
      graphdef: of the model, see `state.graphdef_of`; wherever its weights come from.
      weights: `{"params", "batch_stats"}`; they become constants of the program.
      images: the size that the model takes, and how evaluation crops.
      activation: of `ACTIVATIONS`.
      resizes: take images of any height and width; else of the model's size only.
      platforms: of `jax.export`.

    Returns:
      A program of uint8 `[batch, height, width, 3]` to float32 `[batch, classes]`, for any batch.

    Raises:
      UsageError: the evaluation resizes in a way that is only known on the host.
    """
    if resizes and images.eval_preset != "area":
        raise UsageError(
            f"the program cannot resize as config.data.eval_preset {images.eval_preset} does; "
            f"take --resize=outside, and resize before it"
        )
    weights = jax.device_get(weights)

    def predict(pixels: jax.Array) -> jax.Array:
        if resizes:
            pixels = resize.area(pixels, images.size, images.eval_crop)
        logits, _ = apply(graphdef, weights, normalize(pixels))
        return ACTIVATIONS[activation](logits)

    sides = "height, width" if resizes else f"{images.size}, {images.size}"
    shape = jax_export.symbolic_shape(f"batch, {sides}, 3")
    try:
        return jax_export.export(jax.jit(predict), platforms=platforms)(
            jax.ShapeDtypeStruct(shape, jnp.uint8)
        )
    except NotImplementedError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"the model cannot be lowered for {', '.join(platforms)}: {reason}") from (
            None
        )


def describe(
    exported: jax_export.Exported,
    images: Images,
    *,
    activation: str,
    class_names: tuple[str, ...],
    source: dict[str, Any],
    crop_known: bool = True,
) -> dict[str, Any]:
    """What `model.json` says of a program, but for its digest.

    `source` says what it is made of, `crop_known` whether `images.eval_crop` is more than a guess.
    """
    resizes = jax_export.is_symbolic_dim(exported.in_avals[0].shape[1])
    made = _RESIZES[images.eval_preset].format(
        size=images.size, crop=images.eval_crop, shorter=math.floor(images.size / images.eval_crop)
    )
    if not crop_known:
        made += f"; the weights do not tell the crop: {images.eval_crop:g} is the usual one"
    shape, out = _shapes(exported)
    return {
        "format": FORMAT,
        "source": source,
        "input": {"shape": shape, "dtype": "uint8", "channels": "RGB"},
        "output": {"shape": out, "dtype": "float32", "activation": activation},
        "exif_orientation": "applied" if images.exif else "ignored",
        "resize": {
            "by": "program" if resizes else "caller", "preset": images.eval_preset,
            "size": images.size, "crop": float(images.eval_crop),
        },
        "preprocessing": "the caller "
        + ("turns an image by" if images.exif else "ignores")
        + " its EXIF orientation; "
        + (f"the program takes {made}" if resizes else f"then the caller takes {made}")
        + "; the program scales to [-1, 1]",
        **_facts(exported),
        "jax": jax.__version__,
        "classes": list(class_names),
    }  # fmt: skip


def _facts(exported: jax_export.Exported) -> dict[str, Any]:
    return {
        "platforms": list(exported.platforms),
        "calling_convention": exported.calling_convention_version,
    }


def _shapes(exported: jax_export.Exported) -> tuple[list[str | int], list[str | int]]:
    """Of the input and the output; a side that may be any is named."""
    given, made = (
        [str(side) if jax_export.is_symbolic_dim(side) else side for side in aval.shape]
        for aval in (exported.in_avals[0], exported.out_avals[0])
    )
    return given, made


def check_output(folder: Path) -> None:
    """Raises `UsageError` where an export must not be written: only into no or an empty folder."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output={folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"--output={folder} is not empty; name another folder, or remove it")


def write(folder: Path, exported: jax_export.Exported, about: dict[str, Any]) -> dict[str, Any]:
    """Writes program, description, README and `classify.py` as a whole or not at all.

    Returns:
      `about`, with the program's `bytes`, the `sha256` of each other file, and a seal over all
      fields.

    Raises:
      UsageError: the folder holds something, or cannot be made.
    """
    check_output(folder)
    program = bytes(exported.serialize())
    readme = _readme(about).encode()
    classify = Path(__file__).with_name(CLASSIFY).read_bytes()
    about = seal.sealed(
        about
        | {"program": {**_file(PROGRAM, program), "bytes": len(program)}}
        | {"readme": _file(README, readme), "classify": _file(CLASSIFY, classify)}
    )
    draft = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
        (draft / PROGRAM).write_bytes(program)
        text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
        (draft / ABOUT).write_bytes(text.encode())
        (draft / README).write_bytes(readme)
        (draft / CLASSIFY).write_bytes(classify)
        draft.chmod(0o755)  # a server is often another user
        os.rename(draft, folder)
    except OSError as error:
        raise UsageError(f"--output={folder} cannot be written: {error.strerror}") from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return about


def _file(name: str, data: bytes) -> dict[str, Any]:
    return {"file": name, "sha256": hashlib.sha256(data).hexdigest()}


def _readme(about: dict[str, Any]) -> str:
    size = about["resize"]["size"]
    sizes = (
        "images of any size; those of one batch have the same size"
        if about["resize"]["by"] == "program"
        else f"images of one size only, {size} x {size} pixels: resize others before"
    )
    shape = ", ".join(map(str, about["input"]["shape"]))
    return f"""# An image classifier, exported by xception_jax

`{PROGRAM}` is StableHLO for {", ".join(about["platforms"])}, weights included.

- In: RGB images, uint8 `[{shape}]`; {sizes}.
- Out: {about["output"]["activation"]} probabilities of {len(about["classes"])} classes, float32.
- What is done to the pixels: {about["preprocessing"]}.

`{ABOUT}` says the same to programs, and names the classes, in order, and the versions.
`{CLASSIFY}` does it all to images of any size. It runs without xception_jax:

    pip install jax flatbuffers pillow
    python {CLASSIFY} IMAGE...
"""


def load(folder: Path) -> tuple[jax_export.Exported, dict[str, Any]]:
    """Reads an export back, and checks that it is whole and that this JAX can run it.

    Raises:
      UsageError: there is no export, or it is for another version of this package or of JAX.
      RunError: it is damaged: a file is gone, or is not what was exported.
    """
    about = _described(folder)
    convention = about["calling_convention"]
    least = jax_export.minimum_supported_calling_convention_version
    most = jax_export.maximum_supported_calling_convention_version
    if not least <= convention <= most:
        raise UsageError(
            f"{folder} was exported by jax {about['jax']} with calling convention {convention}; "
            f"jax {jax.__version__} takes {least} to {most}: export it anew, or install another jax"
        )
    program = verified(folder / PROGRAM, about["program"]["sha256"])
    exported = jax_export.deserialize(bytearray(program))
    facts = _facts(exported)
    if (
        (len(program), facts) != (about["program"]["bytes"], {name: about[name] for name in facts})
        or (about["input"]["shape"], about["output"]["shape"]) != _shapes(exported)
        or about["output"]["shape"][1] != len(about["classes"])
    ):
        raise RunError(f"{folder / ABOUT} is damaged: it describes another program than {PROGRAM}")
    return exported, about


def _described(folder: Path) -> dict[str, Any]:
    """What `model.json` says, checked as far as it can be without the program."""
    path = folder / ABOUT
    if not any(os.path.lexists(folder / name) for name in (ABOUT, PROGRAM)):
        raise UsageError(f"no exported model in {folder}: it needs {ABOUT} and {PROGRAM}")
    try:
        about = seal.parse(_read(path))
        version = about.get("format")
        shape = _FORMATS.get(version) if type(version) is int else None
        if shape is not _FIRST or seal.NAME in about:  # the first format had none
            seal.check(about)
        if shape:
            _check_shape(about, shape, "it")
    except ValueError as error:
        raise RunError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    if not shape:
        reads = ", ".join(map(str, _FORMATS))
        raise UsageError(f"{path} has format {version}; this version reads formats {reads}")
    return about


def _check_shape(value: Any, wanted: Any, name: str) -> None:
    """Raises `ValueError` unless JSON is as wanted.

    Args:
      wanted: types of which it has to be one; texts; a list of what each part is; or of each field.
    """
    if isinstance(wanted, dict):
        if not isinstance(value, dict) or value.keys() != wanted.keys():
            fields = value.keys() ^ wanted.keys() if isinstance(value, dict) else "?"
            raise ValueError(f"{name} lacks {sorted(fields)[0]!r}, or should not have it")
        for field, kind in wanted.items():
            _check_shape(value[field], kind, field)
    elif isinstance(wanted, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} is no list")
        for each in value:
            _check_shape(each, wanted[0], name)
    elif type(value) not in (wanted if isinstance(wanted, tuple) else (str,)) or (
        isinstance(wanted, set) and value not in wanted
    ):
        raise ValueError(f"{name} is {value!r}, which it cannot be")


def verified(path: Path, digest: str) -> bytes:
    """What a file of the export holds; raises `RunError` unless it is what was exported."""
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise RunError(f"{path} is damaged: it is not what was exported")
    return data


def _read(path: Path) -> bytes:
    """The bytes of a file; raises `RunError`. A pipe in its place would never end."""
    try:
        if not path.is_file():
            raise RunError(f"{path} is damaged: it is gone, or is no file")
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
