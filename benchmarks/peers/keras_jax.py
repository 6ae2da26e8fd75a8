"""Keras' Xception on JAX; the environment sets `KERAS_BACKEND=jax`.

The step is the stateless one of Keras' guide to writing a training loop in JAX, with donated state.
`train_on_batch` does the same, but also copies the state from and to the variables.
"""

from collections.abc import Callable

import jax
import keras
import numpy as np
from worker import Work


def build(work: Work) -> Callable[[int], None]:
    """See `worker`."""
    if work.dtype == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = keras.applications.Xception(
        weights=None, input_shape=(work.side, work.side, 3), classifier_activation=None
    )
    rng = np.random.default_rng(0)
    shape = (work.batch, work.side, work.side, 3)
    images = jax.device_put(rng.uniform(-1, 1, shape).astype(np.float32))
    labels = jax.device_put(rng.integers(0, 1000, work.batch))
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    optimizer.build(model.trainable_variables)

    def forward(trainable, rest, images):
        return model.stateless_call(trainable, rest, images, training=False)[0]

    def loss_and_rest(trainable, rest, images, labels):
        logits, rest = model.stateless_call(trainable, rest, images, training=True)
        return loss_of(labels, logits), rest

    def train(state, images, labels):
        trainable, rest, moments = state
        gradient_of = jax.value_and_grad(loss_and_rest, has_aux=True)
        (loss, rest), gradients = gradient_of(trainable, rest, images, labels)
        trainable, moments = optimizer.stateless_apply(moments, gradients, trainable)
        return (trainable, rest, moments), loss

    trainable, rest, moments = (
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
    )
    forward, train = jax.jit(forward), jax.jit(train, donate_argnums=0)

    def run_forward(steps: int) -> None:
        for _ in range(steps):
            logits = forward(trainable, rest, images)
        jax.block_until_ready(logits)

    state = trainable, rest, moments

    def run_training(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, _ = train(state, images, labels)
        jax.block_until_ready(state)

    return run_training if work.kind == "training" else run_forward
