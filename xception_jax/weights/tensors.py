"""A model's tensors by name, and the map to the names and shapes of another library."""

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

# Tensors by name: arrays, or objects with a shape that `np.asarray` turns into arrays.
Tensors = Mapping[str, Any]

# The types that weights can have in a file; all are converted to float32.
TYPES = ("bfloat16", "float16", "float32", "float64")

CLASSIFIER = "params.head.classifier."


@dataclass(frozen=True)
class AxisOrder:
    """The order of a tensor's axes in another library; the two functions are inverses."""

    to_library: Callable[[np.ndarray], np.ndarray]
    from_library: Callable[[np.ndarray], np.ndarray]


SAME = AxisOrder(lambda x: x, lambda x: x)


@dataclass(frozen=True)
class Tensor:
    """A tensor of a model and its counterpart in another library.

    Attributes:
      name: its name in this package, as `params.stem.conv1.kernel`.
      library_name: its name in the other library.
      shape: its shape in this package.
      axes: converts between the two orders of axes.
    """

    name: str
    library_name: str
    shape: tuple[int, ...]
    axes: AxisOrder = SAME

    @property
    def library_shape(self) -> tuple[int, ...]:
        return self.axes.to_library(np.broadcast_to(np.float32(0), self.shape)).shape


def abstract(name: str, num_classes: int | None, overrides: Mapping[str, Any]) -> Any:
    """A model of shapes, without arrays."""
    return nnx.eval_shape(
        lambda: models.create(name, num_classes=num_classes, rngs=nnx.Rngs(0), **overrides)
    )


def variables(model: nnx.Module) -> dict[str, nnx.Variable[Any]]:
    """A model's parameters and batch statistics as `{"params.stem.conv1.kernel": variable}`."""
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
    """Builds the `Tensor`s of a map from the layers of a model.

    Args:
      model: of arrays or of shapes.
    """

    model: Any
    _names: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        self._names = {id(variable): name for name, variable in variables(self.model).items()}

    def tensor(self, variable: Any, library_name: str, axes: AxisOrder = SAME) -> Tensor:
        return Tensor(self._names[id(variable)], library_name, tuple(variable.shape), axes)

    def check_complete(self, tensors: list[Tensor], library: str) -> None:
        """Raises `UsageError` if a tensor of the model has no counterpart in the library."""
        left = sorted(set(self._names.values()) - {tensor.name for tensor in tensors})
        if left:
            raise UsageError(f"{library} has no counterpart of {listed(left)}")


def parts(layer: nnx.Module) -> Iterator[tuple[str, Any]]:
    """`(kind, variable)` of a layer, in Keras' order of its tensors.

    The kinds are `depthwise`, `pointwise`, `conv`, `linear`, and for vectors `scale`, `bias`,
    `mean`, `var`.
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
        raise UsageError("a separable convolution with several channels per segment has no "
                         "counterpart in Keras or timm")  # fmt: skip


def name_of(model: Any) -> str:
    """The name of a model from `models.create`; raises `UsageError` for any other model."""
    name = getattr(model, "model_name", None)
    if name is None:
        raise UsageError(f"{type(model).__name__} has no model name; build it by models.create")
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


def from_library(expected: list[Tensor], found: Tensors, source: str) -> dict[str, np.ndarray]:
    """Converts tensors from another library; none may be missing or left over.

    Args:
      expected: the map.
      found: the library's tensors by its names.
      source: the start of error messages, as `FILE is not a keras xception`.

    Raises:
      UsageError: a tensor is missing, unexpected, of another shape or type, or not finite; the
        message names it.
    """
    names = {tensor.library_name for tensor in expected}
    missing = [f"{t.library_name} (here {t.name})" for t in expected if t.library_name not in found]
    surplus = [name for name in found if name not in names]
    wrong = [
        f"{t.library_name} is {shape}, not {list(t.library_shape)} (here {t.name})"
        for t in expected
        if t.library_name in found
        and (shape := list(found[t.library_name].shape)) != list(t.library_shape)
    ]
    for what, bad in (("it lacks ", missing), ("it also has ", surplus), ("", wrong)):
        if bad:
            raise UsageError(f"{source}: {what}{listed(bad)}")
    return {t.name: _checked(found[t.library_name], t, source) for t in expected}


def _checked(found: Any, tensor: Tensor, source: str) -> np.ndarray:
    array = float32(found, f"{source}: {tensor.library_name}")
    if not np.isfinite(array).all():
        raise UsageError(f"{source}: {tensor.library_name} is not finite in float32")
    return np.ascontiguousarray(tensor.axes.from_library(array))


def float32(array: Any, what: str) -> np.ndarray:
    """A tensor of a file as float32: exact, but rounded to nearest from float64.

    Args:
      array: an array, or an object that `np.asarray` reads, of one of `TYPES` and any byte order;
        bfloat16 is `ml_dtypes.bfloat16`.
      what: its name in the error message, as `FILE: conv1.weight`.

    Raises:
      UsageError: the tensor has another type.
    """
    if array.dtype.name not in TYPES:
        raise UsageError(f"{what} is {array.dtype.name}; weights can be {', '.join(TYPES)}")
    with np.errstate(over="ignore"):  # an overflow becomes infinite, which the caller refuses
        return np.asarray(array, np.float32)


def type_notes(types: Iterable[str]) -> list[str]:
    """A note if some weights are not float32.

    Args:
      types: the types of all tensors, as `array.dtype.name`.
    """
    other = sorted(set(types) & set(TYPES) - {"float32"})
    rounded = ", float64 rounded to nearest" if "float64" in other else ""
    return [f"converted to float32 from {', '.join(other)}{rounded}"] if other else []


def to_library(tensors: list[Tensor], arrays: Tensors) -> dict[str, np.ndarray]:
    """Converts arrays by name to another library's names and order of axes."""
    return {
        t.library_name: np.ascontiguousarray(t.axes.to_library(np.asarray(arrays[t.name])))
        for t in tensors
    }


def listed(names: list[str]) -> str:
    """The first name and the number of others."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
