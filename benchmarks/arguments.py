"""Shared parsing of the commands' arguments. Imports nothing that takes long."""

import argparse
import ast
import re
import sys
from collections.abc import Callable

from xception_jax.errors import UsageError


def assignment(text: str) -> tuple[str, object]:
    """Parses `NAME=VALUE`; the value is a Python literal or else a string."""
    name, found, value = text.partition("=")
    if not found or not name.strip() or " " in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        if re.search(r"\s[\w.]+=", value):  # a length is one value: duration=8 epochs
            raise argparse.ArgumentTypeError(f"{text!r} is more than one NAME=VALUE") from None
        return name, value


def count(text: str) -> int:
    """Parses an integer above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer above 0")
    return int(text)


def run(main: Callable[[], int | None]) -> None:
    """Runs a command and ends the process; user errors are one line, exit code 2."""
    try:
        sys.exit(main())
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
