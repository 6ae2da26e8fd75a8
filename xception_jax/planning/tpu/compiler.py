"""Runs the TPU compiler in a separate process and stores its answers.

Compilation takes minutes. So answers are stored in the user's cache folder, and the same program
for the same topology is not compiled twice.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from xception_jax.errors import RunError, UsageError
from xception_jax.planning.tpu.schedules import schedules
from xception_jax.runtime import cache

_DUMP = (
    "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=packed-bundles-post-ra"
)
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception)\b")


@dataclass(frozen=True)
class Answer:
    """The compiler's answer for a program.

    Attributes:
      figures: `memory`, bytes by kind; `flops`, `bytes_accessed`, `compile_s`. Or `refused`, with
        the bytes that the program `needs` and that a device `has`.
      hlo: the scheduled program as text; empty if it was refused.
      cycles: cycles of each operation's schedule; empty if schedules were not requested.
    """

    figures: Mapping[str, Any]
    hlo: str
    cycles: Mapping[str, int]


def check_installed() -> None:
    """Raises `UsageError` if libtpu is not installed."""
    if util.find_spec("libtpu") is None:
        raise UsageError(
            "the TPU compiler is not installed: pip install 'xception_jax[plan]' (Linux, x86-64)"
        )


def compile_program(
    request: Mapping[str, Any],
    *,
    module: str = "xception_jax.planning.program",
    known: Path | None = None,
) -> Answer:
    """Compiles a program, or returns the stored answer.

    Args:
      request: the request for the module: `topology`, `options` and `flags`, see `chips.Topology`;
        `schedules`, whether to return cycles; and the fields that describe the program. Flags in
        `LIBTPU_INIT_ARGS` come after the request's own.
      module: the module to start with the request as JSON; see `program.answer`.
      known: the folder of stored answers; None: always compile.

    Raises:
      UsageError: the config does not give a valid program.
      RunError: compilation fails for another reason than a lack of memory.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = f"{request['flags']} {os.environ.get('LIBTPU_INIT_ARGS', '')}".strip()
        kept = str(known) if known else None
        _run(module, {**request, "flags": own, "folder": name, "known": kept}, folder)
        figures = json.loads((folder / "program.json").read_text(encoding="utf-8"))
        if figures.get("is_known") and known:
            return _read(known / figures["key"])
        cycles = schedules(folder)
        (folder / "cycles.json").write_text(json.dumps(cycles), encoding="utf-8")
        if known:
            _keep(folder, known / figures["key"])
        return _read(folder)


def folder_of_answers() -> Path:
    """The folder of stored answers."""
    return cache.folder() / "plans"


def _run(module: str, request: Mapping[str, Any], folder: Path) -> None:
    flags = f"{request['flags']} {_DUMP.format(folder) if request['schedules'] else ''}"
    environment = {
        **os.environ,
        # The process uses no device, so it may load libtpu while another process uses it.
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a cached program writes no schedules
        "LIBTPU_INIT_ARGS": flags,
    }
    command = [sys.executable, "-m", module, json.dumps(request)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    except KeyboardInterrupt:
        raise RunError("interrupted; the programs compiled before are kept") from None
    if not done.returncode:
        return
    lines = done.stderr.strip().splitlines() or ["no message"]
    # The line of the traceback that names the exception; more lines may follow it.
    reason = next((line for line in reversed(lines) if _EXCEPTION.match(line)), lines[-1])
    if done.returncode < 0:
        reason = f"ended by signal {-done.returncode}"
    kind, _, message = reason.partition(": ")
    if kind.endswith("errors.UsageError"):
        raise UsageError(message)
    raise RunError(f"{request['topology']} does not compile: {reason[:300]}")


def _read(folder: Path) -> Answer:
    hlo = folder / "program.hlo"
    return Answer(
        json.loads((folder / "program.json").read_text(encoding="utf-8")),
        hlo.read_text(encoding="utf-8") if hlo.exists() else "",
        json.loads((folder / "cycles.json").read_text(encoding="utf-8")),
    )


def _keep(folder: Path, place: Path) -> None:
    """Stores an answer completely or not at all: writes a folder beside `place` and renames it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=place.parent, prefix=".unfinished-"))
    for name in ("program.json", "program.hlo", "cycles.json"):
        if (folder / name).exists():
            shutil.copy(folder / name, unfinished)
    try:
        unfinished.rename(place)
    except OSError:  # another process has stored the same answer
        shutil.rmtree(unfinished)
