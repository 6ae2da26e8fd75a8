"""Exports a trained model as a program that only needs JAX; reads and verifies exports."""

from xception_jax.serving.checking import ExportCheck, check, check_platform
from xception_jax.serving.folders import ABOUT, ONNX_FORMAT, check_output, described
from xception_jax.serving.program import PLATFORMS, describe, export, load, write
from xception_jax.serving.upload import Pushed, push

__all__ = [
    "ABOUT",
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
