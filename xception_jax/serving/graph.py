"""A function as a graph of operations, for those who change it or write it in another format.

`trace` reads JAX's own trace of the function (its jaxpr). It inlines calls, takes the default form
of an operation with a form for each platform, and computes what does not depend on the input.
Gradients and dropout are not in a trace of inference.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from jax import export as jax_export
from jax.extend import core

Operand: TypeAlias = "Node | np.ndarray"

# Operations that contain a function, which is inlined, and where it is in their parameters.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "custom_jvp_call",
          "custom_vjp_call", "custom_vjp_call_jaxpr"}  # fmt: skip
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_COPIES = {"copy", "copy_p", "optimization_barrier"}


@dataclass(frozen=True, eq=False)
class Node:
    """The result of an operation, or the input.

    Attributes:
      operation: the name of JAX's primitive (`jax.lax`); `input` for the input.
      operands: results of other operations, and constants. `compact` finds the axes over which a
        constant is broadcast. A convolution or product may have a third one: a bias `[channels]`.
      params: of the primitive.
      shape: of the result; a symbolic size is not an `int`.
      dtype: of the result.
      compute: the operation as a function of arrays.
    """

    operation: str
    operands: tuple[Operand, ...]
    params: dict[str, Any]
    shape: tuple[Any, ...]
    dtype: np.dtype[Any]
    compute: Callable[..., jax.Array] | None = None


def trace(function: Callable[[Any], Any], given: jax.ShapeDtypeStruct) -> Node:
    """The graph of a function of one array with one result.

    Args:
      function: its weights are constants of the graph.
      given: the shape and dtype of its argument; sizes can be symbolic (`jax.export`).
    """
    closed = jax.make_jaxpr(function)(given)
    start = Node("input", (), {}, tuple(given.shape), np.dtype(given.dtype))
    (result,) = _results(closed.jaxpr, closed.consts, [start])
    if isinstance(result, np.ndarray):
        raise ValueError("the function does not depend on its argument")
    return result


def nodes(result: Node) -> Iterator[Node]:
    """All nodes on which a result depends, and the result; each after its operands."""
    done: set[Node] = set()
    waiting = [result]
    while waiting:
        node = waiting[-1]
        before = [
            one for one in node.operands if isinstance(one, Node) and one not in done
        ]  # fmt: skip
        if before:
            waiting += before
            continue
        waiting.pop()
        if node not in done:
            done.add(node)
            yield node


def run(result: Node, given: Any) -> Any:
    """Computes a graph, as a function of JAX; `given` has the shape that was traced."""
    found: dict[Node, Any] = {}
    for node in nodes(result):
        operands = (found[one] if isinstance(one, Node) else one for one in node.operands)
        found[node] = node.compute(*operands) if node.compute else given
    return found[result]


def compact(constant: np.ndarray) -> np.ndarray:
    """A constant with length 1 along the axes over which it is broadcast."""
    return constant[tuple(slice(0, 1) if step == 0 else slice(None) for step in constant.strides)]


def _results(jaxpr: Any, consts: Sequence[Any], operands: Sequence[Operand]) -> list[Operand]:
    """The results of a jaxpr for some operands."""
    env: dict[Any, Operand] = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    env.update(zip(jaxpr.invars, operands, strict=True))

    def read(atom: Any) -> Operand:
        return np.asarray(atom.val) if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _applied(eqn, [*map(read, eqn.invars)]), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _applied(eqn: Any, operands: list[Operand]) -> Sequence[Operand]:
    """The results of an equation: of the function that it calls, constants, or nodes."""
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        inner = next(params[key] for key in _INNER if key in params)
        return _results(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), operands)
    if name == "platform_index":  # the form for all other platforms, else the one for CPU
        names = params["platforms"]
        default = [i for i, platforms in enumerate(names) if platforms is None]
        cpu = [i for i, platforms in enumerate(names) if "cpu" in (platforms or ())]
        return [np.asarray((default + cpu)[0])]
    if name == "cond" and isinstance(operands[0], np.ndarray):
        branch = params["branches"][int(operands[0])]
        return _results(branch.jaxpr, branch.consts, operands[1:])
    if name in _COPIES:
        return operands
    static = all(isinstance(size, int) for out in eqn.outvars for size in out.aval.shape)
    known = [one for one in operands if isinstance(one, np.ndarray)]
    if len(known) == len(operands) and (static or name == "broadcast_in_dim"):
        if name == "broadcast_in_dim":
            return [_broadcast(known[0], params)]
        found = eqn.primitive.bind(*known, **params)
        return [*map(np.asarray, found if eqn.primitive.multiple_results else [found])]
    return [_node(eqn, operands, i) for i in range(len(eqn.outvars))]


def _node(eqn: Any, operands: list[Operand], index: int) -> Node:
    """The node of one of an equation's results."""
    aval = eqn.outvars[index].aval
    several = eqn.primitive.multiple_results
    params = eqn.params | ({"result": index} if several else {})

    def compute(*arrays: Any) -> Any:
        found = eqn.primitive.bind(*map(jax.numpy.asarray, arrays), **eqn.params)
        return found[index] if several else found

    return Node(eqn.primitive.name, tuple(operands), params, tuple(aval.shape), aval.dtype, compute)


def _broadcast(constant: np.ndarray, params: dict[str, Any]) -> np.ndarray:
    """The constant as a view, in which a symbolic size is 1."""
    sizes = [size if isinstance(size, int) else 1 for size in params["shape"]]
    shape = [1] * len(sizes)
    for axis, size in zip(params["broadcast_dimensions"], np.shape(constant), strict=True):
        shape[axis] = size
    return np.broadcast_to(np.reshape(constant, shape), sizes)


def symbolic(size: Any) -> bool:
    """Whether a size of a shape is a name instead of a number."""
    return bool(jax_export.is_symbolic_dim(size))
