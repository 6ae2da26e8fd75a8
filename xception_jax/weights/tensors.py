"""A model's tensors by name, and what a map to another library's names is made of."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from flax import nnx

from xception_jax import models
from xception_jax.errors import UsageError
from xception_jax.models.layers import BatchNorm, Conv, Depthwise, Pointwise, SeparableConv
from xception_jax.models.published import NameLayers

# Tensors by name, or what has their shapes and becomes them with `np.asarray`.
Tensors = Mapping[str, Any]

# The types that weights are read from; all become float32.
TYPES = ("bfloat16", "float16", "float32", "float64")

CLASSIFIER = "params.head.classifier."


@dataclass(frozen=True)
class AxisOrder:
    """How the axes of a tensor of ours lie in theirs; the two undo each other."""

    to_theirs: Callable[[np.ndarray], np.ndarray]
    to_ours: Callable[[np.ndarray], np.ndarray]


SAME = AxisOrder(lambda x: x, lambda x: x)


@dataclass(frozen=True)
class Tensor:
    """One tensor of ours, and what it is elsewhere.

    Attributes:
      ours: its name, `params.stem.conv1.kernel`.
      theirs: its name there.
      shape: ours.
      axes: between the two.
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]
    axes: AxisOrder = SAME

    @property
    def their_shape(self) -> tuple[int, ...]:
        return self.axes.to_theirs(np.broadcast_to(np.float32(0), self.shape)).shape


def abstract(name: str, num_classes: int | None, overrides: Mapping[str, Any]) -> Any:
    """A model of shapes alone."""
    return nnx.eval_shape(
        lambda: models.create(name, num_classes=num_classes, rngs=nnx.Rngs(0), **overrides)
    )


def variables(model: nnx.Module) -> dict[str, nnx.Variable[Any]]:
    """A model's parameters and batch statistics, `{"params.stem.conv1.kernel": variable}`."""
    kinds = {nnx.Param: "params", nnx.BatchStat: "batch_stats"}
    found: dict[str, nnx.Variable[Any]] = {}
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Param | nnx.BatchStat):
            found[".".join(map(str, (kinds[type(variable)], *path)))] = variable
    return found


def flatten(tree: Any) -> dict[str, Any]:
    """`{"params", "batch_stats"}` as `{"params.stem.conv1.kernel": leaf}`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@dataclass
class Names:
    """Builds a map's `Tensor`s from the layers of a model.

    Args:
      model: ours, of arrays or of shapes.
    """

    model: Any
    _names: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        self._names = {id(variable): name for name, variable in variables(self.model).items()}

    def tensor(self, variable: Any, theirs: str, axes: AxisOrder = SAME) -> Tensor:
        return Tensor(self._names[id(variable)], theirs, tuple(variable.shape), axes)

    def check_complete(self, tensors: list[Tensor], library: str) -> None:
        """Raises `UsageError` where the model holds what the other library's has no place for."""
        left = sorted(set(self._names.values()) - {tensor.ours for tensor in tensors})
        if left:
            raise UsageError(f"{library} has no place for {listed(left)}")


def parts(layer: nnx.Module) -> Iterator[tuple[str, Any]]:
    """`(kind, variable)` of a layer, in the order in which Keras has its tensors.

    Kinds: `depthwise`, `pointwise`, `conv`, `linear`, and of vectors `scale`, `bias`, `mean`,
    `var`.
    """
    if isinstance(layer, BatchNorm):
        if layer.scale is not None:
            yield "scale", layer.scale
        yield from (("bias", layer.bias), ("mean", layer.mean), ("var", layer.var))
    elif isinstance(layer, SeparableConv) and isinstance(layer.depthwise, Depthwise):
        yield from (("depthwise", layer.depthwise.kernel), ("pointwise", layer.pointwise.kernel))
    elif isinstance(layer, Depthwise):
        yield "depthwise", layer.kernel
    elif isinstance(layer, Pointwise):
        yield "pointwise", layer.kernel
    elif isinstance(layer, Conv):
        yield "conv", layer.kernel
    elif isinstance(layer, nnx.Linear):
        yield from (("linear", layer.kernel), ("bias", layer.bias))
    else:
        raise UsageError("a separable convolution over segments of several channels has no "
                         "counterpart in Keras or timm")  # fmt: skip


def name_of(model: Any) -> str:
    """The name of a model that `models.create` has made; `UsageError` for another one."""
    name = getattr(model, "model_name", None)
    if name is None:
        raise UsageError(f"a {type(model).__name__} that models.create has not made has no name")
    return str(name)


def layers_of(
    library: str, model: Any, known: Mapping[type, NameLayers]
) -> Iterable[tuple[Any, str | None]]:
    """The layers of a model that have weights, each with its name in another library.

    Args:
      library: `keras` or `timm`.
      model: from `models.create`.
      known: how the layers of the models of this package, and of classes derived from them, are
        named; a model may have declared its own, see `models.Foreign`.

    Raises:
      UsageError: the library has no such model, or nothing names its layers.
    """
    name = name_of(model)
    theirs = models.elsewhere(library)
    if name not in theirs:
        raise UsageError(f"{library} has no {name}; it has: {', '.join(theirs)}")
    own = theirs[name].layers
    if own is not None:
        return own(model)
    for kind, rule in known.items():
        if isinstance(model, kind):
            return rule(model)
    raise UsageError(
        f"nothing names the layers of a {type(model).__name__} in {library}; its "
        f"Foreign({theirs[name].name!r}) needs layers="
    )


def to_ours(expected: list[Tensor], found: Tensors, source: str) -> dict[str, np.ndarray]:
    """Tensors of ours from theirs; every one of both sides is accounted for.

    Args:
      expected: the map.
      found: theirs.
      source: what the error speaks of, as `FILE is no xception of Keras`.

    Raises:
      UsageError: one is missing, surplus, of another shape or type, or not finite; it is named.
    """
    names = {tensor.theirs for tensor in expected}
    missing = [f"{t.theirs} (our {t.ours})" for t in expected if t.theirs not in found]
    surplus = [name for name in found if name not in names]
    wrong = [
        f"{t.theirs} is {list(found[t.theirs].shape)}, not {list(t.their_shape)} (our {t.ours})"
        for t in expected
        if t.theirs in found and tuple(found[t.theirs].shape) != t.their_shape
    ]
    for what, bad in (("it lacks ", missing), ("it also holds ", surplus), ("", wrong)):
        if bad:
            raise UsageError(f"{source}: {what}{listed(bad)}")
    return {t.ours: _checked(found[t.theirs], t, source) for t in expected}


def _checked(found: Any, tensor: Tensor, source: str) -> np.ndarray:
    array = float32(found, f"{source}: {tensor.theirs}")
    if not np.isfinite(array).all():
        raise UsageError(f"{source}: {tensor.theirs} is not finite in float32")
    return np.ascontiguousarray(tensor.axes.to_ours(array))


def float32(array: Any, what: str) -> np.ndarray:
    """A tensor of a file as float32, exactly, or rounded to nearest from float64.

    Args:
      array: an array or what becomes one, of one of `TYPES` and any byte order; bfloat16 is
        `ml_dtypes.bfloat16`.
      what: the error names it, as `FILE: conv1.weight`.

    Raises:
      UsageError: it has another type.
    """
    if array.dtype.name not in TYPES:
        raise UsageError(f"{what} is {array.dtype.name}; weights are {', '.join(TYPES)}")
    with np.errstate(over="ignore"):  # beyond float32's range: infinite, which is looked for
        return np.asarray(array, np.float32)


def type_notes(types: Iterable[str]) -> list[str]:
    """The note on weights of other types than float32, if there are any.

    Args:
      types: of all tensors, as `array.dtype.name`.
    """
    other = sorted(set(types) & set(TYPES) - {"float32"})
    rounded = ", float64 rounded to the nearest" if "float64" in other else ""
    return [f"converted to float32 from {', '.join(other)}{rounded}"] if other else []


def to_theirs(tensors: list[Tensor], ours: Tensors) -> dict[str, np.ndarray]:
    """Tensors of theirs from ours."""
    return {
        t.theirs: np.ascontiguousarray(t.axes.to_theirs(np.asarray(ours[t.ours]))) for t in tensors
    }


def listed(names: list[str]) -> str:
    """The first name and how many more."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
