"""The models, by name. They are pure NNX modules that know nothing of training."""

import importlib
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xception_jax.errors import UsageError, nearest

if TYPE_CHECKING:
    from flax import nnx
    from jax.typing import DTypeLike


@dataclass(frozen=True)
class _Model:
    """Where a model's class is, and which of its arguments have other defaults.

    A name and not the class, so that to list the models needs no JAX.
    """

    module: str
    name: str
    defaults: dict[str, Any] = field(default_factory=dict)

    def load(self) -> type[Any]:
        module = importlib.import_module(f"xception_jax.models.{self.module}")
        return getattr(module, self.name)


def _aligned(**defaults: Any) -> _Model:
    return _Model("aligned_xception", "AlignedXception", defaults)


_MODELS = {
    "inception_v3": _Model("inception_v3", "InceptionV3"),
    "xception": _Model("xception", "Xception"),
    # timm's port of it differs in these (timm/models/xception.py).
    "legacy_xception": _Model(
        "xception", "Xception", {"bn_epsilon": 1e-5, "pool_padding": "symmetric"}
    ),
    "xception41": _aligned(),
    "xception65": _aligned(middle_blocks=16),
    "xception71": _aligned(
        entry_blocks=((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)), middle_blocks=16
    ),
    "xception41p": _aligned(preactivation=True, bn_epsilon=1e-5),
    "xception65p": _aligned(middle_blocks=16, preactivation=True),
}


def names() -> list[str]:
    """The names that `create` takes."""
    return sorted(_MODELS)


def check_name(name: str) -> None:
    """Raises `UsageError` on the name of no model."""
    if name not in _MODELS:
        raise UsageError(
            f"no model {name!r}{nearest(name, _MODELS) or ';'} There are: {', '.join(names())}"
        )


def overrides(name: str) -> dict[str, Any]:
    """What a model lets be changed, with its defaults. Raises `UsageError` on an unknown name."""
    check_name(name)
    parameters = inspect.signature(_MODELS[name].load().__init__).parameters.values()
    known = {
        p.name: p.default
        for p in parameters
        if p.default is not inspect.Parameter.empty and p.name != "dtype"
    }
    return known | _MODELS[name].defaults


def create(
    name: str,
    *,
    num_classes: int | None,
    rngs: "nnx.Rngs",
    dtype: "DTypeLike | None" = None,
    matmul_precision: str | None = None,
    **changes: Any,
) -> "nnx.Module":
    """Builds a model.

    Args:
      name: one of `names()`.
      num_classes: size of the logits; None leaves the classifier out.
      rngs: the stream `params` makes the initial weights.
      dtype: compute dtype, float32 unless given.
      matmul_precision: see `network.Network`.
      **changes: overrides of the model's own arguments, see `overrides(name)`.

    Raises:
      UsageError: the name, an override or a block is not known; the message gives the nearest.
    """
    known = overrides(name)
    for change in changes:
        if change not in known:
            raise UsageError(
                f"{name} has no override {change!r}{nearest(change, known) or ';'} "
                f"It takes: {', '.join(known)}"
            )
    model = _MODELS[name]
    arguments = model.defaults | changes
    made = model.load()(num_classes=num_classes, rngs=rngs, dtype=dtype, **arguments)
    made.matmul_precision = matmul_precision
    made.frozen()  # raises where `freeze` names no block
    return made
