"""The package's own registrations, read from the source text of its decorators.

Importing the files with the decorators would import JAX, which takes seconds. Listing names and
fields must be fast.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from xception_jax.config.fields import Field

_PACKAGE = Path(__file__).parents[1]
_KINDS: dict[str, Callable[..., Any]] = {
    kind.__name__: kind for kind in (bool, int, float, str, tuple)
}


@dataclass(frozen=True)
class Declaration:
    """One decorator, as `@register("name", ...)`, of a class or function.

    Attributes:
      name: the registered name.
      where: the class or function, as `module:name`.
      arguments: the keyword arguments of the decorator, not evaluated.
      tables: the expressions that the file assigns to names, not evaluated.
    """

    name: str
    where: str
    arguments: Mapping[str, ast.expr]
    tables: Mapping[str, ast.expr]

    def value(self, argument: str, default: Any = None, **calls: Callable[..., Any]) -> Any:
        """The value of an argument.

        It can have literals, names with such values in the same file, and `Field(...)`.

        Args:
          argument: the argument's name.
          default: returned if the decorator does not have the argument.
          **calls: other functions that the value can call, by name.
        """
        if argument not in self.arguments:
            return default
        return _evaluated(self.arguments[argument], self.tables, {"Field": Field, **calls})


def _evaluated(node: ast.expr, tables: Mapping[str, ast.expr], calls: Mapping[str, Any]) -> Any:
    def inner(node: ast.expr) -> Any:
        return _evaluated(node, tables, calls)

    if isinstance(node, ast.Call):
        make = calls[ast.unparse(node.func)]
        return make(*map(inner, node.args), **{str(w.arg): inner(w.value) for w in node.keywords})
    if isinstance(node, ast.Name):
        return inner(tables[node.id]) if node.id in tables else _KINDS[node.id]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {inner(key): inner(value) for key, value in pairs if key is not None}
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(map(inner, node.elts))
    return ast.literal_eval(node)


@cache
def declarations(place: str, decorator: str = "register") -> tuple[Declaration, ...]:
    """The registrations in a file or in all files of a folder, sorted by file and line.

    Args:
      place: the path in the package, as `training/optimizer.py` or `models`.
      decorator: the name of the decorator.
    """
    path = _PACKAGE / place
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    found = tuple(one for file in files for one in _of_file(file, decorator))
    if not found:
        raise RuntimeError(f"{path} has no .py files with registrations")
    return found


@cache
def table(place: str, name: str) -> dict[str, Any]:
    """The dict that a file assigns to a name, evaluated as in `Declaration.value`."""
    tables = _tables(ast.parse((_PACKAGE / place).read_text(encoding="utf-8")))
    found: dict[str, Any] = _evaluated(tables[name], tables, {"Field": Field})
    return found


def _tables(tree: ast.Module) -> dict[str, ast.expr]:
    """The expressions that a file assigns to names."""
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def _of_file(file: Path, decorator: str) -> list[Declaration]:
    text = file.read_text(encoding="utf-8")
    if f"\n@{decorator}(" not in text:
        return []
    tree = ast.parse(text)
    module = ".".join(file.relative_to(_PACKAGE.parent).with_suffix("").parts)
    tables, found = _tables(tree), []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == decorator:
                    arguments = {str(word.arg): word.value for word in call.keywords}
                    name = ast.literal_eval(call.args[0])
                    found.append(Declaration(name, f"{module}:{node.name}", arguments, tables))
    return found
