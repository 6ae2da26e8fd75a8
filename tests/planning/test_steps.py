"""The programs that are planned are those that a run jits."""

from xception_jax import train
from xception_jax.planning import data as data_lib
from xception_jax.planning import steps
from xception_jax.training import sharding


def test_the_steps_are_those_of_a_run(small_config):
    small_config.mesh.data = 8
    run = train.build_run(small_config)
    data = data_lib.find_spec(small_config)
    state = sharding.place(run.shapes, run.layout.state)

    batch = steps.batch_of(small_config.data.batch_size, small_config, run.layout.mesh, data)
    real = next(run.batches(0))
    assert {k: (v.shape, v.dtype, v.sharding) for k, v in real.items()} == {
        k: (v.shape, v.dtype, v.sharding) for k, v in batch.items()
    }
    planned = steps.lower("train", small_config, run.layout.mesh, data)
    assert planned.as_text() == run.train_step.lower(state, batch).as_text()

    batch = steps.batch_of(run.evaluate.own.batch_size, small_config, run.layout.mesh, data)
    planned = steps.lower("evaluate", small_config, run.layout.mesh, data)
    expected = run.evaluate_batch.lower(
        sharding.place(run.shapes.weights(), run.layout.weights), batch
    )
    assert planned.as_text() == expected.as_text()
