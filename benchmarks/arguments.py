"""What the commands' arguments have in common. Imports nothing heavy."""

import argparse
import ast
import sys
from collections.abc import Callable

from xception_jax.errors import UsageError


def assignment(text: str) -> tuple[str, object]:
    """`NAME=VALUE`, the value a Python literal or else a string."""
    name, found, value = text.partition("=")
    if not found or not name.strip() or " " in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if " " in value:
            raise argparse.ArgumentTypeError(f"{text!r} is more than one NAME=VALUE") from None
        return name, value


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def run(main: Callable[[], int | None]) -> None:
    """Runs a command and ends the process; what the user can mend is one line, exit code 2."""
    try:
        sys.exit(main())
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
