"""The command line for rented machines, from creation to deletion."""

import argparse
import json
from collections.abc import Callable

from launch import source
from launch.commands import (
    Commands,
    Parser,
    UnfinishedError,
    check_name,
    check_workdir,
    split_arguments,
    training_arguments,
)
from launch.fleet import MOUNT, Fleet, connect, each, install, remote, say, start, wait_ready
from launch.follower import Follower, describe
from xception_jax.errors import RunError, UsageError
from xception_jax.utils import paths
from xception_jax.utils.text import shell_join

VERBS = {
    "run": "everything: create, install, start, follow, then delete if --delete-after",
    "create": "rent the machines and wait for them",
    "install": "mount the bucket and install the code on every machine",
    "start": "start training on every machine, or continue it",
    "follow": "show the log until the run ends",
    "status": "print the state of the machines",
    "stop": "make the run save and end, on every machine",
    "fetch": "copy the run's results from the bucket to --to",
    "delete": "delete the machines, which ends their costs",
}


def stop(commands: Commands, fleet: Fleet) -> None:
    """Makes the run save and end."""
    command = remote("stop", "600")
    for worker, text in enumerate(
        each(commands, fleet, "stopping", lambda w: fleet.ssh(w, command))
    ):
        if text:
            say(f"worker {worker} {describe(json.loads(text.splitlines()[-1]))}")


def fetch(commands: Commands, bucket: str, workdir: str, to: str, checkpoints: bool) -> None:
    """Copies a run's results from the bucket, except files that are already there."""
    to = str(paths.local("--to", to))
    commands.run(["mkdir", "-p", to])
    without = [] if checkpoints else ["--exclude=(checkpoints|damaged)/.*"]
    url = f"gs://{bucket}/{workdir}"
    commands.run(["gcloud", "storage", "rsync", url, to, *without, "--recursive"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that all providers' commands share."""
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="; ".join(
        f"{verb}: {text}" for verb, text in VERBS.items()))  # fmt: skip
    parser.add_argument("name", help="name of the machines: choose a new one for each run")
    parser.add_argument("--zone", required=True, help="zone of the machines, as us-east5-b")
    parser.add_argument("--project", help="Google Cloud project; by default gcloud's own")
    parser.add_argument("--bucket", help="Cloud Storage bucket for the run, and perhaps the data")
    parser.add_argument("--mount", default=MOUNT, help="mount point of the bucket on the machines")
    parser.add_argument("--workdir", help="folder of the run in the bucket, as runs/imagenet")
    parser.add_argument(
        "--spot", action="store_true", help="use cheap spot machines, which may be preempted"
    )
    parser.add_argument("--network", help="VPC network; by default the project's own")
    parser.add_argument("--subnetwork", help="subnetwork of the network")
    parser.add_argument(
        "--service-account", help="account with which the machines read and write the bucket"
    )
    parser.add_argument(
        "--internal-ip", action="store_true", help="reach the machines by their internal addresses"
    )
    parser.add_argument(
        "--delete-after", action="store_true", help="run: delete the machines when the run ends"
    )
    parser.add_argument("--to", default=".", help="fetch: local folder")
    parser.add_argument(
        "--checkpoints", action="store_true", help="fetch: also the checkpoints, not only the logs"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=60,
        help="seconds until the other workers are stopped after one failed",
    )
    parser.add_argument(
        "--patience", type=float, default=300, help="seconds that a worker may be unreachable"
    )
    parser.add_argument("--poll", type=float, default=10, help="seconds between two status checks")
    parser.add_argument(
        "--dry-run", action="store_true", help="print every command, quoted; run nothing"
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")


def command(
    argv: list[str],
    parser: Parser,
    make: Callable[[Commands, argparse.Namespace], Fleet],
) -> dict[str, object] | None:
    """Runs a provider's command line; returns the output for `--json`.

    Raises:
      UsageError: the command line is invalid.
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
    commands = Commands(args.dry_run)
    fleet = make(commands, args)
    if args.verb in ("run", "start"):
        training_arguments(arguments, args.mount, fleet.workers)
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
    """Runs one verb; see `VERBS`."""
    verb = args.verb
    if verb == "run":
        return run(commands, fleet, args, arguments, prog)
    if verb == "create":
        with reminder_of_costs(fleet, args, prog):
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
    """Runs everything from machines to results; skips steps that are already done."""
    code = source.pack()
    # First, so that a missing bucket is reported before anything is rented.
    commands.run(["gcloud", "storage", "buckets", "describe", f"gs://{args.bucket}"])
    with reminder_of_costs(fleet, args, prog):
        fleet.create()
        wait_ready(commands, fleet, args.poll)
        connect(commands, fleet, args.poll, args.patience)
        install(commands, fleet, args, code)
        start(commands, fleet, args, code, arguments)
        return conclude(commands, fleet, args)


def conclude(commands: Commands, fleet: Fleet, args: argparse.Namespace) -> dict[str, object]:
    """Follows the run to its end; an error says what to do next.

    Raises:
      UnfinishedError: it was stopped, or its machines are lost.
      RunError: it failed on some worker.
    """
    ends = Follower(commands, fleet, args.grace, args.patience, args.poll).follow()
    failed = {worker: end for worker, end in ends.items() if end.get("code") != 0}
    if any(end["state"] != "exited" for end in failed.values()):
        raise UnfinishedError(
            f"worker {', '.join(map(str, failed))}: {describe(next(iter(failed.values())))}; the "
            f"machines are {fleet.state()}; run the same command again: it resumes from the newest "
            f"checkpoint in the workdir"
        )
    if failed:
        text = "; ".join(f"worker {worker} {describe(end)}" for worker, end in failed.items())
        raise RunError(f"{text}; above is its log, a copy is in the workdir's logs")
    if any(end.get("stopped") for end in ends.values()):
        raise UnfinishedError("stopped, and saved; the same command continues")
    return {"workers": ends}


class reminder_of_costs:  # noqa: N801 (used like a function)
    """A context that creates machines: on exit it deletes them or reminds of their costs.

    `--delete-after` deletes them when the run has ended or failed. Ctrl-C leaves machines and run.
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
        reminder = f"the machines cost money; to delete them: {shell_join(again)}"
        if args.delete_after and args.verb == "run" and not isinstance(error, KeyboardInterrupt):
            try:
                self._fleet.delete()
            except RunError:
                say(reminder)
                raise
        elif self._fleet.made and not args.dry_run:
            say(reminder)
