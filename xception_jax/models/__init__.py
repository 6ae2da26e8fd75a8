"""The models, by name. They are pure NNX modules that know nothing of training."""

import inspect
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from xception_jax.errors import UsageError, nearest
from xception_jax.models.xception import Xception

_MODELS: dict[str, type[Any]] = {"xception": Xception}


def names() -> list[str]:
    """The names that `create` takes."""
    return sorted(_MODELS)


def overrides(name: str) -> dict[str, Any]:
    """What a model lets be changed, with its defaults. Raises `UsageError` on an unknown name."""
    if name not in _MODELS:
        raise UsageError(
            f"no model {name!r}{nearest(name, _MODELS) or ';'} There are: {', '.join(names())}"
        )
    parameters = inspect.signature(_MODELS[name].__init__).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.default is not inspect.Parameter.empty and p.name != "dtype"
    }


def create(
    name: str,
    *,
    num_classes: int | None,
    rngs: nnx.Rngs,
    dtype: DTypeLike | None = None,
    **changes: Any,
) -> nnx.Module:
    """Builds a model.

    Args:
      name: one of `names()`.
      num_classes: size of the logits; None leaves the classifier out.
      rngs: the stream `params` makes the initial weights.
      dtype: compute dtype, float32 unless given.
      **changes: overrides of the model's own arguments, see `overrides(name)`.

    Raises:
      UsageError: the name or an override is not known; the message gives the nearest.
    """
    known = overrides(name)
    for change in changes:
        if change not in known:
            raise UsageError(
                f"{name} has no override {change!r}{nearest(change, known) or ';'} "
                f"It takes: {', '.join(known)}"
            )
    return _MODELS[name](num_classes=num_classes, rngs=rngs, dtype=dtype, **changes)
