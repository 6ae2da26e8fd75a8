"""Counts a model's parameters and a program's multiply-adds."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Jaxpr, JaxprEqn


def parameters(model: nnx.Module) -> int:
    """The number of parameters that training changes, without running statistics."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def forward_program(model: nnx.Module, image_size: int) -> Jaxpr:
    """The program from one image of a size to its logits; it is traced, not run."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    graphdef, weights = nnx.split(model)
    program = jax.make_jaxpr(lambda weights, x: nnx.merge(graphdef, weights)(x))
    traced: Jaxpr = program(weights, images).jaxpr
    return traced


def multiply_adds(program: Jaxpr) -> int:
    """The multiply-adds of a program's matrix products and convolutions."""
    return sum(times * _multiply_adds(equation) for equation, times in products(program))


def products(program: Jaxpr) -> Iterator[tuple[JaxprEqn, int]]:
    """A program's matrix products and convolutions, and how often each is run.

    If an operation has several forms for platforms, the default is counted, which is the last.
    """
    for equation in program.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation, 1
        inner = list(_inner(equation.params))
        rounds = equation.params["length"] if equation.primitive.name == "scan" else 1
        for part in inner[-1:] if equation.primitive.name == "cond" else inner:
            yield from ((held, times * rounds) for held, times in products(part))


def _multiply_adds(equation: JaxprEqn) -> int:
    output: Any = equation.outvars[0].aval
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left: Any = equation.invars[0].aval
        return int(output.size * math.prod(left.shape[axis] for axis in contracted))
    kernel: Any = equation.invars[1].aval
    out_axis = equation.params["dimension_numbers"].rhs_spec[0]
    return int(output.size * kernel.size // kernel.shape[out_axis])


def _inner(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs in an operation's parameters."""
    for value in parameters.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            program = getattr(part, "jaxpr", part)
            if isinstance(program, Jaxpr):
                yield program
