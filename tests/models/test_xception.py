"""Xception against the paper's figures (arXiv:1610.02357v3, figure 5 and table 3) and Keras'."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xception_jax import config as config_lib
from xception_jax import models
from xception_jax.errors import UsageError
from xception_jax.models.layers import BatchNorm
from xception_jax.training import state, step

SMALL = {"width": 0.02, "middle_blocks": 1, "stem_stride": 1}


def shapes_of(**kwargs) -> nnx.Module:
    return nnx.eval_shape(lambda: models.create("xception", rngs=nnx.Rngs(0), **kwargs))


def count(model, kind) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, kind)))


@pytest.mark.parametrize(
    ("num_classes", "overrides", "trainable"),
    [
        (1000, {}, 22_855_952),  # paper, table 3
        (None, {}, 20_861_480 - 54_528),  # Keras without the top, less the statistics
        (1000, {"fc_units": (4096, 4096)}, 22_855_952 - 2049 * 1000 + 2049 * 4096 + 4097 * 5096),
    ],
)
def test_parameter_count(num_classes, overrides, trainable):
    model = shapes_of(num_classes=num_classes, **overrides)
    assert count(model, nnx.Param) == trainable
    assert count(model, nnx.BatchStat) == 54_528


def test_output_shape_of_every_module_at_299():
    side_and_channels = {
        "block1": (147, 64),
        "block2": (74, 128),
        "block3": (37, 256),
        "block4": (19, 728),
        **{f"block{i}": (19, 728) for i in range(5, 13)},
        "block13": (10, 1024),
        "block14": (10, 2048),
    }
    model = shapes_of(num_classes=1000)
    x = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
    found = {}
    for name, block in model.blocks():
        x = nnx.eval_shape(lambda block, x: block(x), block, x)
        found[name] = (x.shape[1], x.shape[3])
        assert x.shape[1] == x.shape[2]
    assert found == side_and_channels
    images = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
    logits = nnx.eval_shape(lambda model, x: model(x), model, images)
    assert (logits.shape, logits.dtype) == ((2, 1000), jnp.float32)


def test_thirty_six_convolutions_each_followed_by_batch_norm():
    model = shapes_of(num_classes=1000)
    kinds = [type(module).__name__ for _, module in nnx.iter_modules(model)]
    skips = kinds.count("ConvNorm")
    # The paper counts 36: 2 plain and 34 separable ones; the 4 projections come on top.
    assert kinds.count("Conv") + kinds.count("SeparableConv") == 36
    assert skips == 4
    assert kinds.count("BatchNorm") == 36 + skips


def small(**overrides) -> tuple:
    """A small model's structure and weights, and the images it is tried on."""
    config = config_lib.default()
    config.model.width, config.model.middle_blocks, config.model.stem_stride = 0.02, 1, 1
    config.model.update(overrides)
    make = state.model_maker(config, num_classes=5)
    weights = state.initialize(partial(state.create_weights, make), 0, None)
    images = np.random.default_rng(0).standard_normal((4, 16, 16, 3), np.float32)
    return state.graphdef_of(make, 16), weights, images


run = jax.jit(
    step.apply, static_argnums=0, static_argnames="train",
    compiler_options={"xla_backend_optimization_level": 0},
)  # fmt: skip


def test_overrides_reach_the_network():
    model = shapes_of(num_classes=5, bn_epsilon=0.5, bn_momentum=0.7, bn_virtual_batch=2, **SMALL)
    norms = [module for _, module in nnx.iter_modules(model) if type(module) is BatchNorm]
    assert {(m.epsilon, m.momentum, m.virtual_batch) for m in norms} == {(0.5, 0.7, 2)}
    assert len(model.middle_flow) == 1
    assert max(leaf.shape[-1] for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == 40
    shape = nnx.eval_shape(lambda m: m.features(jnp.zeros((1, 40, 40, 3))), model).shape
    assert shape == (1, 3, 3, 40)


def test_bfloat16_computes_with_float32_parameters_and_logits():
    graphdef, weights, images = small(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype("float32")}
    logits, batch_stats = run(graphdef, weights, images)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(batch_stats)} == {jnp.dtype("float32")}
    exact, _ = run(small()[0], weights, images)
    assert 0 < np.abs(logits - exact).max() < 0.05


def test_dropout_only_in_training_and_from_its_own_stream():
    graphdef, weights, images = small(dropout=0.5)
    first, second = (
        run(graphdef, weights, images, train=True, key=jax.random.key(seed))[0] for seed in (1, 2)
    )
    assert not np.allclose(first, second)


def test_batch_statistics_move_only_in_training():
    graphdef, weights, images = small()
    kept = run(graphdef, weights, images)[1]
    jax.tree.map(np.testing.assert_array_equal, kept, weights["batch_stats"])
    moved = run(graphdef, weights, images, train=True, key=jax.random.key(0))[1]
    for old, new in zip(jax.tree.leaves(kept), jax.tree.leaves(moved), strict=True):
        assert not np.array_equal(old, new)


def test_images_too_small_are_refused():
    model = shapes_of(num_classes=5)
    assert model.min_image_size == 7
    with pytest.raises(UsageError, match="6x6 pixels are too small"):
        nnx.eval_shape(lambda m: m(jnp.zeros((1, 6, 6, 3))), model)
    assert nnx.eval_shape(lambda m: m(jnp.zeros((1, 7, 7, 3))), model).shape == (1, 5)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'xception'"):
        models.create("xceptoin", num_classes=5, rngs=nnx.Rngs(0))
    with pytest.raises(UsageError, match="did you mean 'middle_blocks'"):
        models.create("xception", num_classes=5, rngs=nnx.Rngs(0), middle_block=3)
    with pytest.raises(UsageError, match="did you mean 'xception41p'"):
        models.overrides("xception41_p")


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"remat": True}, marks=pytest.mark.long),
        pytest.param({"scan_middle": True}, marks=pytest.mark.long),
        {"remat": True, "scan_middle": True},
    ],
    ids=str,
)
@pytest.mark.slow
def test_remat_and_scan_change_the_program_not_the_function(fields):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)

    def gradients(**fields):
        small = {**SMALL, "middle_blocks": 4, "dropout": 0.0, **fields}

        def make(rngs):
            return models.create("xception", num_classes=4, rngs=rngs, **small)

        graphdef = state.graphdef_of(make, 16)
        weights = state.create_weights(make, jax.random.key(0))

        def loss(params):
            logits, batch_stats = step.apply(
                graphdef, {**weights, "params": params}, pixels, train=True
            )
            return jnp.square(logits).mean(), batch_stats

        traced = jax.jit(jax.grad(loss, has_aux=True)).trace(weights["params"])
        quick = {"xla_backend_optimization_level": 0}
        return str(traced.jaxpr), traced.lower().compile(quick)(weights["params"])

    plain_program, expected = gradients()
    program, found = gradients(**fields)
    assert ("prevent_cse" in program, "length=4" in program) == (
        "remat" in fields,
        "scan_middle" in fields,
    )
    assert "prevent_cse" not in plain_program
    assert "length=4" not in plain_program
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )
