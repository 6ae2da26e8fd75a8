"""The graph of a model, and batch normalization folded into its convolutions."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.weights import builders
from xception_jax import models
from xception_jax.models.layers import BatchNorm, Layers
from xception_jax.serving import folding, graph, onnx_files
from xception_jax.training import state

# Options that change which operations a model has, and those that must not.
OPTIONS: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in models.names()),
    ("xception", {"segments": 3, "intermediate_activation": "elu", "order": "pointwise_first"}),
    ("xception", {"residual": False, "pool_padding": "symmetric", "pooling": "max"}),
    ("xception", {"fc_units": (16, 8), "dropout": 0.5, "freeze": "entry_flow", "remat": True}),
    ("xception41", {"scan_middle": True}),
    ("inception_v3", {"bn_scale": True, "count_padding": True}),
]
# Of these the default tests have enough.
QUICK = ("xception", {}), ("xception41p", {})
CASES = [
    pytest.param(name, options, id=" ".join([name, *map(str, options)]),
                 marks=[] if (name, options) in QUICK else pytest.mark.slow)
    for name, options in OPTIONS
]  # fmt: skip


def create(name: str, **options: object) -> nnx.Module:
    """A narrow model, a third of whose normalizations decrease."""
    few = {} if name == "inception_v3" else {"middle_blocks": 2}
    model = builders.create(name, 5, **few, **options)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm) and module.scale is not None:
            sign = jnp.where(jnp.arange(module.scale.shape[0]) % 3 == 1, -1, 1)
            module.scale[...] = module.scale[...] * sign
    return model


def side_of(name: str) -> int:
    return 79 if name == "inception_v3" else 33


def split(model: nnx.Module):
    graphdef, params, batch_stats = state.split(nnx.clone(model))
    return graphdef, {"params": params, "batch_stats": batch_stats}


def inference(model: nnx.Module):
    return onnx_files.inference_form(*split(model))


def logits_of(function, images) -> np.ndarray:
    quick = {"xla_backend_optimization_level": 0}
    return np.asarray(jax.jit(function, compiler_options=quick)(images))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_folded_model_has_the_same_logits(name, options):
    model = create(name, **options)
    images = jax.random.uniform(jax.random.key(0), (3, side_of(name), side_of(name), 3), minval=-1)
    found = graph.trace(inference(model), jax.ShapeDtypeStruct(images.shape, jnp.float32))
    folded = folding.fold(found)
    graphdef, weights = split(model)

    def own(x):  # merged inside, since remat and scan change their variables
        return nnx.merge(graphdef, weights["params"], weights["batch_stats"])(x)

    expected = logits_of(own, images)
    logits = logits_of(lambda x: graph.run(folded, x), images)
    assert np.abs(logits - expected).max() < 1e-5 * expected.std()
    assert len([*graph.nodes(folded)]) < len([*graph.nodes(found)])


@pytest.mark.parametrize("name", ["xception", "xception41p", "inception_v3"])
def test_what_follows_a_convolution_is_folded_and_what_does_not_stays(name):
    """With pre-activation, each block but the first begins with a normalization of a sum."""
    model = create(name)
    shape = jax.ShapeDtypeStruct((2, side_of(name), side_of(name), 3), jnp.float32)
    folded = folding.fold(graph.trace(inference(model), shape))
    kinds = Counter(node.operation for node in graph.nodes(folded))
    blocks = sum("." in block for block, _ in model.blocks())
    assert kinds["mul"] == (blocks - 1 if name.endswith("p") else 0)
    assert not kinds["div"] + kinds["sub"] + kinds["reduce_window_sum"] + kinds["reduce_sum"]
    assert kinds["average_pool"] == (9 if name == "inception_v3" else 0)


def test_the_folded_kernel_and_bias_by_hand():
    layers = Layers(nnx.Rngs(0), jnp.float32, 1e-3, 0.9, None)
    block = layers.conv_norm(3, 4, 3)
    rng = np.random.default_rng(0)
    scale, bias, mean = rng.normal(size=(3, 4)).astype(np.float32)
    var = rng.uniform(0.5, 2, 4).astype(np.float32)
    values = {"scale": scale, "bias": bias, "mean": mean, "var": var}
    for name, value in values.items():
        getattr(block.bn, name)[...] = jnp.asarray(value)
    shape = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    relu = folding.fold(graph.trace(block, shape))
    (conv, _), factor = relu.operands, scale / np.sqrt(var + 1e-3)
    _, kernel, shift = conv.operands
    assert (relu.operation, conv.operation) == ("max", "conv_general_dilated")
    np.testing.assert_allclose(kernel, block.conv.kernel[...] * factor, rtol=1e-6)
    np.testing.assert_allclose(shift, bias - mean * factor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("again", ["read twice", "pooled with a negative factor", "not by channel"])
def test_what_cannot_be_folded_is_not(again):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
    factor = np.array([1, 2, -1, 3], np.float32)
    by_row = np.arange(6, dtype=np.float32)[:, None, None]

    def function(x):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID",
                                         dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip
        if again == "read twice":
            return y * factor + y
        if again == "not by channel":
            return y * by_row
        return nnx.max_pool(y, (2, 2), (2, 2)) * factor

    images = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    folded = folding.fold(graph.trace(function, jax.ShapeDtypeStruct(images.shape, images.dtype)))
    assert "mul" in [node.operation for node in graph.nodes(folded)]
    np.testing.assert_allclose(graph.run(folded, images), function(images), rtol=1e-5, atol=1e-5)


def test_a_model_of_bfloat16_is_float32_in_its_inference_form():
    model = create("xception")
    images = jax.random.uniform(jax.random.key(0), (2, 33, 33, 3), minval=-1)
    expected = logits_of(model, images)
    for _, module in nnx.iter_modules(model):
        if getattr(module, "dtype", None) is not None:
            module.dtype = jnp.bfloat16
    np.testing.assert_allclose(logits_of(inference(model), images), expected, atol=1e-5)
