"""Fills a model with weights: `xception_jax.weights.load`."""

from pathlib import Path
from typing import Any

from flax import nnx

from xception_jax.errors import UsageError
from xception_jax.models.inception_modules import AveragePool
from xception_jax.models.layers import BatchNorm
from xception_jax.models.network import Network
from xception_jax.models.xception import Unit
from xception_jax.weights import pretrained
from xception_jax.weights.tensors import name_of, variables


def load(model: Any, path: str | Path) -> None:
    """Fills a model with weights, in place, with their mean and standard deviation of the pixels.

    If the model has no classifier, the classifier of the weights is ignored.

    Args:
      model: from `models.create`.
      path: see `pretrained.open_pretrained`.

    Raises:
      UsageError: the weights do not fit the model: a tensor is missing, unexpected or of another
        shape, or the weights need another epsilon or padding.
    """
    source, own = pretrained.open_pretrained(path), variables(model)
    name = source.model or name_of(model)
    asked = source.overrides(name)
    for trait, value in _traits(model).items():
        if asked.get(trait, value) != value:
            raise UsageError(
                f"{path} needs a model with {trait}={asked[trait]!r}, but this one has {value!r}; "
                f"pass {trait}={asked[trait]!r} to models.create"
            )
    headless = getattr(model, "head", None) is None
    if not headless:
        source.check_head()
    for tensor, array in source.tensors(model, name, without_head=headless).items():
        own[tensor][...] = array
    model.mean, model.std = source.mean, source.std


def _traits(model: nnx.Module) -> dict[str, Any]:
    """The settings of a model that change its output and are not in its tensors."""
    found: dict[str, Any] = {}
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            found["bn_epsilon"] = module.epsilon
        elif isinstance(module, Network):
            found["pooling"] = module.pooling
        elif isinstance(module, AveragePool):
            found["count_padding"] = module.count_padding
        elif isinstance(module, Unit) and module.pool is not None:
            found["pool_padding"] = module.pool.lower()
    return found
