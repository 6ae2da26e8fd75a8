"""Exports a trained model as a program that only needs JAX; reads and verifies exports."""

from xception_jax.serving.checking import ExportCheck, check, check_platform
from xception_jax.serving.program import (
    ABOUT,
    ACTIVATIONS,
    ONNX_FORMAT,
    PLATFORMS,
    check_output,
    describe,
    described,
    export,
    load,
    write,
)
from xception_jax.serving.upload import Pushed, push

__all__ = [
    "ABOUT",
    "ACTIVATIONS",
    "ONNX_FORMAT",
    "PLATFORMS",
    "ExportCheck",
    "Pushed",
    "check",
    "check_output",
    "check_platform",
    "describe",
    "described",
    "export",
    "load",
    "push",
    "write",
]
