"""Runs commands in processes forked from one that has imported all, which saves seconds for each.

    python -m tests.forks

Reads a line of JSON for each command: its `module`, `flags`, `environment`, and the files for its
`output` and `errors`. Prints its exit code. A child runs the command as `python -m` does, and ends
as any process does. JAX has neither threads nor devices before a child starts them.
"""

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 300


@cache
def _server() -> subprocess.Popen[str]:
    """The process that forks; it ends with this one."""
    words = [sys.executable, "-m", "tests.forks"]
    server = subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.communicate)
    return server


def run(module: str, *flags: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; its exit code is that of SIGALRM if it takes too long.

    Args:
      env: changes of the environment that nothing has read yet when everything is imported. XLA
        reads its flags when JAX finds its devices.
    """
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        asked = {"module": module, "flags": flags, "environment": {**os.environ, **env},
                 "output": str(output), "errors": str(errors)}  # fmt: skip
        print(json.dumps(asked), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        said = (path.read_text(encoding="utf-8") for path in (output, errors))
        return subprocess.CompletedProcess([module, *flags], code, *said)


def _become(asked: dict[str, Any]) -> None:
    """The child: the command with its own streams. It ends the process."""
    from xception_jax import commands

    signal.alarm(LIMIT_SECONDS)
    for descriptor, path in ((1, asked["output"]), (2, asked["errors"])):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = [asked["module"], *asked["flags"]]
    commands.run("train" if asked["module"] == "main" else asked["module"])


def main() -> None:
    from xception_jax import contact_sheet, convert, evaluate, export, predict, train  # noqa: F401
    from xception_jax.commands import cli  # noqa: F401
    from xception_jax.models import xception  # noqa: F401
    from xception_jax.planning import plans, report  # noqa: F401

    gc.freeze()  # what is shared stays shared
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads: those of BLAS start again
            child = os.fork()
        if child == 0:
            replies.close()
            _become(json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, file=replies, flush=True)


if __name__ == "__main__":
    main()
