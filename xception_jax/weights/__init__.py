"""Reads and writes weights: Keras and timm files, converted files, and checkpoints of runs.

`weights.load(model, path)` fills a model from any of them. It is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xception_jax.weights.loading import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from xception_jax.weights.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
