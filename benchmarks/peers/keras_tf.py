"""Keras' Xception on TensorFlow; the environment sets `KERAS_BACKEND=tensorflow`.

Variants: `graph` (a `tf.function`) and `xla` (one with `jit_compile`).
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from worker import Work


def build(work: Work) -> Callable[[int], None]:
    """See `worker`."""
    if work.cores:
        tf.config.threading.set_intra_op_parallelism_threads(len(work.cores))
        tf.config.threading.set_inter_op_parallelism_threads(1)
    if work.dtype == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = keras.applications.Xception(
        weights=None, input_shape=(work.side, work.side, 3), classifier_activation=None
    )
    rng = np.random.default_rng(0)
    shape = (work.batch, work.side, work.side, 3)
    images = tf.constant(rng.uniform(-1, 1, shape).astype(np.float32))
    labels = tf.constant(rng.integers(0, 1000, work.batch))
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    optimizer.build(model.trainable_variables)

    def forward() -> tf.Tensor:
        return model(images, training=False)

    def train() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    kind = train if work.kind == "training" else forward
    step = tf.function(kind, jit_compile=work.variant == "xla")

    def run(steps: int) -> None:
        for _ in range(steps):
            last = step()
        last.numpy()  # waits

    return run
