"""Exports a model as a program that runs without this package: StableHLO, by `jax.export`.

The program contains the weights and the preprocessing of pixels, so that a server needs only one
file. docs/export.md shows how to load it.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from xception_jax.config import HALF
from xception_jax.data.render.decode import Images
from xception_jax.errors import RunError, UsageError
from xception_jax.serving import resize
from xception_jax.serving.calibration import probabilities_of
from xception_jax.serving.folders import (
    ABOUT,
    FORMAT,
    ONNX_FORMAT,
    PROGRAM,
    describe_images,
    described,
    scaling,
    verified,
    write_files,
)
from xception_jax.training.state import Tree
from xception_jax.training.step import apply

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    graphdef: Any,
    weights: Tree,
    images: Images,
    *,
    activation: str = "softmax",
    temperature: float = 1.0,
    resizes: bool = True,
    platforms: tuple[str, ...] = PLATFORMS,
) -> jax_export.Exported:
    """Lowers a model with its weights and its preprocessing, for each platform.

    Args:
      graphdef: the model's, see `state.graphdef_of`.
      weights: `{"params", "batch_stats"}`; they become constants of the program.
      images: the size of the model's images, and the crop of evaluation.
      activation: a key of `ACTIVATIONS`.
      temperature: divides the logits before the activation, see `serving.calibration`.
      resizes: whether the program takes images of any height and width; if not, only of the
        model's size.
      platforms: of `jax.export`.

    Returns:
      A program from uint8 `[batch, height, width, 3]` to float32 `[batch, classes]`, for any batch
      size.

    Raises:
      UsageError: the program cannot resize as evaluation does, or the model cannot be lowered.
    """
    if resizes and images.eval_preset != "area":
        raise UsageError(
            f"the program cannot resize as config.data.eval_preset {images.eval_preset}; use "
            f"--resize=outside and resize images before"
        )
    weights = jax.device_get(weights)

    def predict(pixels: jax.Array) -> jax.Array:
        if resizes:
            pixels = resize.area(pixels, images.size, images.eval_crop)
        logits, _ = apply(graphdef, weights, pixels)
        return probabilities_of(logits, activation, temperature)

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
    mean: tuple[float, ...] = HALF,
    std: tuple[float, ...] = HALF,
) -> dict[str, Any]:
    """The content of `model.json` for a program, without digests.

    Args:
      exported: the program.
      images: see `export`.
      activation: see `export`.
      class_names: in the order of the outputs.
      source: where the weights come from.
      crop_known: whether `images.eval_crop` comes from the weights; False: it is a usual value.
      mean, std: the model's, see `models.network.Network.normalize`.
    """
    shape, out = _shapes(exported)
    about = describe_images(images, shape, out, scaling(mean, std), crop_known=crop_known)
    about["output"]["activation"] = activation
    rest = {**_facts(exported), "jax": jax.__version__, "classes": list(class_names)}
    return {"format": FORMAT, "source": source, **about, **rest}


def _facts(exported: jax_export.Exported) -> dict[str, Any]:
    return {
        "platforms": list(exported.platforms),
        "calling_convention": exported.calling_convention_version,
    }


def _shapes(exported: jax_export.Exported) -> tuple[list[str | int], list[str | int]]:
    """The shapes of the input and the output; dynamic sizes have names."""
    given, made = (
        [str(side) if jax_export.is_symbolic_dim(side) else side for side in aval.shape]
        for aval in (exported.in_avals[0], exported.out_avals[0])
    )
    return given, made


def write(folder: Path, exported: jax_export.Exported, about: dict[str, Any]) -> dict[str, Any]:
    """Writes the program, its description, README and `classify.py` in one atomic step.

    Args:
      folder: must be empty or not exist.
      exported: the program.
      about: from `describe`.

    Returns:
      `about` with the program's `bytes`, the `sha256` of each other file, and a seal over all
      fields.

    Raises:
      UsageError: the folder is not empty, or cannot be created.
    """
    return write_files(folder, PROGRAM, bytes(exported.serialize()), about)


def load(folder: Path) -> tuple[jax_export.Exported, dict[str, Any]]:
    """Reads an export, and checks that it is complete and that this version of JAX can run it.

    Raises:
      UsageError: there is no export, or it needs another version of this package or of JAX.
      RunError: a file is missing or damaged.
    """
    about = described(folder)
    if about["format"] == ONNX_FORMAT:
        raise UsageError(f"{folder} is ONNX, which ONNX Runtime runs; JAX does not")
    convention = about["calling_convention"]
    least = jax_export.minimum_supported_calling_convention_version
    most = jax_export.maximum_supported_calling_convention_version
    if not least <= convention <= most:
        raise UsageError(
            f"{folder} was exported by jax {about['jax']} with calling convention {convention}; "
            f"jax {jax.__version__} takes {least} to {most}; export again, or install another jax"
        )
    program = verified(folder / PROGRAM, about["program"]["sha256"])
    exported = jax_export.deserialize(bytearray(program))
    facts = _facts(exported)
    if (
        (len(program), facts) != (about["program"]["bytes"], {name: about[name] for name in facts})
        or (about["input"]["shape"], about["output"]["shape"]) != _shapes(exported)
        or about["output"]["shape"][1] != len(about["classes"])
    ):
        raise RunError(f"{folder / ABOUT} is damaged: it does not match {PROGRAM}")
    return exported, about
