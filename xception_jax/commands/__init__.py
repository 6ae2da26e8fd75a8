"""The commands, which alone have flags: `xception NAME`, or `python -m xception_jax.NAME`.

Each is a module here: its docstring is the first half of `--help`, and its `main` runs.
"""

import ast
import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

NAMES = (
    "train",
    "evaluate",
    "predict",
    "export",
    "convert",
    "models",
    "plan",
    "contact_sheet",
    "prepare",
)


def run(name: str) -> NoReturn:
    """Runs a command with the arguments of this process, which it ends."""
    from xception_jax.commands import cli

    # Worker processes would import the module that was started, and with it all of JAX.
    started = sys.modules["__main__"]
    started.__spec__ = None
    started.__file__ = None
    cli.run(importlib.import_module(f"{__name__}.{name}"))


def console() -> NoReturn:
    """The program `xception`: finds a user's own modules where `python -m` finds them."""
    if not sys.flags.safe_path:
        # Last: what lies in the folder of a run must not stand for a module of a library.
        sys.path.append(os.getcwd())
    main()


def main() -> NoReturn:
    """Runs the command that the first argument names; without one, lists them all."""
    from xception_jax.commands import cli
    from xception_jax.errors import nearest

    given = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if given in cli.HELP:
        print(_overview())
        sys.exit(0)
    name = given.replace("-", "_")
    if name not in NAMES:
        close = nearest(name, NAMES) or ";"
        cli.fail(f"no command {given!r}{close} There are: {', '.join(NAMES)}", 2)
    del sys.argv[1]
    run(name)


def _overview() -> str:
    """A line on each command."""
    width = max(map(len, NAMES))
    lines = [f"  {name:{width}}  {_summary(name)}" for name in NAMES]
    return (
        "Xception and its relatives in JAX.\n\n"
        "    xception COMMAND --help\n"
        "    python -m xception_jax.COMMAND --help      # the same\n\n" + "\n".join(lines)
    )


def _summary(name: str) -> str:
    """The first line of a command's help; read, not imported, so that the list is there at once."""
    text = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
