"""The bytes that a JAX program has to read and write at least."""

from jax.extend.core import Jaxpr

from xception_jax.models.counts import products


def bytes_moved(jaxpr: Jaxpr) -> int:
    """Bytes of operands and results of a program's products of matrices and convolutions.

    As if all else were done while these read and write, and as if no cache held anything between
    two of them.
    """
    return sum(
        times * value.aval.size * value.aval.dtype.itemsize
        for equation, times in products(jaxpr)
        for value in (*equation.invars, *equation.outvars)
    )
