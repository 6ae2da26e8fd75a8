"""The house rules that keep the code readable in one sitting."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "xception_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAUNCHERS = sorted((PACKAGE.parent / "launch").glob("*.py"))

# Who may import whom: a module imports from its own level or from levels further down.
LEVELS = [
    {"main", "evaluate", "plan", "prepare", "contact_sheet", "export", "convert"},
    {"cli"},
    {"train"},
    {"planning", "serving", "weights"},
    {"training"},
    {"preflight"},
    {"config"},
    {"data", "models"},
    {"fields"},
    {"cluster"},
    {"detection", "ending", "meeting"},
    {"retry"},
    {"allocator", "cache", "console", "interrupts", "paths", "seal"},
    {"slices"},
    {"errors", "text"},
]


def part(module: str) -> str | None:
    """The part of the package that a dotted name belongs to."""
    names = module.split(".")
    return names[1] if names[0] == "xception_jax" and len(names) > 1 else None


def imports(path: Path) -> set[str]:
    """The parts of the package that a module imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {part(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "xception_jax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(part(node.module))
    return {name for name in found if name}


def level(name: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if name in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if path.name == "__main__.py":
        own = "main"  # a folder's command, not one of its modules
    if own == "__init__":
        return
    for other in imports(path) - {own}:
        assert level(other) > level(own), f"{own} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_library_knows_no_configs_and_imports_by_full_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert (node.module or "").split(".")[0] != "configs"
        elif isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "configs" for alias in node.names)


@pytest.mark.parametrize(
    "path", MODULES + LAUNCHERS, ids=lambda p: str(p.relative_to(PACKAGE.parent))
)
def test_no_function_is_longer_than_sixty_lines(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} of {path.name}"


def test_train_is_one_page():
    assert len((PACKAGE / "train.py").read_text().splitlines()) < 250


def test_no_placeholder_is_left_in_the_docs():
    root = PACKAGE.parent
    lines = [
        (path.name, line)
        for path in [root / "README.md", *(root / "docs").glob("*.md")]
        for line in path.read_text().splitlines()
    ]
    assert not [told for told in lines if re.fullmatch(r"[@_A-Z]+", told[1])]
