"""Compiles a step of a run for a TPU without the TPU, in a separate process.

`planning.tpu.compiler` starts this module with libtpu's flags in the environment and a JSON request
as the only argument. The answer is two files in the request's folder: `program.json` and
`program.hlo`.
"""

import hashlib
import json
import re
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.planning import steps
from xception_jax.training import sharding
from xception_jax.training.build import DataSpec
from xception_jax.utils import imports

# The compiler's message for a program that exceeds a device's memory.
_REFUSAL = re.compile(r"\(([\d.]+)([KMGTP])\) exceeds available HBM \(([\d.]+)([KMGTP])\)")
_UNITS = {letter: 2 ** (10 * i) for i, letter in enumerate("KMGTP", start=1)}


def mesh_of(topology: str, options: dict[str, str], model: int = 1, shard: str = "none") -> Mesh:
    """A mesh like `sharding.make_mesh`'s on a topology such as `v5e:2x2`."""
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    return sharding.lay_out(found.devices, model, shard)


def answer(lowered: Any, request: dict[str, Any]) -> None:
    """Compiles a program and writes the answer to the request's folder.

    If the folder `request["known"]` already has the answer for this program, only its key is
    written.
    """
    folder = Path(request["folder"])
    told = [request["topology"], request["options"], request["schedules"],
            metadata.version("libtpu"), lowered.as_text()]  # fmt: skip
    told += [request["flags"]] if request["flags"] else []
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    if request.get("known") and (Path(request["known"]) / key / "program.json").exists():
        _write(folder, {"key": key, "is_known": True})
        return
    since = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = _REFUSAL.search(str(error))
        if refusal is None:
            raise
        needs, has = (float(refusal[i]) * _UNITS[refusal[i + 1]] for i in (1, 3))
        _write(folder, {"key": key, "refused": {"needs": needs, "has": has}})
        return
    figures = of_compiled(compiled) | {"compile_s": time.perf_counter() - since}
    (folder / "program.hlo").write_text(compiled.as_text(), encoding="utf-8")
    _write(folder, {"key": key, **figures})


def of_compiled(compiled: Any) -> dict[str, Any]:
    """XLA's figures of an executable: bytes of memory by kind, flops, bytes accessed."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "program": memory.generated_code_size_in_bytes,
        },
        "flops": float(cost.get("flops", 0)),
        "bytes_accessed": float(cost.get("bytes accessed", 0)),
    }


def _write(folder: Path, found: dict[str, Any]) -> None:
    (folder / "program.json").write_text(json.dumps(found), encoding="utf-8")


def config_of(request: dict[str, Any]) -> ConfigDict:
    """The config of a request, after the import of the user's modules that it may need."""
    sys.path += [folder for folder in request.get("path", ()) if folder not in sys.path]
    imports.load(request.get("imports", ()))
    return config_lib.from_flat(request["config"])


def main(request: dict[str, Any]) -> None:
    """Compiles the step that the request names."""
    config = config_of(request)
    asked = config.mesh
    mesh = mesh_of(request["topology"], request["options"], asked.model, asked.shard)
    answer(steps.lower(request["step"], config, mesh, DataSpec(**request["data"])), request)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
