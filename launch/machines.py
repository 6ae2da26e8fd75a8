"""Rented machines that one reaches by ssh: set up, started, followed, stopped, deleted.

What they have in common, whoever rents them out; `tpu_vm` and `compute_engine` say how they are
made, found and reached.
"""

import argparse
import dataclasses
import json
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from launch import source
from launch.commands import (
    CommandError,
    Commands,
    Parser,
    UnfinishedError,
    check_name,
    check_workdir,
    failure,
    missing,
    split_arguments,
    training_arguments,
)
from xception_jax.errors import RunError, UsageError

# Where the bucket is on every machine unless one wants it elsewhere.
MOUNT = "/mnt/bucket"
# Where the worker keeps its things, in the home folder.
HOME = "xception_jax"
WORKER = Path(__file__).with_name("worker.py")

VERBS = {
    "run": "all of it: create, install, start, follow, then delete if --delete-after",
    "create": "rent the machines and wait for them",
    "install": "mount the bucket and install the code on every machine",
    "start": "start training on every machine, or continue it",
    "follow": "show the log until the run ends",
    "status": "say how the machines are",
    "stop": "let the run save and end, on every machine",
    "fetch": "copy the run's results from the bucket to --to",
    "delete": "give the machines back: from then on nothing is billed",
}


class Fleet(Protocol):
    """Machines of one provider.

    Attributes:
      extra: of the package, for its accelerators: `tpu` or `cuda`.
      made: whether `create` was begun, so that something may be there to be deleted.
      delete_flags: that `delete` needs besides the zone and the project.
    """

    extra: str
    made: bool
    delete_flags: list[str]

    @property
    def workers(self) -> int:
        """Their number, one process each."""

    def create(self) -> None:
        """Makes what is not there; gives back first what was preempted."""

    def state(self) -> str:
        """`absent`, `ready`, `gone` (preempted or failed), or, in capitals, what it waits for."""

    def delete(self) -> None:
        """Deletes all that `create` made, as far as it is there."""

    def ssh(self, worker: int, remote: str) -> list[str]:
        """The command that has a worker's shell do `remote`."""

    def scp(self, worker: int, *files: str) -> list[str]:
        """The command that copies files into the worker's `HOME`."""


def remote(*words: str) -> str:
    """What a worker's shell has to be told so that it runs just these words."""
    return shlex.join(("python3", f"{HOME}/worker.py", *words))


def each(
    commands: Commands, fleet: Fleet, what: str, command: Callable[[int], list[str]]
) -> list[str]:
    """Runs a command for every worker, some at a time; returns what they wrote.

    Raises:
      RunError: it failed on some worker; all those are named.
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
    """Tells of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def wait_ready(commands: Commands, fleet: Fleet, poll: float) -> None:
    """Waits until the machines are there, in a queue for as long as it takes; says why it waits.

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
    """Makes the worker's folder on every machine; a fresh one takes a while to let one in."""
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
    commands: Commands, fleet: Fleet, args: argparse.Namespace, code: source.Source
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
    code: source.Source,
    arguments: list[str],
) -> None:
    """Starts training on every machine; where it runs already, that is left alone."""
    workdir = f"{args.mount}/{args.workdir}"
    arguments = training_arguments(arguments, workdir)
    command = remote("start", code.archive.name, f"{workdir}/logs", "--", *arguments)
    each(commands, fleet, "starting", lambda w: fleet.ssh(w, command))


End = dict[str, Any]
Events = queue.Queue[tuple[int, str | End]]


def unreachable(reason: str) -> End:
    """The end of a worker that no one knows the end of."""
    return {"state": "unreachable", "code": None, "reason": reason}


@dataclasses.dataclass
class Follower:
    """Shows the log of all workers as it comes, and takes care that none outlives another's end.

    Args:
      grace: seconds that the others have, after one failed, before they are stopped.
      patience: seconds that a worker may be out of reach before it counts as lost.
      poll: seconds between two tries to reach it.
    """

    commands: Commands
    fleet: Fleet
    grace: float
    patience: float
    poll: float

    def follow(self) -> dict[int, End]:
        """Returns how each worker ended: `{"state": ..., "code": ..., "stopped": ...}`."""
        if self.commands.dry_run:
            for worker in range(self.fleet.workers):
                self.commands.tell(self.fleet.ssh(worker, remote("follow", "0")))
            return {}
        events: Events = queue.Queue()
        for worker in range(self.fleet.workers):
            threading.Thread(target=self._follow_one, args=(worker, events), daemon=True).start()
        ends: dict[int, End] = {}
        deadline, stopping = float("inf"), False
        while len(ends) < self.fleet.workers:
            if time.monotonic() > deadline and not stopping:
                stopping = True
                self._stop_others(ends)
            try:
                worker, event = events.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(event, str):
                print(f"[{worker}] {event}" if self.fleet.workers > 1 else event, flush=True)
                continue
            ends[worker] = event
            if event.get("code") != 0 and deadline == float("inf"):
                say(f"worker {worker} {describe(event)}; the others have {self.grace:.0f} s to end")
                deadline = time.monotonic() + self.grace
        return ends

    def _one(self, worker: int, events: Events) -> None:
        """Reads one worker's log to its end, connecting anew wherever the connection breaks."""
        offset, lost_since = 0, None
        while True:
            command = self.fleet.ssh(worker, remote("follow", str(offset)))
            self.commands.tell(command)
            complaints: list[str] = []
            for line in lines_of(command, complaints):
                message = parse(line)
                if "end" in message:
                    events.put((worker, message["end"]))
                    return
                lost_since = None
                offset = message.get("offset", offset)
                events.put((worker, str(message["line"])))
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > self.patience:
                reason = failure(command, 255, "".join(complaints[-20:]))
                events.put((worker, unreachable(reason)))
                return
            say(f"worker {worker}: the connection broke; trying again")
            time.sleep(self.poll)

    def _follow_one(self, worker: int, events: Events) -> None:
        try:
            self._one(worker, events)
        except Exception as error:  # else the main thread would wait for this one for ever
            events.put((worker, unreachable(str(error))))

    def _stop_others(self, ends: dict[int, End]) -> None:
        left = [w for w in range(self.fleet.workers) if w not in ends]
        say(f"stopping worker {', '.join(map(str, left))}")
        for worker in left:
            try:
                self.commands.run(self.fleet.ssh(worker, remote("stop", "30")))
            except CommandError as error:  # its thread will find that it cannot be reached
                say(str(error))


def lines_of(command: list[str], complaints: list[str]) -> Iterator[str]:
    """The lines that a command writes, as they come; what it complains of goes into the list."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except FileNotFoundError:
        raise missing(command[0]) from None
    assert process.stdout is not None
    assert process.stderr is not None
    errors = process.stderr
    reader = threading.Thread(target=lambda: complaints.extend(errors), daemon=True)
    reader.start()
    with process:
        yield from process.stdout
        reader.join()


def parse(line: str) -> End:
    """A line of the worker's; what is not its own, as a banner, stands as a line of the log."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    return message if isinstance(message, dict) else {"line": line.rstrip("\n")}


def describe(end: End) -> str:
    """How a worker ended, in words."""
    if end["state"] == "unreachable":
        return f"cannot be reached: {end['reason']}"
    if end["state"] != "exited":
        return "was restarted or killed; its run is lost"
    if end["code"] == 0:
        return "was stopped and has saved" if end.get("stopped") else "is done"
    return f"ended with exit code {end['code']}"


def stop(commands: Commands, fleet: Fleet) -> None:
    """Lets the run save and end."""
    command = remote("stop", "600")
    for worker, text in enumerate(
        each(commands, fleet, "stopping", lambda w: fleet.ssh(w, command))
    ):
        if text:
            say(f"worker {worker} {describe(json.loads(text.splitlines()[-1]))}")


def fetch(commands: Commands, bucket: str, workdir: str, to: str, checkpoints: bool) -> None:
    """Copies a run's results from the bucket; what is there already is not copied again."""
    commands.run(["mkdir", "-p", to])
    without = [] if checkpoints else ["--exclude=(checkpoints|damaged)/.*"]
    url = f"gs://{bucket}/{workdir}"
    commands.run(["gcloud", "storage", "rsync", url, to, *without, "--recursive"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that all providers' commands share."""
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="; ".join(
        f"{verb}: {text}" for verb, text in VERBS.items()))  # fmt: skip
    parser.add_argument("name", help="of the machines: make one up for each run")
    parser.add_argument("--zone", required=True, help="where, as us-east5-b")
    parser.add_argument("--project", help="Google Cloud project; unless given, gcloud's own")
    parser.add_argument("--bucket", help="Cloud Storage bucket for the run, and perhaps the data")
    parser.add_argument("--mount", default=MOUNT, help="where the bucket is on the machines")
    parser.add_argument("--workdir", help="of the run, inside the bucket, as runs/imagenet")
    parser.add_argument("--spot", action="store_true", help="cheap machines that may be taken back")
    parser.add_argument("--network", help="VPC network; unless given, the project's default")
    parser.add_argument("--subnetwork", help="of the network")
    parser.add_argument("--service-account", help="as which the machines read and write the bucket")
    parser.add_argument(
        "--internal-ip", action="store_true", help="reach the machines by their internal addresses"
    )
    parser.add_argument(
        "--delete-after", action="store_true", help="run: delete the machines when the run ends"
    )
    parser.add_argument("--to", default=".", help="fetch: local folder")
    parser.add_argument(
        "--checkpoints", action="store_true", help="fetch: the checkpoints too, not only the logs"
    )
    parser.add_argument(
        "--grace", type=float, default=60, help="seconds the other workers have when one failed"
    )
    parser.add_argument(
        "--patience", type=float, default=300, help="seconds a worker may be out of reach"
    )
    parser.add_argument("--poll", type=float, default=10, help="seconds between two looks")
    parser.add_argument(
        "--dry-run", action="store_true", help="print every command, quoted; run nothing"
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def command(
    argv: list[str],
    parser: Parser,
    make: Callable[[Commands, argparse.Namespace], Fleet],
) -> dict[str, object] | None:
    """Does what a provider's command line says; returns what `--json` prints.

    Raises:
      UsageError: the command line will not do.
      RunError: a command, or the run on some worker, failed.
    """
    own, arguments = split_arguments(argv)
    args = parser.parse_args(own)
    check_name(args.name)
    if args.verb in ("run", "install", "start", "fetch") and not args.bucket:
        raise UsageError(f"{args.verb} needs --bucket: results on a rented machine end with it")
    if args.verb in ("run", "start", "fetch") and not args.workdir:
        raise UsageError(f"{args.verb} needs --workdir, the run's folder in the bucket")
    if args.bucket:
        args.bucket = args.bucket.removeprefix("gs://").rstrip("/")
    if args.workdir:
        args.workdir = check_workdir(args.workdir)
    if args.verb in ("run", "start"):
        training_arguments(arguments, args.mount)
    commands = Commands(args.dry_run)
    fleet = make(commands, args)
    ends = act(commands, fleet, args, arguments, parser.prog)
    result: dict[str, object] = {"name": args.name, **ends}
    if args.dry_run:
        result["commands"] = commands.printed
    return result if args.json else None


def act(
    commands: Commands,
    fleet: Fleet,
    args: argparse.Namespace,
    arguments: list[str],
    prog: str,
) -> dict[str, object]:
    """Does one verb; see `VERBS`."""
    verb = args.verb
    if verb == "run":
        return run(commands, fleet, args, arguments, prog)
    if verb == "create":
        with told_of_costs(fleet, args, prog):
            fleet.create()
            wait_ready(commands, fleet, args.poll)
    elif verb == "install":
        connect(commands, fleet, args.poll, args.patience)
        install(commands, fleet, args, source.pack())
    elif verb == "start":
        start(commands, fleet, args, source.pack(), arguments)
    elif verb == "follow":
        return conclude(commands, fleet, args)
    elif verb == "status":
        state = fleet.state()
        say(state)
        return {"state": state}
    elif verb == "stop":
        stop(commands, fleet)
    elif verb == "fetch":
        fetch(commands, args.bucket, args.workdir, args.to, args.checkpoints)
    else:
        fleet.delete()
    return {}


def run(
    commands: Commands,
    fleet: Fleet,
    args: argparse.Namespace,
    arguments: list[str],
    prog: str,
) -> dict[str, object]:
    """Everything, from machines to results; what is there and runs already is not done again."""
    code = source.pack()
    # A bucket that is not there is better known of before anything is rented.
    commands.run(["gcloud", "storage", "buckets", "describe", f"gs://{args.bucket}"])
    with told_of_costs(fleet, args, prog):
        fleet.create()
        wait_ready(commands, fleet, args.poll)
        connect(commands, fleet, args.poll, args.patience)
        install(commands, fleet, args, code)
        start(commands, fleet, args, code, arguments)
        return conclude(commands, fleet, args)


def conclude(commands: Commands, fleet: Fleet, args: argparse.Namespace) -> dict[str, object]:
    """Follows the run to its end and says what to do next.

    Raises:
      UnfinishedError: it was stopped, or its machines are lost.
      RunError: it failed on some worker.
    """
    ends = Follower(commands, fleet, args.grace, args.patience, args.poll).follow()
    failed = {worker: end for worker, end in ends.items() if end.get("code") != 0}
    if any(end["state"] != "exited" for end in failed.values()):
        raise UnfinishedError(
            f"worker {', '.join(map(str, failed))}: {describe(next(iter(failed.values())))}; the "
            f"machines are {fleet.state()}; run the same command again: it goes on from the "
            f"newest checkpoint in gs://{args.bucket}/{args.workdir}"
        )
    if failed:
        text = "; ".join(f"worker {worker} {describe(end)}" for worker, end in failed.items())
        raise RunError(f"{text}; above is its log, a copy is in the workdir's logs")
    if any(end.get("stopped") for end in ends.values()):
        raise UnfinishedError("stopped, and saved; the same command continues")
    return {"workers": ends}


class told_of_costs:  # noqa: N801 (used like a function)
    """Inside, machines are made: at the end they are deleted, or one is told that they cost money.

    `--delete-after` deletes them once the run ended, well or not; Ctrl-C leaves them and the run.
    """

    def __init__(self, fleet: Fleet, args: argparse.Namespace, prog: str):
        self._fleet, self._args, self._prog = fleet, args, prog

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        args = self._args
        again = [*self._prog.split(), "delete", args.name, f"--zone={args.zone}"]
        again += [f"--project={args.project}"] if args.project else []
        again += self._fleet.delete_flags
        reminder = f"the machines cost money; to delete them: {shlex.join(again)}"
        if args.delete_after and args.verb == "run" and not isinstance(error, KeyboardInterrupt):
            try:
                self._fleet.delete()
            except RunError:
                say(reminder)
                raise
        elif self._fleet.made and not args.dry_run:
            say(reminder)
