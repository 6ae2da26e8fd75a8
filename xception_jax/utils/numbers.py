"""Numbers for JSON, which has no NaN and no infinity."""

import math
from collections.abc import Mapping
from typing import Any


def for_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by name, with None (JSON's null) for each float that is not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `for_json`, with NaN for each None."""
    return {name: math.nan if value is None else value for name, value in values.items()}
