"""The models by name. They are pure NNX modules, independent of training."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from xception_jax.errors import UsageError, nearest
from xception_jax.models.published import IMAGE_SIZE, Foreign, Result, Size
from xception_jax.models.registry import MODELS, arguments, register

if TYPE_CHECKING:
    from flax import nnx
    from jax.typing import DTypeLike

__all__ = [
    "Foreign",
    "check_name",
    "create",
    "describe",
    "download_name",
    "elsewhere",
    "names",
    "overrides",
    "published_results",
    "register",
    "size",
]


def names() -> list[str]:
    """The names for `create`."""
    return MODELS.names()


def check_name(name: str) -> None:
    """Raises `UsageError` if there is no model with this name."""
    MODELS.find(name)


def overrides(name: str) -> dict[str, Any]:
    """A model's overrides with their defaults. Raises `UsageError` for an unknown name."""
    card = MODELS.find(name)
    return arguments(card.load()) | card.defaults


def size(name: str) -> Size:
    """The size of a model. If not registered, it is counted, which takes seconds."""
    if known := MODELS.find(name).size:
        return known
    from flax import nnx

    from xception_jax.models import counts

    model: Any = nnx.eval_shape(lambda: create(name, num_classes=1000, rngs=nnx.Rngs(0)))
    program = counts.forward_program(model, IMAGE_SIZE)
    return Size(counts.parameters(model), counts.multiply_adds(program), model.min_image_size)


def published_results(name: str) -> tuple[Result, ...]:
    """Published accuracies of a model."""
    return MODELS.find(name).published


def elsewhere(library: str) -> dict[str, Foreign]:
    """The models that `keras` or `timm` also has, by this package's names."""
    cards = {name: MODELS.find(name) for name in names()}
    return {
        name: card.elsewhere[library] for name, card in cards.items() if library in card.elsewhere
    }


def download_name(name: str, result: Result) -> str | None:
    """The name of a result's weights for `config.init_from`; None if they have none.

    Args:
      name: the model's.
      result: one of `published_results(name)`.
    """
    library, _, weights = result.source.partition(" ")
    if library == "keras":
        return f"keras:{name}"
    # timm's weights are on the Hub, except for this model's.
    return f"hf:timm/{weights}" if library == "timm" and name != "legacy_xception" else None


def describe(name: str) -> dict[str, Any]:
    """The facts about a model.

    Returns:
      `name`, `parameters` at 1000 classes, `multiply_adds` of one image of `image_size` pixels per
      side, `min_image_size`, and `published`, a list of `Result` as dicts.

    Raises:
      UsageError: there is no such model.
    """
    return {
        "name": name,
        **asdict(size(name)),
        "image_size": IMAGE_SIZE,
        "published": [
            {**asdict(result), "download": download_name(name, result)}
            for result in published_results(name)
        ],
    }


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
      num_classes: the size of the logits; None builds no classifier.
      rngs: the stream `params` creates the initial weights.
      dtype: compute dtype; None: float32.
      matmul_precision: see `network.Network`.
      **changes: overrides of the model's arguments, see `overrides(name)`.

    Raises:
      UsageError: the name, an override or a block is unknown; the message has the nearest one.
    """
    known = overrides(name)
    for change in changes:
        if change not in known:
            raise UsageError(
                f"{name} has no override {change!r}{nearest(change, known) or ';'} "
                f"It takes: {', '.join(known)}"
            )
    card = MODELS.find(name)
    settings = card.defaults | changes
    made: Any = card.load()(num_classes=num_classes, rngs=rngs, dtype=dtype, **settings)
    made.matmul_precision, made.model_name = matmul_precision, name
    made.frozen()  # raises if `freeze` is not a block
    model: nnx.Module = made
    return model
