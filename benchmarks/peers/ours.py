"""The package's own model and training step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from counts import bytes_moved
from flax import nnx
from worker import Work

from xception_jax import models
from xception_jax.models.counts import multiply_adds
from xception_jax.training import optimizer as optimizer_lib
from xception_jax.training import sharding, step
from xception_jax.training import state as state_lib


def _make(work: Work, rngs: nnx.Rngs) -> nnx.Module:
    dtype = jnp.dtype(work.dtype)
    return models.create(work.model, num_classes=1000, rngs=rngs, dtype=dtype, **work.overrides)


def build(work: Work) -> Callable[[int], None]:
    """See `worker`."""
    make = partial(_make, work)
    graphdef = state_lib.graphdef_of(make, work.side)
    schedule = optimizer_lib.make_schedule("constant", learning_rate=1e-3, total_steps=1)
    optimizer = optimizer_lib.make_optimizer("sgd", schedule, momentum=0.9)
    mesh = sharding.make_mesh(1)
    init = partial(state_lib.create, make, optimizer, False)
    state = state_lib.initialize(init, 0, sharding.replicated(mesh))
    key = jax.random.key(0)
    shape = (work.batch, work.side, work.side, 3)

    if work.kind == "forward":
        images = jax.random.uniform(key, shape, minval=-1, maxval=1)
        weights = state.weights()

        @jax.jit
        def forward(weights: Any, images: jax.Array) -> jax.Array:
            model: Any = nnx.merge(graphdef, weights["params"], weights["batch_stats"], copy=True)
            logits: jax.Array = model(images)
            return logits

        def run_forward(steps: int) -> None:
            for _ in range(steps):
                logits = forward(weights, images)
            jax.block_until_ready(logits)

        return run_forward

    layout = sharding.Layout.replicated(mesh)
    config = step.StepConfig(graphdef, optimizer, schedule, frozen=(), matmul_precision=None)
    train = step.jit_train_step(config, layout)
    batch = {
        "image": jax.random.randint(key, shape, 0, 256).astype(jnp.uint8),
        "label": jax.random.randint(key, (work.batch,), 0, 1000),
        "mask": jnp.ones(work.batch),
    }
    batch = jax.device_put(batch, sharding.by_example(mesh))

    def run_training(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = train(state, batch)
        jax.block_until_ready(state)

    return run_training


def facts(work: Work) -> dict[str, object]:
    """The device's name, and the minimum of `flops` and `bytes` an image, see `counts`.

    A training step counts as three times the forward pass.
    """
    graphdef = state_lib.graphdef_of(partial(_make, work), work.side)
    weights = jax.eval_shape(
        partial(state_lib.create_weights, partial(_make, work)), jax.random.key(0)
    )
    images = jax.ShapeDtypeStruct((work.batch, work.side, work.side, 3), jnp.float32)
    program = jax.make_jaxpr(partial(step.apply, graphdef))(weights, images).jaxpr
    passes = (3 if work.kind == "training" else 1) / work.batch
    return {
        "device": jax.devices()[0].device_kind,
        "flops_per_image": 2 * multiply_adds(program) * passes,
        "bytes_per_image": bytes_moved(program) * passes,
    }
