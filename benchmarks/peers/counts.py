"""The minimum of bytes that a JAX program must read and write."""

from jax.extend.core import Jaxpr

from xception_jax.models.counts import products


def bytes_moved(jaxpr: Jaxpr) -> int:
    """Bytes of operands and results of a program's matrix products and convolutions.

    Assumes that all other operations overlap with these, and that no cache keeps data between two
    of them.
    """
    return sum(
        times * value.aval.size * value.aval.dtype.itemsize
        for equation, times in products(jaxpr)
        for value in (*equation.invars, *equation.outvars)
    )
