"""The registry of models: the class that builds each model, and facts about it.

A model is a class with a decorator, in a file of this package or of a user:

    @register("xception65", size=(39_916_312, 13_852_682_216, 1), middle_blocks=16)
    class AlignedXception(Network):
"""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from xception_jax.config.declared import declarations
from xception_jax.config.fields import Field
from xception_jax.config.registry import Registry, where_is
from xception_jax.errors import UsageError, nearest
from xception_jax.models.published import Foreign, Result, Size

C = TypeVar("C", bound=type[Any])


@dataclass(frozen=True)
class Card:
    """The facts about a model without its class, which needs JAX.

    Attributes:
      name: the model's name.
      where: its class, as `module:name`.
      defaults: arguments of the class with other defaults for this model.
      size: see `register`.
      published: see `register`.
      elsewhere: the model in other libraries, by `keras` and `timm`.
      target: the class, if it is imported.
    """

    name: str
    where: str
    defaults: dict[str, Any]
    size: Size | None
    published: tuple[Result, ...]
    elsewhere: Mapping[str, Foreign]
    target: type[Any] | None = None

    def load(self) -> type[Any]:
        """The class; imports its module."""
        if self.target is not None:
            return self.target
        module, _, name = self.where.partition(":")
        found: type[Any] = getattr(importlib.import_module(module), name)
        return found


MODELS = Registry[Card]("model")
_UNNAMED = (
    inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)  # fmt: skip


def register(
    name: str,
    *,
    size: tuple[int, int, int] | None = None,
    published: Sequence[tuple[str, float, float]] = (),
    options: Mapping[str, Field] | None = None,
    keras: Foreign | None = None,
    timm: Foreign | None = None,
    **defaults: Any,
) -> Callable[[C], C]:
    """Decorates the class of a model: a `network.Network`, or an NNX module with its methods.

    The constructor takes `num_classes` (None: no classifier), and by keyword `rngs`, `dtype` and
    any overrides with defaults, by `**` also those of its base class. An override is set by the
    field of `config.model` with its name. The field is in `models.options` (`width`, `dropout`) or
    declared in `options`.

    Args:
      name: the model's name. A class can have several names, by several decorators.
      size: the parameters that training changes, the multiply-adds of one image of 299 pixels, and
        the smallest side of an image, all at 1000 classes. None: they are counted on demand.
      published: the source of each result, top-1 and top-5 in percent; see `published.Result`.
      options: additional fields of `config.model`. Their default is None, for the class's default.
      keras: the same model in Keras, so that its weights can be read and written.
      timm: the same model in timm.
      **defaults: arguments of the class with other defaults for this model.

    Raises:
      UsageError: the name is already used, an option is not an argument or has a default, or a
        default is of no argument.
    """

    def decorate(target: C) -> C:
        elsewhere = {"keras": keras, "timm": timm}
        card = _card(name, where_is(target), size, published, elsewhere, defaults)
        fields = {f"model.{key}": field for key, field in (options or {}).items()}
        known = arguments(target)
        for key, field in (options or {}).items():
            if key not in known or field.default is not None:
                raise UsageError(
                    f"model {name!r}: the option {key!r} must be an argument of {card.where} with "
                    f"a default, and the default of its Field must be None"
                )
        taken = _parameters(target).keys() - {"self", "num_classes", "rngs", "dtype"}
        for key in defaults:
            if key not in taken:
                raise UsageError(
                    f"model {name!r}: {card.where} takes no {key!r}{nearest(key, taken) or ';'} "
                    f"It takes: {', '.join(sorted(taken)) or 'none'}"
                )
        MODELS.add(name, replace(card, target=target), target, fields)
        return target

    return decorate


def arguments(target: type[Any]) -> dict[str, Any]:
    """The overrides that a class takes, with their defaults; see `_parameters`."""
    found = _parameters(target).items()
    return {
        key: each.default
        for key, each in found
        if each.default is not each.empty and key != "dtype"
    }


def _parameters(target: type[Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a class that have names.

    Where its constructor takes further ones by `**`, they are those of the classes it derives from.
    """
    found: dict[str, inspect.Parameter] = {}
    for kind in inspect.getmro(target) if inspect.isclass(target) else ():
        constructor = vars(kind).get("__init__")
        if constructor is None:
            continue
        parameters = inspect.signature(constructor).parameters.values()
        found = {p.name: p for p in parameters if p.kind not in _UNNAMED} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def _card(
    name: str,
    where: str,
    size: tuple[int, int, int] | None,
    published: Sequence[tuple[str, float, float]],
    elsewhere: Mapping[str, Foreign | None],
    defaults: dict[str, Any],
) -> Card:
    results = tuple(
        Result(top1, top5, source, weights=not source.startswith("arXiv:"))
        for source, top1, top5 in published
    )
    known = {library: model for library, model in elsewhere.items() if model is not None}
    counts = Size(*size) if size else None
    return Card(name, where, defaults, counts, results, known)


def add_own(registry: Registry[Card]) -> None:
    """Adds the models of this package from the source text of their decorators.

    Importing their modules would import JAX, which takes seconds; listing models must be fast.
    """
    for one in declarations("models"):
        said = {key: one.value(key, Foreign=Foreign) for key in one.arguments}
        size, published = said.pop("size", None), said.pop("published", ())
        elsewhere = {library: said.pop(library, None) for library in ("keras", "timm")}
        said.pop("options", None)  # `config.schema` reads them
        card = _card(one.name, one.where, size, published, elsewhere, said)
        registry.add(one.name, card, one.where)


add_own(MODELS)
