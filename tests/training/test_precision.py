"""`model.matmul_precision` reaches every product of a program for TPU, forward and backward."""

import collections
import re

import jax
import pytest

from xception_jax import config as config_lib
from xception_jax import serving, train
from xception_jax.data.render.decode import Images
from xception_jax.planning import data as data_lib
from xception_jax.planning import steps
from xception_jax.training import sharding, state

# As StableHLO calls what JAX calls so.
NAMES = {"default": "DEFAULT", "tensorfloat32": "HIGH", "float32": "HIGHEST"}


def precisions(program: str) -> set[str]:
    """Of the products and convolutions of float32 numbers in a StableHLO program."""
    found = collections.Counter()
    for line in program.splitlines():
        if re.search(r"stablehlo\.(convolution|dot_general)", line) and "xf32>) ->" in line:
            asked = re.search(r"precision(?:_config)? = \[(?:#\S+ )?(\w+)", line)
            found[asked[1].strip(">") if asked else "DEFAULT"] += 1
    assert sum(found.values()) > 5
    return set(found)


@pytest.fixture
def asked(small_config, request):
    small_config.model.middle_blocks = 1
    small_config.model.matmul_precision = request.param
    small_config.optimizer.microbatch = 32  # a scan over the parts
    return small_config


@pytest.mark.parametrize("asked", ["auto", "default", "tensorfloat32"], indirect=True)
def test_training_and_evaluation_multiply_as_asked(asked):
    config = config_lib.resolve(asked)
    run = train.build_run(config)
    data = data_lib.find_spec(config)
    state_shapes = sharding.place(run.shapes, run.layout.state)
    batch = steps.batch_of(64, config, run.layout.mesh, data)
    traced = run.train_step.trace(state_shapes, batch)
    expected = {NAMES[config.model.matmul_precision]}
    assert expected == {"HIGHEST"} or asked.model.matmul_precision != "auto"
    assert precisions(traced.lower(lowering_platforms=("tpu",)).as_text()) == expected
    weights = sharding.place(run.shapes.weights(), run.layout.weights)
    batch = steps.batch_of(run.evaluate.own.batch_size, config, run.layout.mesh, data)
    traced = run.evaluate_batch.trace(weights, batch)
    assert precisions(traced.lower(lowering_platforms=("tpu",)).as_text()) == expected


@pytest.mark.parametrize("asked", ["tensorfloat32"], indirect=True)
def test_an_exported_program_multiplies_as_its_run(asked):
    make_model = state.model_maker(asked, 10)
    graphdef = state.graphdef_of(make_model, 8)
    weights = state.create_weights(make_model, jax.random.key(0))
    images = Images(8, eval_preset="inception")
    exported = serving.export(graphdef, weights, images, resizes=False, platforms=("tpu",))
    assert precisions(exported.mlir_module()) == {"HIGH"}


def test_a_run_from_before_the_field_goes_on_as_it_began(small_config):
    flat = config_lib.flatten(small_config)
    del flat["model.matmul_precision"]
    begun = config_lib.from_flat(flat)
    assert begun.model.matmul_precision == "default"
    assert config_lib.resolve(small_config, begun).model.matmul_precision == "default"
    assert config_lib.resolve(small_config).model.matmul_precision == "float32"
