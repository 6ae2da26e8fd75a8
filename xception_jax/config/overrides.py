"""Changes of config fields on the command line, `--config.FIELD=VALUE`, parsed by the schema."""

import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections.config_flags import tuple_parser

from xception_jax import recipes
from xception_jax.config import SCHEMA
from xception_jax.config.fields import Field
from xception_jax.errors import UsageError, nearest

_FLAG = re.compile(r"--?(no)?config\.([^=]+)(=?)(.*)", re.DOTALL)
_NAMED = re.compile(r"config\.([a-z0-9_]+(?:\.[a-z0-9_]+)?)")
_PARSERS: dict[type, flags.ArgumentParser[Any]] = {
    bool: flags.BooleanParser(),
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
}
_UNSET = ("None", "none")


def take(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Splits a command line into the changes of fields and the rest.

    It reads `--config.F=V` and `--config.F V`, and of boolean fields `--config.F` and
    `--noconfig.F`. If a field is given several times, the last value is used; values of a tuple are
    joined. `None` unsets a field that can be None; so does `none`, unless it is one of the choices.

    Returns:
      The rest of `argv`, and the values by field name.

    Raises:
      UsageError: there is no such field, or the value is invalid.
    """
    rest: list[str] = []
    given: dict[str, list[str]] = {}
    todo = list(argv)
    while todo:
        found = _FLAG.fullmatch(arg := todo.pop(0))
        if found is None or "--" in rest:
            rest.append(arg)
            continue
        negated, name, equals, text = found.groups()
        if name not in SCHEMA:
            raise UsageError(f"config has no field {name!r}{nearest(name, SCHEMA)}")
        if negated or (SCHEMA[name].kind is bool and not equals):
            text = "false" if negated else "true"
        elif not equals:
            if not todo:
                raise UsageError(f"--config.{name} needs a value: it takes {SCHEMA[name].takes}")
            text = todo.pop(0)
        given.setdefault(name, []).append(text)
    return rest, {name: _value(name, SCHEMA[name], texts) for name, texts in given.items()}


def _value(name: str, field: Field, texts: Sequence[str]) -> Any:
    last = texts[-1]
    if last in _UNSET and field.default is None and last not in field.choices:
        return None
    try:
        if field.kind is tuple:
            return sum((tuple_parser.TupleParser().parse(text) for text in texts), ())
        return _PARSERS[field.kind].parse(last) if field.kind in _PARSERS else last
    except (ValueError, TypeError):
        raise UsageError(f"config.{name} is {last!r}; it takes {field.takes}") from None


def apply(config: Any, changes: dict[str, Any]) -> None:
    """Sets fields of a config; raises `UsageError` if one is missing or has another type."""
    for name, value in changes.items():
        *sections, last = name.split(".")
        section = config
        try:
            for part in sections:
                section = section[part]
            section[last] = value
        except KeyError:
            raise UsageError(
                f"config has no {name}; start from xception_jax.config.default()"
            ) from None
        except TypeError as error:
            raise UsageError(f"config.{name}: {str(error).splitlines()[0]}") from None


def told_where(message: str, path: str, changed: Sequence[str]) -> str:
    """Adds to a message the lines of the config file that set the fields it names.

    Args:
      message: about a config.
      path: the config file.
      changed: fields that the command line sets; they are ignored.
    """
    names = [name for name in dict.fromkeys(_NAMED.findall(message)) if name not in changed]
    try:
        lines = _lines(Path(path))
    except (OSError, SyntaxError, ValueError):
        return message
    places = [f"{', '.join(lines[name])} sets {name}" for name in names if name in lines]
    return f"{message} ({'; '.join(places)})" if places else message


def _lines(path: Path) -> dict[str, list[str]]:
    """The lines in which a config file assigns each field: `configs/digits.py:24`.

    They include the file that it starts from: a recipe (`recipes.load`) or an imported config file.
    """
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    found: dict[str, list[str]] = {}
    inherited: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            within = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                module = sys.modules.get(within + alias.name)
                if module and hasattr(module, "get_config") and module.__file__:
                    inherited |= _lines(Path(module.__file__))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("recipes.load"):
            given = [*node.args, *(word.value for word in node.keywords if word.arg == "name")]
            name = getattr(given[0], "value", None) if given else None
            if name in recipes.names():
                inherited |= _lines(recipes.path(name))
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                for each in getattr(target, "elts", [target]):
                    name = ast.unparse(each).partition(".")[2]
                    if name in SCHEMA:
                        found.setdefault(name, []).append(f"{shown}:{node.lineno}")
    return inherited | found
