"""Checks the files and the program of an export on this machine."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from xception_jax.errors import RunError, UsageError
from xception_jax.serving import onnx_files
from xception_jax.serving.folders import ABOUT, ONNX_FORMAT, described, verified
from xception_jax.serving.program import load

# The maximum difference of a sum of softmax probabilities from 1.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ExportCheck:
    """The result of `check`.

    Attributes:
      files: the names of the verified files.
      platform: the platform on which the program ran, or `ONNX Runtime`.
      pictures: the number of classified pictures of random pixels.
      sides: their height and width.
      largest_difference: of a sum of probabilities from 1; None for sigmoid, whose sums are not 1.
      tolerance: the maximum difference allowed; None for sigmoid.
    """

    files: tuple[str, ...]
    platform: str
    pictures: int
    sides: tuple[int, int]
    largest_difference: float | None
    tolerance: float | None

    def to_json(self) -> dict[str, object]:
        """The output of `--json`."""
        return asdict(self)


def check_platform(folder: Path, exported: jax_export.Exported) -> str:
    """The platform of this machine; `UsageError` if the program is not for it."""
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in exported.platforms:
        raise UsageError(
            f"{folder} is for {', '.join(exported.platforms)}, but this machine has {platform}; "
            f"export it with --platforms={platform}"
        )
    return platform


def _program(folder: Path) -> tuple[Callable[[Any], np.ndarray], str]:
    """A StableHLO program for this machine, and its platform."""
    exported, _ = load(folder)
    platform = check_platform(folder, exported)
    return lambda pixels: np.asarray(jax.jit(exported.call)(pixels)), platform


def verified_files(folder: Path, about: dict[str, Any]) -> dict[str, bytes]:
    """The content of each file of an export by name, if it is complete.

    Args:
      folder: of the export.
      about: its `model.json`, see `folders.described`.

    Raises:
      RunError: a file is missing or damaged.
    """
    found = {ABOUT: (folder / ABOUT).read_bytes()}
    for part in ("program", "readme", "classify"):
        if part in about:
            name = about[part]["file"]
            found[name] = verified(folder / name, about[part]["sha256"])
    return found


def check(folder: Path) -> ExportCheck:
    """Verifies an export and runs it on this machine with pictures of random pixels.

    Raises:
      UsageError: it is not for this machine's platform, ONNX Runtime is needed, or see `load`.
      RunError: it is damaged, or its output is not probabilities.
    """
    about = described(folder)
    if about["format"] == ONNX_FORMAT:
        run, platform = onnx_files.load(folder, about, check=True), "ONNX Runtime"
        sides = [about["resize"]["size"]] * 2
    else:
        run, platform = _program(folder)
        sides = about["input"]["shape"][1:3]
    files = verified_files(folder, about)
    # A dynamic size has a name instead of a number.
    height, width = (side if isinstance(side, int) else 64 for side in sides)
    pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    found = run(pixels)
    softmax = about["output"]["activation"] == "softmax"
    furthest = float(np.abs(found.sum(1, dtype=np.float64) - 1).max())
    if (
        found.shape != (2, len(about["classes"]))
        or not ((found >= 0) & (found <= 1)).all()
        or (softmax and not furthest <= _TOLERANCE)
    ):
        raise RunError(f"{folder} does not return probabilities of its classes")
    return ExportCheck(
        files=tuple(files),
        platform=platform,
        pictures=len(pixels),
        sides=(height, width),
        largest_difference=furthest if softmax else None,
        tolerance=_TOLERANCE if softmax else None,
    )
