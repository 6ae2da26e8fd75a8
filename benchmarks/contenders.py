"""The peers of the benchmarks, their virtual environments and their processes."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from xception_jax.runtime import cache

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).parent / "peers" / "worker.py"
VENVS = cache.folder() / "benchmarks"


class ContenderError(Exception):
    """A contender cannot be measured; the message is one line."""


@dataclass(frozen=True)
class Peer:
    """A measured implementation.

    Attributes:
      module: its module in `benchmarks/peers`.
      variant: one of the module's variants.
      venv: its virtual environment, see `requirements`.
      environment: additional environment variables of its process.
      platforms: platforms on which it runs by default.
      any_model: whether it has all our models, not only `xception`.
      overrides: whether it supports our models' overrides.
    """

    module: str
    variant: str = ""
    venv: str = "ours"
    environment: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[str, ...] = ("cpu", "gpu")
    any_model: bool = False
    overrides: bool = False


_ON_TENSORFLOW = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"}
PEERS = {
    "ours": Peer("ours", any_model=True, overrides=True),
    "ours_plain": Peer("ours_plain", overrides=True),
    "keras_jax": Peer("keras_jax", "", "keras_jax", {"KERAS_BACKEND": "jax"}),
    # On CPU the graph without XLA is faster: 233 against 826 CPU-ms an image (training at 96).
    "keras_tf": Peer("keras_tf", "graph", "keras_tf", _ON_TENSORFLOW),
    "keras_tf_xla": Peer("keras_tf", "xla", "keras_tf", _ON_TENSORFLOW, ("gpu",)),
    "torch": Peer("timm_torch", "channels_last", "torch"),
    "torch_contiguous": Peer("timm_torch", "contiguous", "torch"),
    "torch_compiled": Peer("timm_torch", "compiled", "torch"),
    # The forward pass as ONNX, on request. Ours needs the extra [peers] in this Python.
    "onnx": Peer("onnx_runtime", "ours", platforms=(), any_model=True, overrides=True),
    "onnx_timm": Peer("onnx_runtime", "timm", "onnx", platforms=(), any_model=True),
    "openvino": Peer("onnx_runtime", "ours_openvino", platforms=(), any_model=True, overrides=True),
    "openvino_timm": Peer("onnx_runtime", "timm_openvino", "onnx", platforms=(), any_model=True),
}
_TORCH = "torch==2.13.0", "torchvision==0.28.0", "timm==1.0.31"


def requirements(venv: str, platform: str) -> tuple[str, ...]:
    """The packages that pip installs in a virtual environment; none in `ours`, which runs this."""
    gpu = platform == "gpu"
    return {
        "ours": (),
        "keras_jax": ("keras==3.15.1", f"jax{'[cuda12]' * gpu}=={metadata.version('jax')}"),
        "keras_tf": (
            "keras==3.15.1",
            "tensorflow[and-cuda]==2.21.0" if gpu else "tensorflow-cpu==2.21.0",
        ),
        "torch": _TORCH,
        "onnx": (
            *_TORCH,
            "onnx==1.23.2",
            "onnxscript==0.7.2",
            "onnxruntime==1.32.0",
            "openvino==2026.4.1",
        ),
    }[venv]


def packages(venv: str, platform: str) -> tuple[str, ...]:
    """The names of the main packages of a virtual environment."""
    names = [re.split(r"[\[=]", text)[0] for text in requirements(venv, platform)]
    return tuple(names) or ("jax", "jaxlib", "flax", "optax")


def interpreter(venv: str, platform: str, folder: Path) -> Path:
    """Python in a virtual environment under `folder`, which is made if missing or out of date.

    Raises:
      ContenderError: pip could not install the packages.
    """
    wanted = requirements(venv, platform)
    if not wanted:
        return Path(sys.executable)
    path = folder / f"{venv}_{platform}"
    python, stamp = path / "bin" / "python", path / "stamp.txt"
    text = "\n".join([f"python {sys.version}", *wanted])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == text:
        return python
    print(f"making {path} of {' '.join(wanted)}; this takes minutes", flush=True)
    shutil.rmtree(path, ignore_errors=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", path], check=True, capture_output=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *wanted], check=True, capture_output=True
        )
    except subprocess.CalledProcessError as error:
        raise ContenderError(f"{venv}: not installed: {_last_line(error.stderr)}") from None
    stamp.write_text(text, encoding="utf-8")
    return python


def interpreters(
    venvs: Iterable[str], platform: str, folder: Path | None
) -> tuple[dict[str, Path], list[str]]:
    """`interpreter` for several environments, and a line for each that cannot be made.

    Without a folder all contenders run in this Python, with its installed packages.
    """
    found, missing = {}, []
    for venv in dict.fromkeys(venvs):
        if folder is None:
            found[venv] = Path(sys.executable)
            continue
        try:
            found[venv] = interpreter(venv, platform, folder)
        except ContenderError as error:
            missing.append(say(error))
    return found, missing


class Worker:
    """A contender's process; `peers/worker.py` describes the messages.

    It runs only during its turn. Otherwise it is suspended, with its threads and children, so that
    it takes no processor time from the others. Therefore it has its own process group, which the
    terminal's Ctrl-C does not reach; `close` ends it. If the parent is killed, the system sends
    SIGHUP to suspended groups, and a running worker reads the end of its standard input.
    """

    def __init__(self, name: str, peer: Peer, python: Path, platform: str):
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            [python, WORKER, peer.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **_environment(platform), **peer.environment},
            process_group=0,
        )

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a message and lets the process run until it answers.

        Raises:
          ContenderError: the process has ended; the message has its last line.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
            os.killpg(self._process.pid, signal.SIGCONT)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if answer:
            os.killpg(self._process.pid, signal.SIGSTOP)
            return json.loads(answer)
        code = self._process.wait()
        with contextlib.suppress(ProcessLookupError):  # there are no children left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._errors.seek(0)
        last = _last_line(self._errors.read())
        raise ContenderError(f"{self.name}: stopped with exit code {code}: {last}")

    def close(self) -> None:
        """Ends the process and its children, also while they are suspended."""
        if self._process.returncode is None:  # else it has ended, and its number may be reused
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._errors.close()


def start_worker(
    name: str, peer: Peer, python: Path, platform: str, request: Mapping[str, Any]
) -> tuple[Worker, dict[str, Any]]:
    """Starts a worker that builds the requested work; returns it and its first answer.

    Raises:
      ContenderError: the worker failed.
    """
    worker = Worker(name, peer, python, platform)
    asked = {
        **request,
        "variant": peer.variant,
        "platform": platform,
        "packages": packages(peer.venv, platform),
    }
    try:
        return worker, worker.ask(asked)
    except BaseException:
        worker.close()
        raise


def say(error: ContenderError) -> str:
    """Prints an error and returns the line."""
    print(f"  {error}", flush=True)
    return str(error)


def _environment(platform: str) -> dict[str, str]:
    common = {
        "PYTHONPATH": str(ROOT),  # this checkout, not the installed package
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no process pool that outlives the compilation
        "JAX_TRACEBACK_FILTERING": "off",  # so that the last line is the error, not a hint
        # Compilation is measured too.
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    if platform == "cpu":
        return {**common, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    # The contenders share the device's memory.
    return {
        **common,
        "JAX_PLATFORMS": "cuda",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }


def _last_line(said: bytes) -> str:
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
