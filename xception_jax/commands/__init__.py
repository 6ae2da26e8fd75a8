"""The commands, the only modules with flags: `xception NAME`, or `python -m xception_jax.NAME`.

Each command is a module here. Its docstring is the first half of `--help`, and its `main` runs.
"""

import ast
import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

NAMES = (
    "train",
    "finetune",
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
    """Runs a command with the arguments of this process and ends the process."""
    from xception_jax.commands import cli

    # Otherwise worker processes would import the started module, and with it all of JAX.
    started = sys.modules["__main__"]
    started.__spec__ = None
    started.__file__ = None
    cli.run(importlib.import_module(f"{__name__}.{name}"))


def console() -> NoReturn:
    """The program `xception`; finds a user's modules in the same folder as `python -m`."""
    if not sys.flags.safe_path:
        # Last, so that no file in the current folder replaces a module of a library.
        sys.path.append(os.getcwd())
    main()


def main() -> NoReturn:
    """Runs the command that the first argument names; without one, lists all commands."""
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
    """The list of commands, a line each."""
    width = max(map(len, NAMES))
    lines = [f"  {name:{width}}  {_summary(name)}" for name in NAMES]
    return (
        "Xception and its relatives in JAX.\n\n"
        "    xception COMMAND --help\n"
        "    python -m xception_jax.COMMAND --help      # the same\n\n" + "\n".join(lines)
    )


def _summary(name: str) -> str:
    """The first line of a command's help; parsed without an import, which would take seconds."""
    text = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
