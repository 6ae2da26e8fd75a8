"""Multiply-adds of a JAX program."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import Jaxpr


def multiply_adds(jaxpr: Jaxpr) -> int:
    """Multiply-adds of a program's products of matrices and convolutions.

    Where an operation has a form for each platform the default counts, which is the last.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, parameters, output = (
            equation.primitive.name,
            equation.params,
            equation.outvars[0].aval,
        )
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += output.size * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            out_axis = parameters["dimension_numbers"].rhs_spec[0]
            total += output.size * kernel.size // kernel.shape[out_axis]
        inner = [multiply_adds(part) for part in _inner(parameters)]
        combined = inner[-1] if name == "cond" else sum(inner)
        total += combined * (parameters["length"] if name == "scan" else 1)
    return total


def _inner(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs among an operation's parameters."""
    for value in parameters.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            program = getattr(part, "jaxpr", part)
            if isinstance(program, Jaxpr):
                yield program
