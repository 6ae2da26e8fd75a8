"""An optimizer: Lion (arXiv:2302.06675), with a field of its own."""

import optax

from xception_jax.config import Field
from xception_jax.training import optimizer

FASTER = Field(0.99, "of lion: decay of the momentum", float, low=0.0, high=1.0)


@optimizer.register("lion", options={"lion_beta": FASTER})
def lion(fields, schedule):
    return optax.scale_by_lion(fields.beta1, fields.lion_beta)
