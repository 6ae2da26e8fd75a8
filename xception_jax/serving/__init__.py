"""A trained model as a program that JAX alone runs: written, read, verified."""

from xception_jax.serving.checking import ExportCheck, check
from xception_jax.serving.program import (
    ACTIVATIONS,
    PLATFORMS,
    check_output,
    describe,
    export,
    load,
    write,
)

__all__ = [
    "ACTIVATIONS",
    "PLATFORMS",
    "ExportCheck",
    "check",
    "check_output",
    "describe",
    "export",
    "load",
    "write",
]
