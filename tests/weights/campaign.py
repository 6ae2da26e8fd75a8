"""Runs `xception_jax.convert` on many files, each in a process of its own, and measures them.

    python -m tests.weights.campaign FILE...

Prints a line of JSON for each: `path`, `code` (-9: it hung), `said` (standard error), `seconds` of
its processor time, `megabytes`, the peak of its memory above that of a process that only imports,
and `written`, what it left in its working directory. The processes are forked from one
that has imported everything, so that a file costs milliseconds.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

LIMIT_SECONDS = 60


def measure(path: Path, *flags: str) -> dict:
    """The command on one file, in a process that is ended after `LIMIT_SECONDS`."""
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _run(path, Path(folder), said, flags)
        while not (ended := os.wait4(child, os.WNOHANG))[0]:
            if time.monotonic() - began > LIMIT_SECONDS:
                os.kill(child, 9)
            time.sleep(0.002)
        said.seek(0)
        return {
            "path": str(path),
            "code": os.waitstatus_to_exitcode(ended[1]),
            "said": said.read(),
            "seconds": ended[2].ru_utime + ended[2].ru_stime,
            "megabytes": ended[2].ru_maxrss / 1024,
            "written": sorted(os.listdir(folder)),
        }


def _run(path, folder, said, flags):
    """The child: the command as `python -m xception_jax.convert` runs it."""
    from xception_jax import commands

    os.chdir(folder)
    os.dup2(said.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["convert", f"--input={path}", f"--output={folder}/out.safetensors", *flags]
    try:
        commands.run("convert")
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    from xception_jax.models import xception  # noqa: F401
    from xception_jax.weights import pretrained

    baseline = measure(Path("nothing.pth"), "--from=timm", "--model=legacy_xception")["megabytes"]
    for path in map(Path, sys.argv[1:]):
        found = {"from": "timm"}
        if path.suffix == ".safetensors" and path.parent.name.startswith("ours"):
            found["from"] = "xception_jax"
        if path.suffix in pretrained.keras_files.SUFFIXES:
            found["from"] = "keras"
        model = "xception" if found["from"] == "keras" else "legacy_xception"
        flags = [f"--from={found['from']}"]
        if found["from"] != "xception_jax":
            flags.append(f"--model={model}")
        found |= measure(path, *flags)
        found["megabytes"] -= baseline
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
