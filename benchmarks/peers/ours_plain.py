"""The plain Flax form of our model, through `nnx.jit` and `nnx.Optimizer`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
import plain_flax
from flax import nnx
from worker import Work


@nnx.jit
def _forward(model: plain_flax.Xception, images: jax.Array) -> jax.Array:
    return model(images)


@nnx.jit
def _train(
    model: plain_flax.Xception, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array
) -> jax.Array:
    def loss_of(model: plain_flax.Xception) -> jax.Array:
        logits = model(images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def build(work: Work) -> Callable[[int], None]:
    """See `worker`."""
    model = plain_flax.Xception(
        1000, rngs=nnx.Rngs(0), dtype=jnp.dtype(work.dtype), **work.overrides
    )
    optimizer = nnx.Optimizer(model, optax.sgd(1e-3, momentum=0.9), wrt=nnx.Param)
    key = jax.random.key(0)
    shape = (work.batch, work.side, work.side, 3)
    images = jax.random.uniform(key, shape, minval=-1, maxval=1)
    labels = jax.random.randint(key, (work.batch,), 0, 1000)

    def run_forward(steps: int) -> None:
        for _ in range(steps):
            logits = _forward(model, images)
        jax.block_until_ready(logits)

    def run_training(steps: int) -> None:
        for _ in range(steps):
            _train(model, optimizer, images, labels)
        jax.block_until_ready(nnx.state((model, optimizer)))

    return run_training if work.kind == "training" else run_forward
