"""Exports a trained model as a program that only needs JAX; reads and verifies exports."""

from xception_jax.serving.checking import ExportCheck, check, check_platform
from xception_jax.serving.program import (
    ABOUT,
    ACTIVATIONS,
    PLATFORMS,
    check_output,
    describe,
    export,
    load,
    write,
)

__all__ = [
    "ABOUT",
    "ACTIVATIONS",
    "PLATFORMS",
    "ExportCheck",
    "check",
    "check_output",
    "check_platform",
    "describe",
    "export",
    "load",
    "write",
]
