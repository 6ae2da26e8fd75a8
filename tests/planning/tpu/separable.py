"""A separable convolution and its gradients for tests of the compiler: see `planning.program`."""

import json
import sys

import jax
import jax.numpy as jnp
from flax import nnx

from xception_jax.models.layers import SeparableConv
from xception_jax.planning import program
from xception_jax.training import sharding


def main(request):
    """Compiles it in the request's `dtype` and `precision`, as JAX names them."""
    mesh = program.mesh_of(request["topology"], request["options"])
    dtype = jnp.dtype(request["dtype"])
    channels = 256
    layer = nnx.eval_shape(lambda: SeparableConv(channels, channels, rngs=nnx.Rngs(0), dtype=dtype))
    graphdef, weights = nnx.split(layer)

    def loss(weights, x):
        return jnp.sum(jnp.square(nnx.merge(graphdef, weights)(x).astype(jnp.float32)))

    cut, whole = sharding.by_example(mesh), sharding.replicated(mesh)
    weights = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), weights
    )
    x = jax.ShapeDtypeStruct((16 * mesh.size, 19, 19, channels), dtype, sharding=cut)
    with jax.default_matmul_precision(request["precision"]):
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(weights, x)
    program.answer(lowered, request)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
