"""Seals of JSON files: a SHA-256 over the fields, so that no change of a value goes unnoticed.

The sum is taken over canonical JSON (sorted keys, no spaces, ASCII), so that neither layout nor the
order of the keys matters. A seal finds damage and edits by hand. It keeps nobody out: who changes a
file on purpose can seal it again.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# The field that holds the seal of the others.
NAME = "seal"


def canonical(value: Any) -> str:
    """The one JSON text of a value; tuples are lists, and 1 and 1.0 are not the same."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def seal(fields: Mapping[str, Any]) -> str:
    """The SHA-256, in hexadecimal, of all fields except the seal itself."""
    others = {name: value for name, value in fields.items() if name != NAME}
    return hashlib.sha256(canonical(others).encode()).hexdigest()


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with their seal."""
    return {**fields, NAME: seal(fields)}


def check(fields: Mapping[str, Any]) -> None:
    """Raises `ValueError`, whose text completes "it ...", unless the fields have the right seal."""
    if NAME not in fields:
        raise ValueError("has no seal")
    if fields[NAME] != seal(fields):
        raise ValueError("is not what was sealed")


def parse(text: str | bytes) -> dict[str, Any]:
    """The fields of a JSON object; `ValueError` where the text is none, however it is damaged."""
    try:
        fields = json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None
    if not isinstance(fields, dict):
        raise ValueError(f"JSON of a {type(fields).__name__} where an object belongs")
    return fields
