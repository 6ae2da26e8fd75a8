"""Writes a graph of operations (`serving.graph`) as ONNX.

ONNX has the channels of an image first, and the graph usually last. So each tensor is stored with
its own order of axes, and is only transposed where an operation needs another one: between
convolutions never.

An operation is one entry of a table or one function. Others are refused by name.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import helper, numpy_helper

from xception_jax.errors import UsageError
from xception_jax.serving.graph import Node, compact, nodes, symbolic

# Operations of one element each that ONNX has too.
_ELEMENTWISE = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max",
    "min": "Min", "pow": "Pow", "neg": "Neg", "abs": "Abs", "sign": "Sign", "floor": "Floor",
    "ceil": "Ceil", "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid",
    "sqrt": "Sqrt", "erf": "Erf", "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less",
    "le": "LessOrEqual", "eq": "Equal", "and": "And", "or": "Or", "not": "Not",
}  # fmt: skip
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin",
               "mean": "ReduceMean"}  # fmt: skip


class Tensor(NamedTuple):
    """A tensor of ONNX; its axis `i` is axis `order[i]` of JAX' array."""

    name: str
    order: tuple[int, ...]


class Writer:
    """The ONNX nodes and weights so far, and the tensor of each node of the graph."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.tensors: dict[Node, Tensor] = {}

    def emit(self, kind: str, *names: str, **attributes: Any) -> str:
        """Adds an ONNX node with one result, and returns its name."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [name], name, **attributes))
        return name

    def constant(self, array: Any) -> str:
        """Adds a weight, and returns its name."""
        name = f"weight_{len(self.weights)}"
        held = np.array(array, order="C")
        self.weights.append(numpy_helper.from_array(held, name))
        return name

    def graph(self, result: Node, given: Tensor) -> str:
        """Writes a graph; returns the name of its result, in JAX' order of axes."""
        for node in nodes(result):
            if node.operation == "input":
                self.tensors[node] = given
            else:
                self.tensors[node] = self._written(node)
        return self.ordered(result, range(len(result.shape)))

    def rename(self, name: str, wanted: str) -> None:
        """Gives the result of the last ONNX node another name; it has no reader yet."""
        last = self.nodes[-1]
        assert last.output[0] == name
        last.output[0] = last.name = wanted

    def ordered(self, node: Any, order: Sequence[int]) -> str:
        """The name of a node's tensor with its axes in this order, transposed if needed."""
        _is_node(node)
        name, stored = self.tensors[node]
        if stored == tuple(order):
            return name
        return self.emit("Transpose", name, perm=[stored.index(axis) for axis in order])

    def plain(self, node: Any) -> str:
        """The name of a node's tensor in JAX' order of axes."""
        _is_node(node)
        return self.ordered(node, range(len(node.shape)))

    def _written(self, node: Node) -> Tensor:
        if node.operation in _ELEMENTWISE or node.operation in _COMPOSED:
            return _elementwise(self, node)
        if node.operation in _REDUCTIONS:
            return _reduction(self, node)
        if node.operation not in _OTHERS:
            raise UsageError(
                f"the model cannot be written as ONNX: it has JAX' operation {node.operation!r}, "
                f"which is not among those that are; export it as StableHLO"
            )
        return _OTHERS[node.operation](self, node)


def _is_node(node: Any) -> None:
    if not isinstance(node, Node):
        raise UsageError(
            "the model cannot be written as ONNX: one of its constants has a size that depends on "
            "the batch"
        )


def _refuse(node: Node, what: str) -> UsageError:
    return UsageError(f"the model cannot be written as ONNX: its {node.operation} {what}")


# Operations of single elements ----------------------------------------------------------------


def _elementwise(writer: Writer, node: Node) -> Tensor:
    """One of `_ELEMENTWISE` or `_COMPOSED`, in the order of axes that its operands have."""
    orders = [writer.tensors[one].order for one in node.operands if isinstance(one, Node)]
    plain = tuple(range(len(node.shape)))
    order = next((one for one in orders if one != plain), plain)
    if node.operation == "max" and (relu := _relu_of(node)):
        return Tensor(writer.emit("Relu", writer.ordered(relu, order)), order)
    names = []
    for one in node.operands:
        if isinstance(one, Node):
            names.append(writer.ordered(one, order))
        else:
            constant = compact(np.asarray(one))
            if constant.ndim:
                constant = constant.transpose(order)
            while constant.ndim and constant.shape[0] == 1:
                constant = constant[0]
            names.append(writer.constant(constant))
    if node.operation in _COMPOSED:
        return Tensor(_COMPOSED[node.operation](writer, node, names), order)
    return Tensor(writer.emit(_ELEMENTWISE[node.operation], *names), order)


def _relu_of(node: Node) -> Node | None:
    """`x` of `max(x, 0)`."""
    held = [one for one in node.operands if isinstance(one, Node)]
    constants = [one for one in node.operands if not isinstance(one, Node)]
    return held[0] if constants and not np.any(constants[0]) else None


def _cast(writer: Writer, node: Node, names: list[str]) -> str:
    return writer.emit("Cast", *names, to=helper.np_dtype_to_tensor_dtype(node.dtype))


def _where(writer: Writer, node: Node, names: list[str]) -> str:
    if len(names) != 3:
        raise _refuse(node, "has more than two cases")
    condition, if_false, if_true = names
    return writer.emit("Where", condition, if_true, if_false)


def _expm1(writer: Writer, node: Node, names: list[str]) -> str:
    return writer.emit("Sub", writer.emit("Exp", *names), writer.constant(np.float32(1)))


def _power(writer: Writer, node: Node, names: list[str]) -> str:
    exponent = node.params["y"] if node.operation == "integer_pow" else 2
    return writer.emit("Pow", *names, writer.constant(np.float32(exponent)))


_COMPOSED: dict[str, Callable[[Writer, Node, list[str]], str]] = {
    "convert_element_type": _cast,
    "select_n": _where,
    "expm1": _expm1,
    "log1p": lambda writer, node, names: writer.emit(
        "Log", writer.emit("Add", *names, writer.constant(np.float32(1)))
    ),
    "integer_pow": _power,
    "square": _power,
    "rsqrt": lambda writer, node, names: writer.emit("Reciprocal", writer.emit("Sqrt", *names)),
    "clamp": lambda writer, node, names: writer.emit(
        "Min", writer.emit("Max", names[1], names[0]), names[2]
    ),
}


# Reductions and windows -----------------------------------------------------------------------


def _reduction(writer: Writer, node: Node) -> Tensor:
    name, order = writer.tensors[node.operands[0]]  # type: ignore[index]
    axes = node.params["axes"]
    places = writer.constant(np.array([order.index(axis) for axis in axes], np.int64))
    kept = [axis for axis in order if axis not in axes]
    left = tuple(sorted(kept).index(axis) for axis in kept)
    return Tensor(writer.emit(_REDUCTIONS[node.operation], name, places, keepdims=0), left)


def _pool(writer: Writer, node: Node) -> Tensor:
    """Max or average pooling; axes without a window come first."""
    params = node.params
    window, strides = params["window_dimensions"], params["window_strides"]
    outside = [i for i, size in enumerate(window) if size == 1 and strides[i] == 1]
    given = node.operands[0]
    _is_node(given)
    order = writer.tensors[given].order  # type: ignore[index]
    if {*order[:2]} != {*outside[-2:]} or len(outside) != 2:
        if len(outside) != 2 or len(window) < 3:
            raise _refuse(node, f"has a window of {window}")
        order = (*outside, *(i for i in range(len(window)) if i not in outside))
    dilations = params["base_dilation"], params["window_dilation"]
    if any(size != 1 for sizes in dilations for size in sizes):
        raise _refuse(node, "is dilated")
    inside = order[2:]
    pads = [params["padding"][axis] for axis in inside]
    how = {
        "kernel_shape": [window[axis] for axis in inside],
        "strides": [strides[axis] for axis in inside],
        "pads": [before for before, _ in pads] + [after for _, after in pads],
    }
    name = writer.ordered(given, order)
    if node.operation == "reduce_window_max":
        return Tensor(writer.emit("MaxPool", name, **how), order)
    counts = int(params.get("count_padding", True))
    pooled = writer.emit("AveragePool", name, count_include_pad=counts, **how)
    if node.operation == "reduce_window_sum":
        terms = writer.constant(np.asarray(np.prod(window), node.dtype))
        pooled = writer.emit("Mul", pooled, terms)
    return Tensor(pooled, order)


# Convolutions and products --------------------------------------------------------------------


def _conv(writer: Writer, node: Node) -> Tensor:
    params, (given, kernel, *bias) = node.params, node.operands
    numbers = params["dimension_numbers"]
    if isinstance(kernel, Node) or params["batch_group_count"] != 1:
        raise _refuse(node, "has no constant kernel, or groups of the batch")
    if any(size != 1 for size in params["lhs_dilation"]):
        raise _refuse(node, "is transposed")
    names = [writer.ordered(given, numbers.lhs_spec)]
    names.append(writer.constant(kernel.transpose(numbers.rhs_spec)))
    names += [writer.constant(np.asarray(one)) for one in bias]
    pads = params["padding"]
    spatial = [kernel.shape[axis] for axis in numbers.rhs_spec[2:]]
    convolved = writer.emit(
        "Conv", *names,
        kernel_shape=spatial,
        strides=[*params["window_strides"]],
        dilations=[*params["rhs_dilation"]],
        pads=[before for before, _ in pads] + [after for _, after in pads],
        group=params["feature_group_count"],
    )  # fmt: skip
    return Tensor(convolved, tuple(numbers.out_spec))


def _product(writer: Writer, node: Node) -> Tensor:
    """A product with a matrix of weights."""
    given, kernel, *bias = node.operands
    (of_given, of_kernel), (batched, _) = node.params["dimension_numbers"]
    if isinstance(kernel, Node) or kernel.ndim != 2 or len(of_kernel) != 1 or batched:
        raise _refuse(node, "is no product with one matrix of weights")
    _is_node(given)
    rank = len(given.shape)
    rest = [axis for axis in range(rank) if axis != of_given[0]]
    name = writer.ordered(given, [*rest, of_given[0]])
    matrix = writer.constant(kernel if of_kernel[0] == 0 else kernel.T)
    shift = [writer.constant(np.asarray(one)) for one in bias]
    plain = tuple(range(rank))
    if rank == 2:
        return Tensor(writer.emit("Gemm", name, matrix, *shift), plain)
    product = writer.emit("MatMul", name, matrix)
    return Tensor(writer.emit("Add", product, *shift) if shift else product, plain)


# Shapes ---------------------------------------------------------------------------------------


def _reshape(writer: Writer, node: Node) -> Tensor:
    """Also adds and removes axes; the size that depends on the batch follows from the others."""
    shape = [-1 if symbolic(size) else size for size in node.shape]
    if shape.count(-1) > 1:
        raise _refuse(node, "has two sizes that depend on the batch")
    name = writer.plain(node.operands[0])
    sizes = writer.constant(np.array(shape, np.int64))
    return Tensor(writer.emit("Reshape", name, sizes), tuple(range(len(shape))))


def _broadcast(writer: Writer, node: Node) -> Tensor:
    given, places = node.operands[0], node.params["broadcast_dimensions"]
    name = writer.plain(given)
    shape = [1] * len(node.shape)
    for axis, size in zip(places, given.shape, strict=True):
        shape[axis] = -1 if symbolic(size) else size
    name = writer.emit("Reshape", name, writer.constant(np.array(shape, np.int64)))
    wide = [1 if symbolic(size) else size for size in node.shape]
    if wide != [1 if size == -1 else size for size in shape]:
        name = writer.emit("Expand", name, writer.constant(np.array(wide, np.int64)))
    return Tensor(name, tuple(range(len(shape))))


def _transpose(writer: Writer, node: Node) -> Tensor:
    """Only another order of the same stored axes."""
    given, permutation = node.operands[0], node.params["permutation"]
    _is_node(given)
    name, order = writer.tensors[given]  # type: ignore[index]
    return Tensor(name, tuple(permutation.index(axis) for axis in order))


def _concatenate(writer: Writer, node: Node) -> Tensor:
    for one in node.operands:
        _is_node(one)
    order = writer.tensors[node.operands[0]].order  # type: ignore[index]
    names = [writer.ordered(one, order) for one in node.operands]
    axis = order.index(node.params["dimension"])
    return Tensor(writer.emit("Concat", *names, axis=axis), order)


def _slice(writer: Writer, node: Node) -> Tensor:
    params, given = node.params, node.operands[0]
    strides = params["strides"] or [1] * len(node.shape)
    parts = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return _part(writer, given, [*parts])


def _split(writer: Writer, node: Node) -> Tensor:
    params, given = node.params, node.operands[0]
    _is_node(given)
    parts: list[tuple[Any, Any, int]] = [(0, size, 1) for size in given.shape]
    start = sum(params["sizes"][: params["result"]])
    parts[params["axis"]] = start, start + params["sizes"][params["result"]], 1
    return _part(writer, given, parts)


def _part(writer: Writer, given: Any, parts: Sequence[tuple[Any, Any, int]]) -> Tensor:
    """The elements from a start to an end with a step, for each axis; all of a symbolic one."""
    _is_node(given)
    name, order = writer.tensors[given]
    cut = [
        axis
        for axis, size in enumerate(given.shape)
        if not (symbolic(size) or parts[axis] == (0, size, 1))
    ]
    if not cut:  # OpenVINO does not read a slice along no axis
        return Tensor(name, order)
    columns = [[parts[axis][i] for axis in cut] for i in range(3)]
    starts, ends, steps = (writer.constant(np.array(one, np.int64)) for one in columns)
    axes = writer.constant(np.array([order.index(axis) for axis in cut], np.int64))
    return Tensor(writer.emit("Slice", name, starts, ends, axes, steps), order)


def _pad(writer: Writer, node: Node) -> Tensor:
    given, fill = node.operands
    padding = node.params["padding_config"]
    if isinstance(fill, Node) or any(min(one) < 0 or one[2] for one in padding):
        raise _refuse(node, "does not only add a border of one value")
    _is_node(given)
    name, order = writer.tensors[given]  # type: ignore[index]
    pads = [padding[axis][end] for end in (0, 1) for axis in order]
    amounts = writer.constant(np.array(pads, np.int64))
    return Tensor(writer.emit("Pad", name, amounts, writer.constant(np.asarray(fill))), order)


_OTHERS: dict[str, Callable[[Writer, Node], Tensor]] = {
    "conv_general_dilated": _conv,
    "dot_general": _product,
    "reduce_window_max": _pool,
    "reduce_window_sum": _pool,
    "average_pool": _pool,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
}


def value_info(name: str, dtype: Any, shape: Sequence[str | int]) -> Any:
    """The declaration of an input or output; a name is a dynamic size."""
    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
    )
