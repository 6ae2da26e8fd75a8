"""Exports a model as ONNX, and runs such an export: docs/export.md."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export as jax_export

import xception_jax
from xception_jax import config as config_lib
from xception_jax.errors import RunError, UsageError
from xception_jax.serving import folding, graph
from xception_jax.serving.folders import (
    ABOUT,
    ONNX,
    ONNX_FORMAT,
    describe_images,
    scaling,
    verified,
    write_files,
)
from xception_jax.serving.inference import Inference

# The newest that ONNX Runtime 1.22 and OpenVINO 2026 read (both are tested with newer versions).
OPSET, _OLDEST_RUNTIME = 23, "1.22"
_KINDS = {"softmax": "Softmax", "sigmoid": "Sigmoid"}


def inference_form(graphdef: Any, weights: Any) -> Any:
    """The model in float32, without options of training.

    Args:
      graphdef: see `state.graphdef_of`.
      weights: `{"params", "batch_stats"}`; they become constants.
    """
    held = jax.device_get(weights)
    model: Any = nnx.merge(graphdef, held["params"], held["batch_stats"], copy=True)
    model.freeze, model.remat, model.scan_middle = None, False, False
    for _, module in nnx.iter_modules(model):
        if getattr(module, "dtype", None) is not None:
            vars(module)["dtype"] = jnp.float32
    return model


def graph_of(model: Inference, *, scales: bool) -> graph.Node:
    """The folded graph of the logits, of uint8 pixels if it `scales` them, else of [-1, 1]."""
    network, side = inference_form(model.graphdef, model.weights), model.images.size

    def logits(given: jax.Array) -> Any:
        if not scales and model.mean == model.std == config_lib.HALF:
            return network(given)
        return network(network.normalize(given if scales else (given + 1) * 127.5))

    given = jax.ShapeDtypeStruct(
        jax_export.symbolic_shape(f"batch, {side}, {side}, 3"),
        jnp.uint8 if scales else jnp.float32,
    )
    return folding.fold(graph.trace(logits, given))


def write(folder: Path, model: Inference, *, scales: bool) -> dict[str, Any]:
    """Writes an export as ONNX; returns the content of `model.json`, see `program.write`.

    Args:
      folder: must be empty or not exist.
      model: what to export.
      scales: whether the input is uint8 `[batch, size, size, 3]`, else it is float32
        `[batch, 3, size, size]`, from -1 to 1.

    Raises:
      UsageError: ONNX is not installed, the folder is not empty, or the model has an operation
        that is not written as ONNX.
    """
    side, classes = model.images.size, list(model.class_names)
    scaled = (
        scaling(model.mean, model.std)
        if scales
        else "then scales to [-1, 1] and puts the channels first"
    )
    pictures = describe_images(
        model.images, ["batch", side, side, 3], ["batch", len(classes)], scaled,
        crop_known=model.crop_known,
    )  # fmt: skip
    pictures["output"]["activation"] = model.activation
    if not scales:
        pictures["input"] |= {"shape": ["batch", 3, side, side], "dtype": "float32"}
    about = {"format": ONNX_FORMAT, "source": model.source, **pictures, "opset": OPSET,
             "classes": classes}  # fmt: skip
    made = _model_of(graph_of(model, scales=scales), about, model.temperature)
    return write_files(folder, ONNX, made.SerializeToString(), about)


def check_installed() -> None:
    """Raises `UsageError` if ONNX is not installed."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise UsageError("--format=onnx needs onnx: pip install 'xception_jax[onnx]'") from None


def _model_of(logits: graph.Node, about: dict[str, Any], temperature: float) -> Any:
    """The ONNX model with the probabilities of some logits and what `model.json` says.

    The probabilities are of the logits divided by the temperature, see `serving.calibration`.
    """
    from onnx import helper

    from xception_jax.serving.onnx_graph import Tensor, Writer, value_info

    writer = Writer()
    order = (0, 3, 1, 2)
    scales = about["input"]["dtype"] == "uint8"
    stored = writer.emit("Transpose", "images", perm=order) if scales else "images"
    writer.rename(writer.graph(logits, Tensor(stored, order)), "logits")
    kind = _KINDS[about["output"]["activation"]]
    axis = {"axis": 1} if kind == "Softmax" else {}
    scaled = "logits"
    if temperature != 1:
        scaled = writer.emit("Div", "logits", writer.constant(np.float32(temperature)))
    writer.rename(writer.emit(kind, scaled, **axis), "probabilities")
    shape = about["output"]["shape"]
    made = helper.make_graph(
        writer.nodes,
        str(about["source"].get("model", "model")),
        [value_info("images", about["input"]["dtype"], about["input"]["shape"])],
        [value_info(name, np.float32, shape) for name in ("logits", "probabilities")],
        writer.weights,
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model_gen_version(
        made, opset_imports=[opset], producer_name="xception_jax",
        producer_version=xception_jax.__version__, doc_string=about["preprocessing"],
    )  # fmt: skip
    told = {name: json.dumps(one) for name, one in _metadata(about).items()}
    helper.set_model_props(model, told)
    return model


def _metadata(about: dict[str, Any]) -> dict[str, Any]:
    """What the file itself says, as JSON, for those who have only the file."""
    names = "source", "classes", "resize", "exif_orientation", "white_level", "preprocessing"
    told = {name: about[name] for name in names if name in about}
    return {**told, "activation": about["output"]["activation"]}


def load(
    folder: Path, about: dict[str, Any], *, check: bool = False
) -> Callable[[Any], np.ndarray]:
    """An export's probabilities of uint8 pixels `[batch, size, size, 3]`, by ONNX Runtime.

    Args:
      folder: of the export.
      about: its `model.json`, see `folders.described`.
      check: whether ONNX' own checker reads it too, if it is installed.

    Raises:
      UsageError: ONNX Runtime is not installed.
      RunError: the model is damaged, or this ONNX Runtime cannot run it.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UsageError(f"{folder} is ONNX: pip install onnxruntime") from None
    program = verified(folder / ONNX, about["program"]["sha256"])
    try:
        session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has no class of its own for all of its errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"{folder / ONNX} does not run in ONNX Runtime {onnxruntime.__version__}; "
            f"{_OLDEST_RUNTIME} or newer is needed: {reason}"
        ) from None
    held = session.get_modelmeta().custom_metadata_map
    if (
        len(program) != about["program"]["bytes"]
        or session.get_inputs()[0].shape != about["input"]["shape"]
        or any(one.shape != about["output"]["shape"] for one in session.get_outputs())
        or held != {name: json.dumps(one) for name, one in _metadata(about).items()}
    ):
        raise RunError(f"{folder / ABOUT} is damaged: it does not match {ONNX}")
    if check and importlib.util.find_spec("onnx"):
        import onnx

        try:
            onnx.checker.check_model(program, full_check=True)
        except onnx.checker.ValidationError as error:
            raise RunError(f"{folder / ONNX} is no valid ONNX: {str(error).splitlines()[0]}") from (
                None
            )
    scales = about["input"]["dtype"] == "uint8"

    def run(pixels: Any) -> np.ndarray:
        given = np.asarray(pixels)
        if not scales:
            given = (given.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
        found: np.ndarray = session.run(["probabilities"], {"images": given})[0]
        return found

    return run
