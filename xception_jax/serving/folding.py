"""Batch normalization folded into the convolutions before it.

A convolution with kernel `w`, followed by `x * factor + offset` per channel, is a convolution with
kernel `w * factor` and bias `offset`. The results are equal except for rounding.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xception_jax.serving.graph import Node, Operand, compact, nodes, run, trace

_SUMS = {"reduce_sum": "mean", "reduce_window_sum": "average_pool"}


def fold(result: Node) -> Node:
    """The same function with fewer operations.

    - A product, sum, difference or quotient with one constant per channel goes into the dense,
      grouped or depthwise convolution or the matrix product before it, if nothing else reads that.
      Max pooling between them is no hindrance if the factors are at least 0.
    - A sum divided by the number of its terms is a `mean`, or an `average_pool`, whose parameter
      `count_padding` says whether it counts padding.

    Normalization that does not follow a convolution stays as it is, as in front of a block with
    pre-activation.
    """
    order = [*nodes(result)]
    readers = Counter(one for node in order for one in node.operands if isinstance(one, Node))
    readers[result] += 1
    made: dict[Node, Node] = {}
    for node in order:
        operands = tuple(made[one] if isinstance(one, Node) else one for one in node.operands)
        # What is only read here can be replaced.
        alone = all(readers[one] == 1 for one in _chain(node))
        new = replace(node, operands=operands)
        made[node] = (_folded(new) if alone else None) or new
    return made[result]


def _chain(node: Node) -> list[Node]:
    """The operand that a node may be folded into, and the one before it for max pooling."""
    found: list[Node] = []
    while (held := [one for one in node.operands if isinstance(one, Node)]) and len(held) == 1:
        found.append(held[0])
        node = held[0]
        if node.operation != "reduce_window_max":
            break
    return found


def _folded(node: Node) -> Node | None:
    """A node that replaces this one and the one before it, or None."""
    held = [one for one in node.operands if isinstance(one, Node)]
    if len(node.operands) != 2 or len(held) != 1:
        return None
    (before,) = held
    first = node.operands[0] is before
    constant = compact(np.asarray(node.operands[1 if first else 0]))
    if node.operation == "div" and first and before.operation in _SUMS:
        return _averaged(node, before, constant)
    if node.operation == "mul":
        return _absorbed(before, constant, np.float32(0), node)
    if node.operation == "div" and first:
        return _absorbed(before, 1 / constant, np.float32(0), node)
    if node.operation in ("add", "add_any"):
        return _absorbed(before, np.float32(1), constant, node)
    if node.operation == "sub":
        sign = np.float32(1 if first else -1)
        return _absorbed(before, sign, -sign * constant, node)
    return None


def _absorbed(x: Node, factor: Any, offset: Any, node: Node) -> Node | None:
    """`x * factor + offset`, which is `node`, as a convolution or product; None if it is none."""
    if x.operation == "reduce_window_max" and (factor >= 0).all():
        (before,) = x.operands
        assert isinstance(before, Node)
        inside = _absorbed(before, factor, offset, before)
        return replace(x, operands=(inside,)) if inside else None
    axes = _channel_axes(x)
    if axes is None or x.dtype != node.dtype or x.shape != node.shape:
        return None
    of_kernel, of_result = axes
    channels = x.shape[of_result]
    of_channel = [_per_channel(np.asarray(one), of_result, channels) for one in (factor, offset)]
    if of_channel[0] is None or of_channel[1] is None:
        return None
    scale, shift = of_channel
    given, kernel, *bias = x.operands
    assert isinstance(kernel, np.ndarray)
    shape = [1] * kernel.ndim
    shape[of_kernel] = channels
    plain = replace(x, operands=(given, (kernel * scale.reshape(shape)).astype(kernel.dtype)))
    moved = (np.asarray(bias[0]) * scale if bias else 0) + shift
    return _with_bias(plain, moved.astype(kernel.dtype), of_result, had=bool(bias))


def _channel_axes(x: Node) -> tuple[int, int] | None:
    """The axis of the output channels in the kernel and in the result; None: no such operation."""
    if len(x.operands) < 2 or not isinstance(x.operands[1], np.ndarray):
        return None
    if x.operation == "conv_general_dilated":
        numbers = x.params["dimension_numbers"]
        return numbers.rhs_spec[0], numbers.out_spec[1]
    if x.operation == "dot_general":
        (_, contracted), (batched, _) = x.params["dimension_numbers"]
        if x.operands[1].ndim == 2 and len(contracted) == 1 and not batched:
            return 1 - contracted[0], len(x.shape) - 1
    return None


def _per_channel(constant: np.ndarray, axis: int, channels: int) -> Any:
    """`[channels]` of a constant that varies along this axis alone; None for others."""
    if constant.size not in (1, constant.shape[axis] if constant.ndim else 1):
        return None
    return np.broadcast_to(constant.reshape(-1), channels)


def _with_bias(x: Node, bias: np.ndarray, axis: int, *, had: bool) -> Node:
    """A convolution or product plus a bias per channel; nothing is added if it is 0."""
    operands: tuple[Operand, ...] = x.operands[:2]
    if not bias.any() and not had:
        return replace(x, operands=operands)
    plain = x.compute
    assert plain is not None
    if had:
        return replace(x, operands=(*operands, bias))
    shape = [1] * len(x.shape)
    shape[axis] = -1

    def compute(given: Any, kernel: Any, bias: Any) -> jax.Array:
        return jnp.add(plain(given, kernel), bias.reshape(shape))

    return replace(x, operands=(*operands, bias), compute=compute)


def _averaged(node: Node, sums: Node, counts: np.ndarray) -> Node | None:
    """A sum divided by the number of its terms."""
    (given,) = sums.operands
    assert isinstance(given, Node)
    assert sums.compute is not None
    params = dict(sums.params)
    if sums.operation == "reduce_sum":
        sizes = [given.shape[axis] for axis in params["axes"]]
        if not all(isinstance(size, int) for size in sizes) or (counts != np.prod(sizes)).any():
            return None
    elif (counts == np.prod(params["window_dimensions"])).all():
        params["count_padding"] = True
    elif any(map(any, params["padding"])):
        one = trace(sums.compute, jax.ShapeDtypeStruct((1, *given.shape[1:]), given.dtype))
        seen = np.asarray(run(one, np.ones((1, *given.shape[1:]), given.dtype)))
        if (seen != np.broadcast_to(counts, seen.shape)).any():
            return None
        params["count_padding"] = False
    else:
        return None
    plain = sums.compute

    def compute(x: Any) -> jax.Array:
        return jnp.divide(plain(x), counts)

    return replace(node, operation=_SUMS[sums.operation], operands=(given,), params=params,
                   compute=compute)  # fmt: skip
