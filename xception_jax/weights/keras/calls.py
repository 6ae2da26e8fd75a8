"""The calls of layers in a Keras config: `inbound_nodes` of Keras 2 and 3."""

from collections.abc import Iterator
from typing import Any

from xception_jax.weights.files import Refused


def histories(value: Any) -> list[str]:
    """The names of the layers whose outputs a call takes, in order."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            return histories([value["config"]["keras_history"]])
        return [name for part in value.values() for name in histories(part)]
    if not isinstance(value, list):
        return []
    if (
        len(value) >= 3
        and isinstance(value[0], str)
        and all(isinstance(i, int) for i in value[1:3])
    ):
        if value[2] != 0:
            raise Refused(f"takes output {value[2]} of the layer {value[0]!r}")
        return [value[0], *histories(value[3:])]
    return [name for part in value for name in histories(part)]


def constants(value: Any) -> Iterator[Any]:
    """The numbers that a call takes, in order, with None for each tensor.

    An array with more than one number per channel also gives None.
    """
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield None
        else:
            for part in value.values():
                yield from constants(part)
    elif isinstance(value, list):
        if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int):
            yield None
            value = value[3:]
        if _varies_over_places(value):
            yield None
            return
        for part in value:
            yield from constants(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _varies_over_places(value: list[Any]) -> bool:
    """Whether the value is an array that is longer than 1 in an axis before the last."""
    return len(value) > 1 and all(
        isinstance(part, list) and part and not isinstance(part[0], str | dict) for part in value
    )


def unusual(calls: list[Any], *, is_operation: bool, augments: bool) -> str | None:
    """An argument that changes a call's output, as `training=True`, or None.

    Args:
      calls: `inbound_nodes` of a layer.
      is_operation: whether it is a function such as `keras.ops.divide`, which also takes numbers.
      augments: whether it is a layer such as `RandomFlip`. For these Keras 3 writes the default
        `training=True` into the config; `predict` and `evaluate` override it.
    """
    for call in calls:
        if isinstance(call, dict):
            args, named = call.get("args") or [], call.get("kwargs") or {}
            takes = {"inputs", "training"} if augments else {"inputs"}
        else:
            held = [part for tensor in call for part in tensor[3:]] if _is_list(call) else []
            args, named = [], {name: x for part in held for name, x in (part or {}).items()}
            takes = {"inputs", "y", "name"} if is_operation else {"inputs"}
        for name, value in named.items():
            if name not in takes and not (value is None or value is False):
                return f"{name}={_shown(value)}"
        for value in args[1:]:
            if not is_operation and not (value is None or value is False):
                return f"{_shown(value)} as an extra argument"
    return None


def _is_list(call: Any) -> bool:
    return isinstance(call, list) and all(isinstance(tensor, list) for tensor in call)


def _shown(value: Any) -> str:
    return "a structured value" if isinstance(value, dict | list) else repr(value)
