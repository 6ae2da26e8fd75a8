"""Every model by name: its size as its source counts it, its shapes, its step, its table."""

import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.processes import finish, result
from xception_jax import models, recipes, train
from xception_jax.config import SCHEMA, overrides
from xception_jax.config.declared import declarations
from xception_jax.config.registry import Registry, where_is
from xception_jax.errors import UsageError
from xception_jax.models import counts, options, published, registry
from xception_jax.models.layers import BatchNorm
from xception_jax.training import optimizer, preflight, state, step

# Trainable parameters and batch statistics at 1000 classes, as Keras 3.15 and timm 1.0.31 count
# them (Keras for inception_v3 and xception), and billions of multiply-adds at 299, as timm's
# results/benchmark-infer-amp-nhwc-pt210-cu121-rtx3090.csv has them.
SIZES = {
    "inception_v3": (23_817_352, 34_432, 5.73),
    "xception": (22_855_952, 54_528, 8.4),
    "legacy_xception": (22_855_952, 54_528, 8.4),
    "xception41": (26_969_560, 115_312, 9.28),
    "xception65": (39_916_312, 185_200, 13.96),
    "xception71": (42_338_736, 198_976, 18.09),
    "xception41p": (26_907_752, 53_504, 9.25),
    "xception65p": (39_819_560, 88_448, 13.91),
}
SMALL = {"width": 0.05, "stem_stride": 1, "bn_virtual_batch": 2}


@cache
def shapes_of(name: str, **overrides) -> nnx.Module:
    return nnx.eval_shape(
        lambda: models.create(name, num_classes=1000, rngs=nnx.Rngs(0), **overrides)
    )


def outputs(method, model, side: int) -> tuple[int, ...]:
    return nnx.eval_shape(method, model, jnp.zeros((2, side, side, 3))).shape


def test_the_names_are_all_here_and_have_published_results():
    assert set(models.names()) == set(SIZES)
    assert all(models.published_results(name) for name in SIZES)


def test_what_is_read_of_the_decorators_is_what_they_register():
    for name in SIZES:
        models.overrides(name)  # imports its module
        card = registry.MODELS.find(name)
        assert card.target is not None
        assert (card.where, card.size) == (where_is(card.target), models.size(name))
    read = Registry[registry.Card]("model")
    registry.add_own(read)
    assert read.names() == models.names()
    for name in SIZES:
        assert read.find(name) == replace(registry.MODELS.find(name), target=None)


def test_fields_of_models_are_declared_with_the_models():
    """Each by the models that take it, or once for several."""
    declared = {one.name: set(one.value("options", {})) for one in declarations("models")}
    taken = {name: set(models.overrides(name)) for name in SIZES}
    of_all = {"name", "dtype", "matmul_precision"}
    fields = {key.removeprefix("model.") for key in SCHEMA if key.startswith("model.")} - of_all
    for name in SIZES:
        assert taken[name] & fields == declared[name] | (set(options.FIELDS) & taken[name])
    assert fields == set(options.FIELDS).union(*declared.values())
    for key in options.FIELDS:
        assert sum(key in overrides for overrides in taken.values()) > 2, key
    assert set(options.FIELDS) >= options.OF_TRAINING
    assert "segments" not in taken["inception_v3"]


@pytest.mark.parametrize("recipe", recipes.names())
def test_a_recipe_trains_every_model_or_says_which_fields_are_not_its_own(recipe):
    for name in SIZES:
        config = recipes.load(recipe)
        config.model.name = name
        try:
            preflight._check_model(config)
        except UsageError as error:
            told = re.fullmatch(f"{name} does not take (.*); add (.*)", str(error))
            _, changes = overrides.take(told[2].split())
            assert [f"config.{field}" for field in changes] == told[1].split(", ")
            overrides.apply(config, changes)
            preflight._check_model(config)


@pytest.mark.parametrize("name", SIZES)
def test_parameters(name):
    parameters, statistics, _ = SIZES[name]
    model = shapes_of(name)
    assert counts.parameters(model) == models.size(name).parameters == parameters
    assert model.min_image_size == models.size(name).min_image_size
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))) == statistics


@pytest.mark.parametrize(
    "name",
    [
        "inception_v3",
        "xception41",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("xception65", "xception71", "xception41p", "xception65p")
        ),
    ],
)
def test_multiply_adds(name):
    found = counts.multiply_adds(counts.forward_program(shapes_of(name), published.IMAGE_SIZE))
    assert found == models.size(name).multiply_adds
    assert found == pytest.approx(SIZES[name][2] * 1e9, rel=0.01)


def test_inception_v3_with_scales_is_timms():
    assert counts.parameters(shapes_of("inception_v3", bn_scale=True)) == 23_834_568


def test_multiply_adds_of_the_papers_network():
    found = counts.multiply_adds(counts.forward_program(shapes_of("xception"), 299))
    assert found == pytest.approx(8.357e9, rel=1e-3)
    assert found == models.size("xception").multiply_adds
    assert found == models.size("legacy_xception").multiply_adds, "the same except for padding"
    assert found == pytest.approx(SIZES["xception"][2] * 1e9, rel=0.01)


@pytest.mark.parametrize(("name", "side"), [("inception_v3", 8), ("xception41", 10)])
def test_features_at_299_and_the_least_image(name, side):
    model = shapes_of(name)
    assert outputs(lambda m, x: m.features(x), model, 299) == (2, side, side, 2048)
    least = model.min_image_size
    assert outputs(lambda m, x: m.features(x), model, least) == (2, 1, 1, 2048)
    with pytest.raises(UsageError, match="the smallest side is"):
        outputs(lambda m, x: m(x), model, least - 1)


def test_output_of_every_block_of_inception_v3():
    """The sides and channels that keras/src/applications/inception_v3.py notes."""
    x, found = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32), []
    for _, block in shapes_of("inception_v3").blocks():
        x = nnx.eval_shape(lambda block, x: block(x), block, x)
        found.append((x.shape[1], x.shape[3]))
    wide = [(17, 768)] * 5
    assert found == [(35, 192), (35, 256), (35, 288), (35, 288), *wide, (8, 1280), *[(8, 2048)] * 2]


def test_members_have_their_own_defaults_and_take_overrides():
    assert models.overrides("xception65p")["middle_blocks"] == 16
    assert models.overrides("xception41p")["bn_epsilon"] == 1e-5
    model = shapes_of("xception41p", middle_blocks=1, bn_momentum=0.5)
    norms = [module for _, module in nnx.iter_modules(model) if isinstance(module, BatchNorm)]
    assert {(norm.epsilon, norm.momentum) for norm in norms} == {(1e-5, 0.5)}
    assert len(model.middle_flow) == 1


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("inception_v3", {}), ("xception41p", {}), ("xception", {"segments": 3, "middle_blocks": 0})],
)
def test_weight_decay_acts_on_every_kernel_and_on_nothing_else(name, overrides):
    params = nnx.to_pure_dict(nnx.state(shapes_of(name, **overrides), nnx.Param))
    for leaf, decays in zip(
        *map(jax.tree.leaves, (params, optimizer.decayed(params))), strict=True
    ):
        assert decays == (len(leaf.shape) > 1)


def training_step(name: str, side: int, **overrides):
    """The jaxpr of a training step's gradient, and a function that runs it."""
    make = partial(models.create, name, num_classes=5, dropout=0.2, **SMALL, **overrides)
    graphdef = state.graphdef_of(lambda rngs: make(rngs=rngs), side)
    sgd = optax.sgd(0.1)
    step_config = step.StepConfig(
        graphdef, sgd, optax.constant_schedule(0.1), virtual_batch=2,
        frozen=(), matmul_precision=None,
    )  # fmt: skip
    init = partial(state.create, lambda rngs: make(rngs=rngs), sgd, False)
    batch = {
        "image": jnp.zeros((4, side, side, 3), jnp.uint8),
        "label": jnp.arange(4),
        "mask": jnp.ones(4),
    }
    return partial(step.train_step, step_config), init, batch


@pytest.mark.parametrize(
    ("name", "side", "overrides"),
    [
        ("xception41p", 16, {"middle_blocks": 2, "scan_middle": True, "remat": True}),
        ("xception", 16, {"middle_blocks": 0, "segments": 3, "intermediate_activation": "elu"}),
    ],
)
def test_the_training_step_takes_every_kind(name, side, overrides):
    train_step, init, batch = training_step(name, side, **overrides)
    before = jax.eval_shape(init, jax.random.key(0))
    after, metrics = jax.eval_shape(train_step, before, batch)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert metrics["loss"].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "overrides"),
    [
        ("inception_v3", 39, {}),
        ("legacy_xception", 16, {"middle_blocks": 1}),
        ("xception41", 16, {"middle_blocks": 1}),
        ("xception71", 16, {"middle_blocks": 1}),
        ("xception65p", 16, {"middle_blocks": 1}),
        ("xception", 16, {"middle_blocks": 1, "segments": 3, "order": "pointwise_first"}),
        ("xception", 16, {"middle_blocks": 1, "intermediate_activation": "relu"}),
        ("xception", 16, {"middle_blocks": 1, "residual": False}),
    ],
)
def test_a_run_of_two_steps_of_every_kind(name, side, overrides, small_config, tmp_path):
    small_config.model.name = name
    small_config.model.width = 0.05
    small_config.model.middle_blocks = None
    small_config.model.update(overrides)
    small_config.data.image_size = side
    small_config.duration = "2 steps"
    done = train.train(small_config, tmp_path / "run")
    assert done.step == 2
    assert np.isfinite(done.metrics["loss"])


def test_the_table_of_one_model():
    [facts] = result(finish("models", "--model=xception41", "--json"))["models"]
    assert facts["parameters"] == SIZES["xception41"][0]
    assert facts["published"] == [
        {"top1": 78.55, "top5": 94.282, "source": "timm xception41.tf_in1k", "weights": True,
         "download": "hf:timm/xception41.tf_in1k"}
    ]  # fmt: skip


def test_the_table_of_no_model():
    process = finish("models", "--model=xception42")
    assert process.returncode == 2
    assert "did you mean 'xception41'?" in process.stderr
