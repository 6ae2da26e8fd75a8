"""A trained model as a program that JAX alone runs: written, read, verified."""

from xception_jax.serving.program import (
    ABOUT,
    ACTIVATIONS,
    PLATFORMS,
    check,
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
    "check",
    "check_output",
    "describe",
    "export",
    "load",
    "write",
]
