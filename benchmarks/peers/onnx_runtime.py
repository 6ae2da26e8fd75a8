"""The network as ONNX, ours or the one that PyTorch exports of timm's, without a training step.

Variants: `ours` and `timm` in ONNX Runtime, `ours_openvino` and `timm_openvino` in OpenVINO.
"""

import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
from worker import Work

# What timm calls our models that have another name there.
_NAMES = {"xception": "legacy_xception"}


def _write_ours(work: Work, folder: Path) -> Path:
    """Our export, of random weights, which takes scaled images as timm's does."""
    from flax import nnx

    from xception_jax import models
    from xception_jax.data.render.decode import Images
    from xception_jax.serving import onnx_files
    from xception_jax.serving.inference import Inference
    from xception_jax.training import state

    model = models.create(work.model, num_classes=1000, rngs=nnx.Rngs(0), **work.overrides)
    graphdef, params, batch_stats = state.split(model)
    weights, names = {"params": params, "batch_stats": batch_stats}, tuple(map(str, range(1000)))
    inferred = Inference(graphdef, weights, Images(work.side), "softmax", names)
    onnx_files.write(folder / "out", inferred, scales=False)
    return folder / "out" / "model.onnx"


def _write_timm(work: Work, folder: Path) -> Path:
    import timm_torch
    import torch

    model = timm_torch.create_model(_NAMES.get(work.model, work.model)).eval()
    path = folder / "timm.onnx"
    torch.onnx.export(
        model, (torch.zeros(2, 3, work.side, work.side),), path, external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, verbose=False,
    )  # fmt: skip
    return path


def build(work: Work) -> Callable[[int], None]:
    """See `worker`."""
    if work.kind != "forward":
        raise SystemExit("ONNX has no training step")
    images = np.random.default_rng(0).uniform(-1, 1, (work.batch, 3, work.side, work.side))
    images = images.astype(np.float32)
    cores = len(work.cores)
    with tempfile.TemporaryDirectory() as name:
        write = _write_ours if work.variant.startswith("ours") else _write_timm
        path = write(work, Path(name))
        opened = _in_openvino if work.variant.endswith("openvino") else _in_onnx_runtime
        forward = opened(path, cores)

    def run(steps: int) -> None:
        for _ in range(steps):
            forward(images)

    return run


def _in_onnx_runtime(path: Path, cores: int) -> Callable[[np.ndarray], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given, logits = session.get_inputs()[0].name, session.get_outputs()[0].name
    return lambda images: session.run([logits], {given: images})


def _in_openvino(path: Path, cores: int) -> Callable[[np.ndarray], object]:
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cores}
    compiled = openvino.Core().compile_model(path, "CPU", exact)
    return lambda images: compiled(images)[0]


def facts(work: Work) -> dict[str, object]:
    """The versions of what runs the model."""
    of = "openvino" if work.variant.endswith("openvino") else "onnxruntime"
    made = ("flax", "jax") if work.variant.startswith("ours") else ("timm", "torch")
    return {"versions": {name: metadata.version(name) for name in (of, "onnx", *made)}}
