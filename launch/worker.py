"""Runs on each machine that a launcher rents: installs, mounts, trains, and reports its state.

    python3 xception_jax/worker.py state

It needs only the Python of the machine's image (3.10 or newer) and its standard library. All its
files are in one folder, `~/xception_jax`; `XCEPTION_JAX_HOME` names another.

The training process does not depend on the connection that started it. A supervisor waits for it,
forwards SIGTERM to it, and stores its exit code. The supervisor holds a lock while it runs. So a
run that has ended is recognized, even after a restart of the machine.
"""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

HOME = Path(os.environ.get("XCEPTION_JAX_HOME") or Path.home() / "xception_jax")
STATE, LOCK, LOG = HOME / "state.json", HOME / "lock", HOME / "log.txt"

# Exit code of a stopped run that should be restarted: EX_TEMPFAIL of sysexits.h.
STOPPED = 75


# Seconds until a supervisor must have started.
PATIENCE = 20.0


def write(path: Path, text: str) -> None:
    """Replaces a file completely or not at all."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def run(*command: str, text: str | None = None) -> None:
    """Prints and runs a command; ends this process with one line if it fails."""
    print(shlex.join(command), flush=True)
    done = subprocess.run(
        command, input=text, encoding="utf-8", stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        sys.exit(f"{shlex.join(command[:4])} failed with exit code {done.returncode}")


def mount(bucket: str, folder: Path) -> None:
    """Mounts a bucket, unless it is mounted; installs gcsfuse if it is missing.

    Installation: docs.cloud.google.com/storage/docs/cloud-storage-fuse/install. Orbax renames a
    folder when a checkpoint is complete. In a bucket without hierarchical namespace gcsfuse refuses
    that, unless a size limit is set (github.com/GoogleCloudPlatform/gcsfuse, docs/semantics.md).
    All machines write a checkpoint together. They see each other's files at once only without a
    cache of names and sizes.
    """
    if os.path.ismount(folder):
        return
    if not shutil.which("gcsfuse"):
        release = dict(
            line.split("=", 1)
            for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
            if "=" in line
        )["VERSION_CODENAME"].strip('"')
        import urllib.request  # here, since it takes longer than all other imports together

        key = "/usr/share/keyrings/cloud.google.asc"
        with urllib.request.urlopen(
            "https://packages.cloud.google.com/apt/doc/apt-key.gpg"
        ) as page:
            run("sudo", "tee", key, text=page.read().decode())
        source = (
            f"deb [signed-by={key}] https://packages.cloud.google.com/apt gcsfuse-{release} main\n"
        )
        run("sudo", "tee", "/etc/apt/sources.list.d/gcsfuse.list", text=source)
        install_packages("gcsfuse")
    run("sudo", "mkdir", "-p", str(folder))
    run("sudo", "chown", f"{os.getuid()}:{os.getgid()}", str(folder))
    options = ["--implicit-dirs", "--rename-dir-limit=10000"]
    options += ["--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0"]
    run("gcsfuse", *options, bucket, str(folder))


def install_packages(*names: str) -> None:
    """Installs system packages; waits while a new machine updates itself."""
    wait = ("-o", "DPkg::Lock::Timeout=600")
    run("sudo", "apt-get", *wait, "update", "-q")
    run("sudo", "apt-get", *wait, "install", "-q", "-y", *names)


def code_of(archive: str) -> Path:
    """The folder of an archive's installed code."""
    return HOME / archive.removesuffix(".tar.gz")


def install(archive: Path, extra: str) -> None:
    """Unpacks and installs the code with an extra, `tpu` or `cuda`, unless it is installed.

    uv installs the Python that the package needs: the TPU images are Ubuntu 22.04, which has 3.10.
    """
    code = code_of(archive.name)
    wanted = f"{code.name}[{extra}]"
    marker = HOME / "installed"
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return
    if not code.exists():
        draft = code.with_name(code.name + ".tmp")
        shutil.rmtree(draft, ignore_errors=True)
        import tarfile

        with tarfile.open(archive) as tar:
            tar.extractall(draft)
        draft.rename(code)
    uv = HOME / "uv" / "bin" / "uv"
    if not uv.exists():
        install_packages("python3-venv")
        run(sys.executable, "-m", "venv", "--clear", str(HOME / "uv"))
        run(str(HOME / "uv" / "bin" / "python"), "-m", "pip", "install", "-q", "uv")
    python = HOME / "venv" / "bin" / "python"
    if not python.exists():
        run(str(uv), "venv", "--python=3.12", str(HOME / "venv"))
    run(str(uv), "pip", "install", f"--python={python}", f"{code}[{extra}]")
    write(marker, wanted)


def running() -> bool:
    """Whether a supervisor holds the lock."""
    HOME.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def acquire(lock: IO[str]) -> None:
    """Takes the lock; retries, since `running` holds it for a moment."""
    for _ in range(100):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.05)
    sys.exit("another run is active on this machine")


def state() -> dict[str, Any]:
    """`state` is none, running, exited (then `code`, and whether `stopped`) or lost."""
    alive = running()
    found: dict[str, Any] = {"state": "none"}
    if STATE.is_file():
        found = json.loads(STATE.read_text(encoding="utf-8"))
    if found["state"] == "running" and not alive:
        found["state"] = "lost"
    if found["state"] == "starting" and time.time() - found["started"] > PATIENCE:
        found["state"] = "lost"
    return found


def supervise(command: list[str], folder: Path, logs: Path | None) -> int:
    """Runs the training process to its end; returns its exit code.

    Args:
      command: the program and its arguments.
      folder: its working folder.
      logs: folder for a copy of the log at the end, if it can be written.
    """
    with LOCK.open("w", encoding="utf-8") as lock:
        acquire(lock)
        begun = {"command": command, "started": time.time(), "supervisor": os.getpid()}
        stopped: list[int] = []
        process: list[subprocess.Popen[bytes]] = []

        def forward(number: int, frame: object) -> None:
            stopped.append(number)
            for one in process:
                one.send_signal(signal.SIGTERM)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, forward)
        process.append(subprocess.Popen(command, cwd=folder, start_new_session=True))
        if stopped:  # between the two lines above
            process[0].send_signal(signal.SIGTERM)
        write(STATE, json.dumps({"state": "running", "pid": process[0].pid, **begun}))
        code = process[0].wait()
        end = {"state": "exited", "code": code, "stopped": bool(stopped), **begun}
        write(STATE, json.dumps(end))
        if logs:
            copy_log(logs)
    return code


def copy_log(logs: Path) -> None:
    """Copies the log to the run's results, under the machine's name and the time."""
    try:
        logs.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        shutil.copyfile(LOG, logs / f"{socket.gethostname()}-{stamp}.txt")
    except OSError as error:
        print(f"the log could not be copied to {logs}: {error}", flush=True)


def start(archive: str, logs: str, arguments: list[str]) -> None:
    """Starts training independently of this process; does nothing if it runs already."""
    if running():
        print("already running")
        return
    write(STATE, json.dumps({"state": "starting", "started": time.time()}))
    train = [str(HOME / "venv" / "bin" / "python"), "-m", "xception_jax.main", *arguments]
    me = [sys.executable, os.path.abspath(__file__), "supervise", str(code_of(archive)), logs]
    kept = compiled_beside(str(Path(logs).parent))
    with LOG.open("wb") as log:
        supervisor = subprocess.Popen(
            [*me, "--", *train],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={"JAX_COMPILATION_CACHE_DIR": kept, **os.environ, "PYTHONUNBUFFERED": "1"},
        )
    while state()["state"] == "starting" and supervisor.poll() is None:
        time.sleep(0.05)
    now = state()
    print(json.dumps(now))
    if now["state"] not in ("running", "exited"):
        said = LOG.read_text(errors="replace", encoding="utf-8").strip().splitlines() or ["nothing"]
        sys.exit(f"training could not be started: {said[-1]}")


def compiled_beside(workdir: str) -> str:
    """The folder for compiled programs of a run in a bucket: it outlives the machines.

    Anyone who can write to the bucket can make the machines run a program, here and in the run
    itself.
    """
    return str(Path(workdir).parent / ".compiled")


def follow(offset: int) -> None:
    """Prints the log from a byte on until the run ends, a line of JSON for each line of the log.

    A line is `{"offset": bytes up to here, "line": text}`; the last is `{"end": result of state}`.
    """
    while True:
        now = state()  # before the log is read, so that no line is missed
        with LOG.open("rb") if LOG.exists() else open(os.devnull, "rb") as log:
            log.seek(offset)
            for line in log:
                if not line.endswith(b"\n") and now["state"] == "running":
                    break
                offset += len(line)
                text = line.decode(errors="replace").rstrip("\n")
                print(json.dumps({"offset": offset, "line": text}), flush=True)
        if now["state"] not in ("running", "starting"):
            print(json.dumps({"end": now}), flush=True)
            return
        time.sleep(0.5)


def stop(grace: float) -> None:
    """Asks the run to save and stop; kills it if it takes longer than `grace` seconds."""
    now = state()
    if now["state"] == "running":
        os.kill(now["supervisor"], signal.SIGTERM)
        deadline = time.monotonic() + grace
        while running() and time.monotonic() < deadline:
            time.sleep(0.1)
        if running():
            os.killpg(now["pid"], signal.SIGKILL)
            while running():
                time.sleep(0.1)
    print(json.dumps(state()))


def container(command: list[str]) -> int:
    """Runs a command in the foreground, as `supervise`, but a stopped run exits with 75.

    The training command exits with 0 when it saves and stops on SIGTERM. A Kubernetes Job would
    count that as done and would not restart a preempted pod.
    """
    HOME.mkdir(parents=True, exist_ok=True)
    code = supervise(command, Path.cwd(), None)
    stopped = bool(json.loads(STATE.read_text(encoding="utf-8"))["stopped"])
    if code == 0 and stopped:
        return STOPPED
    return code if code >= 0 else 128 - code


def main() -> int:
    argv = sys.argv[1:]
    at = argv.index("--") if "--" in argv else len(argv)
    own, command = argv[:at], argv[at + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, *positionals in (
        ("mount", "bucket", "folder"),
        ("install", "archive", "extra"),
        ("start", "archive", "logs"),
        ("supervise", "folder", "logs"),
        ("follow", "offset"),
        ("stop", "grace"),
        ("state",),
        ("container",),
    ):
        one = verbs.add_parser(verb)
        for positional in positionals:
            one.add_argument(positional)
    args = parser.parse_args(own)
    if args.verb == "mount":
        mount(args.bucket, Path(args.folder))
    elif args.verb == "install":
        install(HOME / args.archive, args.extra)
    elif args.verb == "start":
        start(args.archive, args.logs, command)
    elif args.verb == "supervise":
        return abs(supervise(command, Path(args.folder), Path(args.logs)))
    elif args.verb == "follow":
        follow(int(args.offset))
    elif args.verb == "stop":
        stop(float(args.grace))
    elif args.verb == "state":
        print(json.dumps(state()))
    else:
        return container(command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
