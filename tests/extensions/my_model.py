"""A model: convolutions of one width, and the head of the others."""

import jax.numpy as jnp
from flax import nnx

from xception_jax import models
from xception_jax.config import Field
from xception_jax.models.layers import Layers
from xception_jax.models.network import Head, Network


@models.register("plain", options={"depth": Field(None, "convolutions; None: 2", int, low=1)})
class Plain(Network):
    min_image_size = 1

    def __init__(
        self, num_classes, *, rngs, dtype=None, depth=2, dropout=0.0, freeze=None, remat=False
    ):
        super().__init__(dtype or jnp.float32, freeze=freeze, remat=remat)
        layers = Layers(rngs, self.dtype, bn_epsilon=1e-3, bn_momentum=0.99, bn_virtual_batch=None)
        widths = [3] + [16] * depth
        self.convs = nnx.List(layers.conv_norm(widths[i], 16, 3) for i in range(depth))
        head = {"fc_units": (), "dropout": dropout, "layers": layers}
        self.head = Head(16, num_classes, **head) if num_classes else None

    def blocks(self):
        yield from ((f"conv{i}", conv) for i, conv in enumerate(self.convs))
