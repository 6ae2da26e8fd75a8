"""Machines that are reached by ssh, and operations on all of them.

`tpu_vm` and `compute_engine` create, find and reach the machines of their provider.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from launch import source
from launch.commands import CommandError, Commands, training_arguments
from xception_jax.errors import RunError
from xception_jax.utils.text import printable

# Default mount point of the bucket on every machine.
MOUNT = "/mnt/bucket"
# The worker's folder in the home folder.
HOME = "xception_jax"
WORKER = Path(__file__).with_name("worker.py")


class Fleet(Protocol):
    """Machines of one provider.

    Attributes:
      extra: the package's extra for the accelerators: `tpu` or `cuda`.
      made: whether `create` has started, so that machines may exist.
      delete_flags: flags of `delete` other than zone and project.
    """

    extra: str
    made: bool
    delete_flags: list[str]

    @property
    def workers(self) -> int:
        """Number of machines, with one process each."""

    def create(self) -> None:
        """Creates missing machines; first deletes preempted ones."""

    def state(self) -> str:
        """`absent`, `ready`, `gone` (preempted or failed), or the provider's state, in capitals."""

    def delete(self) -> None:
        """Deletes everything that `create` made, if it exists."""

    def ssh(self, worker: int, remote: str) -> list[str]:
        """The command that runs `remote` in a worker's shell."""

    def scp(self, worker: int, *files: str) -> list[str]:
        """The command that copies files into the worker's `HOME`."""


def remote(*words: str) -> str:
    """The worker's command with these arguments, quoted for its shell."""
    return shlex.join(("python3", f"{HOME}/worker.py", *words))


def each(
    commands: Commands, fleet: Fleet, what: str, command: Callable[[int], list[str]]
) -> list[str]:
    """Runs a command for every worker, several in parallel; returns their outputs.

    Raises:
      RunError: it failed on some workers, which the message names.
    """
    if commands.dry_run:
        return [commands.run(command(worker)) for worker in range(fleet.workers)]

    def one(worker: int) -> str | CommandError:
        try:
            written = commands.run(command(worker))
        except CommandError as error:
            return error
        say(f"worker {worker}: {what} done")
        return written

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(one, range(fleet.workers)))
    failed = {w: text for w, text in enumerate(results) if isinstance(text, CommandError)}
    if failed:
        names = ", ".join(map(str, failed))
        first = next(iter(failed.values()))
        raise RunError(f"{what} failed on worker {names} of {fleet.workers}: {first}")
    return [text for text in results if isinstance(text, str)]


def say(text: str) -> None:
    """Prints progress on standard error."""
    print(printable(text, keep="\n"), file=sys.stderr, flush=True)


def wait_ready(commands: Commands, fleet: Fleet, poll: float) -> None:
    """Waits until the machines are ready, without a time limit; prints why it waits.

    Raises:
      RunError: the request was refused, or the machines are gone.
    """
    begun, last = time.monotonic(), ""
    while (state := fleet.state()) != "ready" and not commands.dry_run:
        if state in ("gone", "absent"):
            raise RunError(f"the machines are {state}, after {last or 'nothing'}")
        if state != last:
            say(f"{state}, after {time.monotonic() - begun:.0f} s; Ctrl-C leaves it waiting")
        last = state
        time.sleep(poll)


def connect(commands: Commands, fleet: Fleet, poll: float, patience: float) -> None:
    """Makes the worker's folder on every machine; retries, since a new machine needs time."""
    deadline = time.monotonic() + patience
    while True:
        try:
            each(commands, fleet, "ssh", lambda w: fleet.ssh(w, shlex.join(("mkdir", "-p", HOME))))
            return
        except RunError as error:
            if time.monotonic() > deadline:
                raise
            say(f"{error}; trying again")
            time.sleep(poll)


def install(
    commands: Commands, fleet: Fleet, args: argparse.Namespace, code: source.Checkout
) -> None:
    """Mounts the bucket and installs the code on every machine."""
    say(str(code))
    if not commands.dry_run:
        code.write()
    files = (str(code.archive), str(WORKER))
    each(commands, fleet, "copying", lambda w: fleet.scp(w, *files))
    mount = remote("mount", args.bucket, args.mount)
    each(commands, fleet, "mounting", lambda w: fleet.ssh(w, mount))
    command = remote("install", code.archive.name, fleet.extra)
    each(commands, fleet, "installing", lambda w: fleet.ssh(w, command))


def start(
    commands: Commands,
    fleet: Fleet,
    args: argparse.Namespace,
    code: source.Checkout,
    arguments: list[str],
) -> None:
    """Starts training on every machine where it is not running already."""
    workdir = f"{args.mount}/{args.workdir}"
    arguments = training_arguments(arguments, workdir, fleet.workers)
    command = remote("start", code.archive.name, f"{workdir}/logs", "--", *arguments)
    each(commands, fleet, "starting", lambda w: fleet.ssh(w, command))
