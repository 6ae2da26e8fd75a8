"""The house rules that keep the code readable in one sitting."""

import ast
import functools
import graphlib
import itertools
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "xception_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in MODULES
}
LAUNCHERS = sorted((PACKAGE.parent / "launch").rglob("*.py"))

# Who may import whom: a module imports from its own level or from levels further down.
LEVELS = [
    {"main", "plan"},
    {"commands"},
    {"finetune"},
    {"evaluate", "prepare", "contact_sheet", "export", "convert", "predict"},
    {"train"},
    {"finetuning", "planning", "serving"},
    {"weights"},
    {"training"},
    {"augment", "data", "models"},
    {"config"},
    {"recipes"},
    {"runtime"},
    {"utils"},
    {"errors"},
]


def part(module: str) -> str | None:
    """The part of the package that a dotted name belongs to."""
    names = module.split(".")
    return names[1] if names[0] == "xception_jax" and len(names) > 1 else None


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_command(node: ast.stmt) -> bool:
    """Whether this is what runs where a module is started as a command."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


@functools.cache
def imported(path: Path) -> frozenset[str]:
    """The modules of the package that one imports, at the top or inside a function."""
    body = [node for node in parsed(path).body if not is_command(node)]
    found: set[str] = set()
    for node in itertools.chain.from_iterable(map(ast.walk, body)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in NAMES else node.module for name in names}
    return frozenset(found & NAMES.keys())


def imports(path: Path) -> set[str]:
    """The parts of the package that a module imports."""
    return {name for name in map(part, imported(path)) if name}


def level(name: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if name in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for other in imports(path) - {own}:
        assert level(other) > level(own), f"{own} imports {other}"


ROOMS = sorted({PACKAGE, *(path.parent for path in MODULES)})


@pytest.mark.parametrize("room", ROOMS, ids=lambda p: str(p.relative_to(PACKAGE.parent)))
def test_no_room_has_a_circle(room):
    """Neither among its modules nor among the rooms in it."""
    own = ".".join(room.relative_to(PACKAGE.parent).parts) + "."
    graph: dict[str, set[str]] = {}
    for name, path in NAMES.items():
        if name.startswith(own):
            inside = {to.removeprefix(own) for to in imported(path) if to.startswith(own)}
            one = name.removeprefix(own).partition(".")[0]
            graph.setdefault(one, set()).update(to.partition(".")[0] for to in inside)
    graphlib.TopologicalSorter({one: to - {one} for one, to in graph.items()}).prepare()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_commands_alone_have_flags(path):
    """So that programs can import all of the library together."""
    if path.parent.name != "commands":
        defined = re.findall(r"\bflags\.(?:DEFINE\w*|FLAGS)|config_flags\.DEFINE", path.read_text())
        assert not defined


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_library_knows_no_configs_and_imports_by_full_names(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert (node.module or "").split(".")[0] != "configs"
        elif isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "configs" for alias in node.names)


@pytest.mark.parametrize(
    "path", MODULES + LAUNCHERS, ids=lambda p: str(p.relative_to(PACKAGE.parent))
)
def test_no_function_is_longer_than_sixty_lines(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} of {path.name}"


TEXT_FILES = {"open", "fdopen", "read_text", "write_text", "NamedTemporaryFile"}
OTHER_OPENS = {"os", "Image", "tarfile", "archive", "library.h5o"}  # these take no encoding


def without_encoding(call: ast.Call) -> bool:
    """Whether a call opens a text file, or reads a process' text, in the locale's encoding."""
    owner, _, name = ast.unparse(call.func).rpartition(".")
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in named or (name in TEXT_FILES and owner in OTHER_OPENS and name != "fdopen"):
        return False
    if name not in TEXT_FILES:
        return bool({"text", "universal_newlines"} & set(named)) and owner == "subprocess"
    modes = [one.value for one in [*call.args, named.get("mode")] if isinstance(one, ast.Constant)]
    return not any(
        isinstance(mode, str) and re.fullmatch(r"[rwax+]*b[rwax+]*", mode) for mode in modes
    )


@pytest.mark.parametrize("folder", ["xception_jax", "launch", "benchmarks", "configs"])
def test_every_text_file_has_an_encoding(folder):
    """Else it is the locale's, which is ASCII where LC_ALL=C."""
    for path in sorted((PACKAGE.parent / folder).rglob("*.py")):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call):
                assert not without_encoding(node), f"{path}:{node.lineno}"


def test_train_is_one_page():
    assert len((PACKAGE / "train.py").read_text().splitlines()) < 250
