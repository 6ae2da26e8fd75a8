"""Registries of named entries, which this package and files of users add without other changes."""

import inspect
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from xception_jax.config import schema
from xception_jax.config.fields import Field
from xception_jax.errors import UsageError, nearest

T = TypeVar("T")

_OURS = __name__.partition(".")[0]
# The modules of users that have registered something, in order.
_OUTSIDE: dict[str, None] = {}
# What ml_collections names the file of `--config`.
_CONFIG_FILE = "config_config"


class Registry(Generic[T]):
    """Entries of one kind by name.

    Args:
      kind: the kind of the entries, for messages, as `model`.
      field: the config field whose choices are the names; empty: none.
    """

    def __init__(self, kind: str, field: str = ""):
        self.kind, self.field = kind, field
        self._entries: dict[str, tuple[tuple[str, Any], T]] = {}

    def add(
        self,
        name: str,
        entry: T,
        target: Any,
        fields: Mapping[str, Field] | None = None,
        fixes: Iterable[str] = (),
    ) -> None:
        """Adds an entry and its config fields.

        The same class or function can be added again, for example when a notebook runs a cell
        twice. A lambda, or what a function defines, is the same if its code is.

        Args:
          name: the entry's name.
          entry: what `find` returns.
          target: the class or function behind it, or its place, see `where_is`.
          fields: config fields by their full names, as `model.depth`.
          fixes: fields that a started run with this entry cannot change, see `schema.add_choice`.

        Raises:
          UsageError: another entry or field already has the name, or the class or function is in a
            config file.
        """
        where = target if isinstance(target, str) else where_is(target)
        module = where.partition(":")[0]
        if module == _CONFIG_FILE:
            raise UsageError(
                f"{self.kind} {name!r} is registered in the config file, which other processes "
                f"cannot import; register it in a file of its own and import that"
            )
        origin = where, _code(target) if "<" in where else None
        known, _ = self._entries.get(name, (origin, None))
        if known != origin:
            raise UsageError(f"{self.kind} {name!r} of {where} is already registered by {known[0]}")
        for field_name, field in (fields or {}).items():
            schema.add_field(field_name, field, f"{self.kind} {name}")
        if self.field:
            schema.add_choice(self.field, name, fixes)
        self._entries[name] = origin, entry
        if module.partition(".")[0] != _OURS:
            _OUTSIDE[module] = None

    def find(self, name: str, asked_by: str = "") -> T:
        """The entry with a name.

        Args:
          name: the entry's name.
          asked_by: where the name was given, for the message, as `config.eval.metrics`.

        Raises:
          UsageError: there is no such entry.
        """
        if name not in self._entries:
            close = nearest(name, self._entries) or ";"
            raise UsageError(
                f"{asked_by}{': ' if asked_by else ''}no {self.kind} {name!r}{close} "
                f"There are: {', '.join(self.names()) or 'none'} "
                f"(--imports=FILE adds your own)"
            )
        return self._entries[name][1]

    def names(self) -> list[str]:
        """The names of all entries, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries


def where_is(target: Any) -> str:
    """A class or function as `module:name`; another callable as its class."""
    named = target if hasattr(target, "__qualname__") else type(target)
    return f"{named.__module__}:{named.__qualname__}"


def _code(target: Any) -> tuple[Any, ...]:
    """The code of a function, or of all functions of a class."""
    parts = vars(target).values() if inspect.isclass(target) else (target,)
    return tuple(part.__code__ for part in parts if inspect.isfunction(part))


def outside_modules() -> list[str]:
    """The modules of users that have registered something, for other processes that need them."""
    return [name for name in _OUTSIDE if name in sys.modules and name != "__main__"]
