"""A learning-rate schedule: a power of the steps that are left, with a field of its own."""

import optax

from xception_jax.config import Field
from xception_jax.training import optimizer

POWER = Field(1.0, "of polynomial; 1: a straight line", float, low=0.1, high=10.0)


@optimizer.register_schedule("polynomial", options={"decay_power": POWER}, until_end=True)
def polynomial(fields):
    return optax.polynomial_schedule(fields.learning_rate, 0.0, fields.decay_power, fields.steps)
