"""What a JAX program has to do at least: multiply-adds, and bytes read and written."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn


def multiply_adds(jaxpr: Jaxpr) -> int:
    """Multiply-adds of a program's products of matrices and convolutions."""
    return sum(times * _multiply_adds(equation) for equation, times in _heavy(jaxpr))


def bytes_moved(jaxpr: Jaxpr) -> int:
    """Bytes of operands and results of a program's products of matrices and convolutions.

    As if all else were done while these read and write, and as if no cache held anything between
    two of them.
    """
    return sum(
        times * value.aval.size * value.aval.dtype.itemsize
        for equation, times in _heavy(jaxpr)
        for value in (*equation.invars, *equation.outvars)
    )


def _multiply_adds(equation: JaxprEqn) -> int:
    output = equation.outvars[0].aval
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return output.size * math.prod(left[axis] for axis in contracted)
    kernel = equation.invars[1].aval
    out_axis = equation.params["dimension_numbers"].rhs_spec[0]
    return output.size * kernel.size // kernel.shape[out_axis]


def _heavy(jaxpr: Jaxpr) -> Iterator[tuple[JaxprEqn, int]]:
    """Products and convolutions, and how often each is done.

    Where an operation has a form for each platform the default counts, which is the last.
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation, 1
        inner = list(_inner(equation.params))
        rounds = equation.params["length"] if equation.primitive.name == "scan" else 1
        for part in inner[-1:] if equation.primitive.name == "cond" else inner:
            yield from ((held, times * rounds) for held, times in _heavy(part))


def _inner(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs among an operation's parameters."""
    for value in parameters.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            program = getattr(part, "jaxpr", part)
            if isinstance(program, Jaxpr):
                yield program
