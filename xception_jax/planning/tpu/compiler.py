"""The TPU compiler in a process of its own, and what it has said before.

It takes minutes. So what it says of a program is kept in the user's cache, and the same program for
the same topology is not compiled twice.
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
    """What the compiler says of a program.

    Attributes:
      figures: `memory`, bytes by kind; `flops`, `bytes_accessed`, `compile_s`. Or `refused`, with
        the bytes that the program `needs` and that a device `has`.
      hlo: the scheduled program as text; empty where it was refused.
      cycles: of the schedule of each operation; empty where none were asked for.
    """

    figures: Mapping[str, Any]
    hlo: str
    cycles: Mapping[str, int]


def check_installed() -> None:
    """Raises `UsageError` where there is no libtpu."""
    if util.find_spec("libtpu") is None:
        raise UsageError(
            "the TPU compiler is not installed: pip install 'xception_jax[plan]' (Linux, x86-64)"
        )


def ask(
    request: Mapping[str, Any],
    *,
    module: str = "xception_jax.planning.program",
    known: Path | None = None,
) -> Answer:
    """Has a program compiled, or finds what was said of it before.

    Args:
      request: for the module: `topology`, `options` and `flags`, see `chips.Topology`; `schedules`,
        whether the cycles of its operations are wanted; and what else makes up the program. Flags
        of `LIBTPU_INIT_ARGS` come after its own.
      module: started with the request as JSON; see `program.answer`.
      known: the folder of earlier answers; None: asks anew.

    Raises:
      UsageError: the program cannot be made of this config.
      RunError: it fails for another reason than too little memory.
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
    """Where answers are kept."""
    return cache.folder() / "plans"


def _run(module: str, request: Mapping[str, Any], folder: Path) -> None:
    flags = f"{request['flags']} {_DUMP.format(folder) if request['schedules'] else ''}"
    environment = {
        **os.environ,
        # The process takes no device, so it may load libtpu beside another that does.
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is not compiled dumps nothing
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
    # Of a traceback the line that names the exception; more lines may follow it.
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
    """Whole or not at all: it is put together beside its place, and renamed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=place.parent, prefix=".unfinished-"))
    for name in ("program.json", "program.hlo", "cycles.json"):
        if (folder / name).exists():
            shutil.copy(folder / name, unfinished)
    try:
        unfinished.rename(place)
    except OSError:  # another process has just kept the same
        shutil.rmtree(unfinished)
