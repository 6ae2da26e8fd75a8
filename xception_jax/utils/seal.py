"""Seals of JSON files: a SHA-256 over the fields that detects any change of a value.

The hash is over canonical JSON (sorted keys, no spaces, ASCII), so that neither layout nor the
order of the keys matters. A seal detects damage and edits. It does not prevent forgery: anyone can
compute a new seal.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# The field that holds the seal of the others.
NAME = "seal"


def canonical(value: Any) -> str:
    """The canonical JSON text of a value; tuples become lists, and 1 differs from 1.0."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def seal(fields: Mapping[str, Any]) -> str:
    """The SHA-256, in hexadecimal, of all fields except the seal itself."""
    others = {name: value for name, value in fields.items() if name != NAME}
    return hashlib.sha256(canonical(others).encode()).hexdigest()


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with their seal."""
    return {**fields, NAME: seal(fields)}


def complaint(fields: Mapping[str, Any]) -> str | None:
    """The fault of a file with these fields, as "has no seal"; None if the seal is correct."""
    if NAME not in fields:
        return "has no seal"
    return None if fields[NAME] == seal(fields) else "is not what was sealed"


def check(fields: Mapping[str, Any]) -> None:
    """Raises `ValueError` with the fault, if there is one."""
    if wrong := complaint(fields):
        raise ValueError(wrong)


def parse(text: str | bytes) -> dict[str, Any]:
    """The fields of a JSON object; `ValueError` for any other text."""
    try:
        fields = json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None
    if not isinstance(fields, dict):
        raise ValueError(f"JSON of a {type(fields).__name__} where an object belongs")
    return fields
