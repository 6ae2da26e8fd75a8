"""ONNX exports: our logits in ONNX Runtime and OpenVINO, and what is in the folder."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy.special import expit, softmax

from tests.processes import finish, result
from tests.serving.test_folding import OPTIONS, create, logits_of, side_of, split
from tests.weights import builders
from xception_jax import export, models, serving
from xception_jax.data.render.decode import Images
from xception_jax.errors import RunError, UsageError
from xception_jax.predict import Classifier
from xception_jax.serving import graph, onnx_files
from xception_jax.serving.folders import write_files
from xception_jax.serving.inference import Inference
from xception_jax.training import step
from xception_jax.weights import converted

pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[peers]'")
pytest.importorskip("onnxruntime")
BATCHES = (1, 2, 5)
CLASSES = "abcde"


def inference_of(model: nnx.Module, side: int, activation: str = "softmax") -> Inference:
    names = (
        tuple(CLASSES) if model.head.classifier.bias.shape == (5,) else tuple(map(str, range(1000)))
    )
    return Inference(*split(model), Images(side), activation, names, {"model": "narrow"})


def own(model: nnx.Module, pixels: np.ndarray) -> np.ndarray:
    """The model's own logits of uint8 pixels."""
    graphdef, weights = split(model)
    return logits_of(lambda x: step.apply(graphdef, weights, x)[0], pixels)


def pixels_of(batch: int, side: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, side, side, 3), np.uint8)


def for_openvino(file: Path):
    openvino = pytest.importorskip("openvino")
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(openvino.Core().read_model(file), "CPU", exact)


def check_logits(model: nnx.Module, folder: Path, side: int, *, scales: bool) -> None:
    """Both runtimes, each batch size, to 1e-4 of the spread of the logits."""
    import onnx
    import onnxruntime

    file = folder / "model.onnx"
    onnx.checker.check_model(onnx.load(file), full_check=True)
    session = onnxruntime.InferenceSession(file)
    compiled = for_openvino(file)
    pixels = pixels_of(max(BATCHES), side)
    all_logits, scaled = own(model, pixels), np.asarray(model.normalize(pixels))
    for batch in BATCHES:
        expected = all_logits[:batch]
        given = pixels[:batch] if scales else scaled[:batch].transpose(0, 3, 1, 2)
        found = session.run(["logits", "probabilities"], {"images": given})
        theirs = compiled({"images": np.ascontiguousarray(given)})
        for logits, probabilities in (found, (theirs["logits"], theirs["probabilities"])):
            assert logits.dtype == np.float32
            assert np.abs(logits - expected).max() < 1e-4 * all_logits.std()
            np.testing.assert_allclose(probabilities, softmax(expected, 1), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    OPTIONS,
    ids=[" ".join([name, *map(str, options)]) for name, options in OPTIONS],
)
def test_every_member_has_our_logits(name, options, tmp_path):
    model, side = create(name, **options), side_of(name)
    onnx_files.write(tmp_path / "out", inference_of(model, side), scales=True)
    check_logits(model, tmp_path / "out", side, scales=True)


@pytest.mark.slow
def test_the_complete_xception_has_our_logits(tmp_path):
    """Channels first and scaled by the caller."""
    model = builders.create("xception", 1000, width=1.0, stem_stride=2)
    onnx_files.write(tmp_path / "out", inference_of(model, 96), scales=False)
    check_logits(model, tmp_path / "out", 96, scales=False)


@pytest.fixture(scope="module")
def model() -> nnx.Module:
    return create("xception")


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory) -> Path:
    """A converted file of a small model."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    built: dict[str, Any] = {**builders.SMALL, "middle_blocks": 2}
    seen = {"image_size": 33, "eval_preset": "area", "eval_crop": 1.0, "exif": True}
    about = converted.About("xception", built, 5, tuple(CLASSES), seen, {"format": "timm"})
    converted.write(path, about, builders.arrays(model))
    return path


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "out"
    flags = f"--input={weights}", f"--output={folder}", "--format=onnx", "--json"
    about = result(finish("export", *flags))
    assert about == json.loads((folder / "model.json").read_text())
    return folder


@pytest.mark.slow
def test_the_file_itself_says_what_it_needs(exported):
    import onnx

    assert {file.name for file in exported.iterdir()} == {
        "model.onnx", "model.json", "README.md", "classify.py",
    }  # fmt: skip
    model, about = onnx.load(exported / "model.onnx"), serving.described(exported)
    told = {one.key: json.loads(one.value) for one in model.metadata_props}
    assert told["classes"] == about["classes"] == list(CLASSES)
    assert told["resize"] == {"by": "caller", "preset": "area", "size": 33, "crop": 1.0}
    assert (told["activation"], told["preprocessing"]) == ("softmax", about["preprocessing"])
    assert [one.version for one in model.opset_import] == [about["opset"]]
    kinds = {node.op_type for node in model.graph.node}
    assert kinds == {"Transpose", "Cast", "Div", "Sub", "Conv", "Relu", "MaxPool", "Add",
                     "ReduceMean", "Gemm", "Softmax"}  # fmt: skip
    assert sum(node.op_type == "Transpose" for node in model.graph.node) == 1
    assert "onnxruntime" in (exported / "README.md").read_text()


@pytest.mark.slow
def test_it_is_checked_and_asked_like_any_export(exported, model, tmp_path):
    found = export.check(exported)
    assert (found.platform, found.pictures, found.sides) == ("ONNX Runtime", 2, (33, 33))
    assert found.files == ("model.json", "model.onnx", "README.md", "classify.py")
    pixels = pixels_of(1, 33)[0]
    expected = softmax(own(model, pixels[None]), 1)[0]
    for flip in (False, True):
        classifier = Classifier(exported, flip=flip)
        [prediction] = classifier.predict([pixels])
        both = (expected + softmax(own(model, pixels[None, :, ::-1]), 1)[0]) / 2
        np.testing.assert_allclose(prediction.probabilities, both if flip else expected, atol=1e-5)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    alone = [sys.executable, "-I", exported / "classify.py", tmp_path / "a.png"]
    process = subprocess.run(alone, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    path, name, share = process.stdout.split("  ")
    assert (path, name) == (str(tmp_path / "a.png"), CLASSES[expected.argmax()])
    assert float(share) == pytest.approx(expected.max(), abs=2e-6)


@pytest.mark.slow
def test_scaled_by_the_caller_and_sigmoid(weights, model, tmp_path):
    made = export.export_file(
        weights, tmp_path / "out", format="onnx", scale="outside", activation="sigmoid"
    )
    assert made.about["input"] == {
        "shape": ["batch", 3, 33, 33], "dtype": "float32", "channels": "RGB",
    }  # fmt: skip
    pixels = pixels_of(1, 33)[0]
    [prediction] = Classifier(made.folder).predict([pixels])
    np.testing.assert_allclose(
        prediction.probabilities, expit(own(model, pixels[None]))[0], atol=1e-5
    )
    assert export.check(made.folder).tolerance is None
    Image.fromarray(pixels).save(tmp_path / "a.png")
    alone = [sys.executable, "-I", made.folder / "classify.py", tmp_path / "a.png"]
    process = subprocess.run(alone, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(process.stdout.split("  ")[2]) == pytest.approx(
        prediction.probabilities.max(), abs=2e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("scales", [True, False])
def test_other_means_and_a_temperature(tmp_path, scales):
    """With `--scale=outside` the input is from -1 to 1, also for a model of another mean."""
    import onnxruntime

    network = create("xception")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network.mean, network.std = mean, std
    held = replace(inference_of(network, 33), mean=mean, std=std, temperature=1.7)
    onnx_files.write(tmp_path / "out", held, scales=scales)
    pixels = pixels_of(2, 33)
    expected = own(network, pixels)
    given = pixels if scales else (pixels / 127.5 - 1).astype(np.float32).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    logits, probabilities = session.run(["logits", "probabilities"], {"images": given})
    assert np.abs(logits - expected).max() < 1e-4 * expected.std()
    np.testing.assert_allclose(probabilities, softmax(expected / 1.7, 1), atol=1e-5)
    [prediction, _] = Classifier(tmp_path / "out").predict([*pixels])
    np.testing.assert_allclose(prediction.probabilities, probabilities[0], atol=1e-5)
    told = serving.described(tmp_path / "out")["preprocessing"]
    assert ("subtracts the mean [0.485, 0.456, 0.406]" in told) == scales


@pytest.mark.slow
def test_damage_is_one_line(exported, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(data)
    with pytest.raises(RunError, match=r"model\.onnx is damaged: it does not match its checksum"):
        export.check(copy)
    (copy / "model.onnx").unlink()
    process = finish("export", f"--check={copy}")
    assert process.returncode == 1
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_runtime_that_cannot_run_it_is_one_line(exported, tmp_path):
    """A newer opset stands for an older runtime; and metadata of somebody else."""
    import onnx

    for change, told in (
        (lambda model: setattr(model.opset_import[0], "version", 999), r"does not run in ONNX"),
        (
            lambda model: model.metadata_props.add(key="by", value="me"),
            r"does not match model\.onnx",
        ),
    ):
        model = onnx.load(exported / "model.onnx")
        change(model)
        folder = tmp_path / told[-5:]
        held = {name: value for name, value in serving.described(exported).items()
                if name not in ("program", "readme", "classify", "seal")}  # fmt: skip
        write_files(folder, "model.onnx", model.SerializeToString(), held)
        with pytest.raises(RunError, match=told) as caught:
            export.check(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_what_the_exporter_does_not_write_is_named(tmp_path):
    class Sorted(nnx.Module):
        def __init__(self, inner):
            self.inner, self.head = inner, inner.head

        def __call__(self, x):
            return jnp.sort(self.inner(x), axis=1)

        def normalize(self, x):
            return self.inner.normalize(x)

    graphdef, params, stats = nnx.split(Sorted(create("xception")), nnx.Param, nnx.BatchStat)
    held = {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(stats)}
    asked = Inference(graphdef, held, Images(33), "softmax", tuple(CLASSES), {})
    with pytest.raises(UsageError, match=r"cannot be written as ONNX: .*'sort'") as caught:
        onnx_files.write(tmp_path / "out", asked, scales=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@cache
def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def _second(x, rows):
    """The even columns, then the odd ones, of the first rows."""
    parts = [jax.lax.slice_in_dim(x, i, None, 2, axis=2) for i in (0, 1)]
    return jax.lax.slice_in_dim(jnp.concatenate(parts, 2), 0, rows, axis=1)


# Functions of [batch, 6, 5, 4], as models from outside of the package have them.
OUTSIDE = {
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "hard swish": jax.nn.hard_swish,
    "leaky": jax.nn.leaky_relu,
    "softplus": lambda x: jnp.log1p(jnp.exp(x)),
    "squeeze and excite": lambda x: (
        x * jax.nn.sigmoid(x.mean((1, 2)) @ _random(4, 4))[:, None, None]
    ),
    "layer norm": lambda x: (
        (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
    ),
    "pad, slice and concatenate": lambda x: jnp.concatenate(
        [
            jax.lax.slice_in_dim(jnp.pad(x, ((0, 0), (0, 0), (1, 2), (0, 0))), 3, 8, axis=2),
            _second(x, 6),
        ],
        -1,
    ),
    "average pool": lambda x: nnx.avg_pool(x, (2, 2), (2, 2)),
    "flatten": lambda x: x.reshape(x.shape[0], -1) @ _random(120, 3) + 1,
    "pointwise as a product": lambda x: (x @ _random(4, 7) - 2) / 3,
    "transposed": lambda x: x.transpose(0, 3, 1, 2) ** 3,
    "maximum": lambda x: jnp.minimum(x.max((1, 2)), -x.min((1, 2))),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OUTSIDE)
def test_operations_of_other_models(kind):
    """Behind a convolution and a pooling, so that the order of axes is not JAX'."""
    import onnxruntime
    from onnx import helper

    from xception_jax.serving import folding, onnx_graph

    numbers = ("NHWC", "HWIO", "NHWC")

    def function(x):
        y = jax.lax.conv_general_dilated(x, _random(3, 3, 3, 4), (1, 1), "SAME",
                                         dimension_numbers=numbers)  # fmt: skip
        return OUTSIDE[kind](nnx.max_pool(y, (2, 2), (2, 2)))

    sizes = jax.export.symbolic_shape("batch, 12, 10, 3")
    found = graph.trace(function, jax.ShapeDtypeStruct(sizes, jnp.float32))
    writer, folded = onnx_graph.Writer(), folding.fold(found)
    made = writer.graph(folded, onnx_graph.Tensor("x", (0, 1, 2, 3)))
    shape = [size if isinstance(size, int) else "batch" for size in folded.shape]
    model = helper.make_model_gen_version(
        helper.make_graph(
            writer.nodes, "g", [onnx_graph.value_info("x", np.float32, ["batch", 12, 10, 3])],
            [onnx_graph.value_info(made, np.float32, shape)], writer.weights,
        ),
        opset_imports=[helper.make_opsetid("", onnx_files.OPSET)],
    )  # fmt: skip
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for batch in BATCHES:
        x = _random(batch, 12, 10, 3)
        np.testing.assert_allclose(
            session.run(None, {"x": x})[0], function(x), rtol=1e-4, atol=1e-5
        )


def test_all_models_are_tested():
    assert {name for name, _ in OPTIONS} == set(models.names())
