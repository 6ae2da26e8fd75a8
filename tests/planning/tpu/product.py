"""A program for tests of the compiler, in a process of its own: see `planning.program`."""

import json
import sys

import jax
import jax.numpy as jnp

from xception_jax.planning import program
from xception_jax.training import sharding


def main(request):
    """Compiles a large product of matrices, or something donated that takes `gib` of a device."""
    mesh = program.mesh_of(request["topology"], request["options"])
    cut, whole = sharding.by_example(mesh), sharding.replicated(mesh)

    def array(rows, columns, where):
        return jax.ShapeDtypeStruct((rows, columns), jnp.bfloat16, sharding=where)

    if request.get("gib"):
        rows = round(request["gib"] * 2**30 / 2 / 1024) * mesh.size
        lowered = jax.jit(jnp.tanh, donate_argnums=0).lower(array(rows, 1024, cut))
    else:
        a, b = array(8192 * mesh.size, 4096, cut), array(4096, 8192, whole)
        lowered = jax.jit(jnp.matmul).lower(a, b)
    program.answer(lowered, request)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
