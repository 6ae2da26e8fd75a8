"""Runs or, with --dry-run, prints a launcher's commands; and error handling of launchers."""

import argparse
import difflib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from xception_jax.errors import RunError, UsageError
from xception_jax.utils.text import printable, shell_join

INSTALL = {
    "gcloud": "install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install",
    "kubectl": "gcloud components install kubectl",
    "sbatch": "run this on a login node of the cluster",
    "docker": "install Docker, https://docs.docker.com/engine/install",
}

# Fixes for errors of gcloud and kubectl, by a part of the message.
_FIXES = [
    (r"no more capacity|STOCKOUT|ZONE_RESOURCE_POOL_EXHAUSTED|does not have enough resources",
     "the zone has none free now; wait in a queue, or try another --zone or --spot"),
    (r"quota|RESOURCE_EXHAUSTED",
     "ask for quota at https://console.cloud.google.com/iam-admin/quotas, or use a smaller "
     "--type, another --zone or --spot"),
    (r"Invalid value for \[--zone\]|[Ll]ocation .* (is not found|does not exist)|Unknown zone"
     r"|Permission denied on 'locations/",
     "list the zones that have it: gcloud compute tpus locations list"),
    (r"[Aa]ccelerator.?[Tt]ype|[Mm]achine.?[Tt]ype",
     "list the types of the zone: gcloud compute tpus accelerator-types list --zone=ZONE"),
    (r'no matches for kind "JobSet"|the server doesn.t have a resource type "jobset"',
     "the cluster has no JobSet controller; install it: "
     "https://jobset.sigs.k8s.io/docs/installation"),
    (r"PERMISSION_DENIED|403|[Uu]nauthorized|gcloud auth login",
     "check that gcloud auth list shows the right account, and ask for the role"),
]  # fmt: skip


class CommandError(RunError):
    """A command that failed; `text` is its standard error."""

    def __init__(self, message: str, text: str = ""):
        super().__init__(message)
        self.text = text


class UnfinishedError(RunError):
    """The run was stopped or its machines are gone; the same command continues it."""


class Commands:
    """Runs commands, given as lists without a shell, or only prints them.

    Args:
      dry_run: print, do not run; `ask` then returns None.

    Attributes:
      printed: the commands of a dry run, in order.
    """

    def __init__(self, dry_run: bool = False):
        self.dry_run = dry_run
        self.printed: list[list[str]] = []
        self._lock = threading.Lock()

    def tell(self, argv: Sequence[str]) -> None:
        """Prints a command before it runs, quoted for a shell."""
        with self._lock:
            if self.dry_run:
                self.printed.append(list(argv))
            print(shell_join(argv), file=sys.stdout if self.dry_run else sys.stderr, flush=True)

    def run(self, argv: Sequence[str]) -> str:
        """Runs a command to its end and returns its standard output; "" in a dry run.

        Raises:
          CommandError: it failed; the message has its last line and the fix.
          UsageError: there is no such program.
        """
        self.tell(argv)
        if self.dry_run:
            return ""
        try:
            done = subprocess.run(
                list(argv),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                encoding="utf-8",
            )
        except FileNotFoundError:
            raise missing(argv[0]) from None
        if done.returncode:
            raise CommandError(failure(argv, done.returncode, done.stderr), done.stderr)
        return done.stdout

    def ask(self, argv: Sequence[str], absent: str = "NOT_FOUND|not found|NotFound") -> str | None:
        """Like `run`; None if the queried object does not exist, and in a dry run."""
        try:
            return self.run(argv) or None
        except CommandError as error:
            if re.search(absent, error.text):
                return None
            raise


def missing(program: str) -> UsageError:
    """The error for a program that is not on the PATH."""
    return UsageError(f"there is no {program} on the PATH; {INSTALL.get(program, 'install it')}")


def failure(argv: Sequence[str], code: int, text: str) -> str:
    """One line: the failed command, its last message, and the fix if it is known."""
    words = [word for word in argv if not word.startswith("-")][:5]
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [f"exit code {code}"]
    said = next((line for line in lines if line.startswith("ERROR")), lines[-1])
    fix = next((fix for pattern, fix in _FIXES if re.search(pattern, text)), None)
    return f"{' '.join(words)} failed: {said}" + (f"; {fix}" if fix else "")


class Parser(argparse.ArgumentParser):
    """Reports a bad flag in one line with the nearest one; --help shows the module's docstring.

    Args:
      doc: the module's docstring, with an example.
    """

    def __init__(self, doc: str = "", **more: object):
        super().__init__(
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **more,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError`."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            names = [name for action in self._actions for name in action.option_strings]
            close = difflib.get_close_matches(unknown[1], names, n=1)
            message += f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"{message}; {self.prog} --help shows the flags")


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launcher's own arguments, and those after `--`, which go to `xception_jax.main`."""
    if "--" not in argv:
        return list(argv), []
    at = list(argv).index("--")
    return list(argv[:at]), list(argv[at + 1 :])


def training_arguments(arguments: Sequence[str], workdir: str, processes: int) -> list[str]:
    """The arguments for `xception_jax.main`: the user's, unchanged, and those of the launcher.

    Args:
      arguments: the user's arguments.
      workdir: the folder of the run.
      processes: number of processes that the launcher starts. If a run finds another number, it
        refuses to train; otherwise each process could train alone in the same workdir.

    Raises:
      UsageError: there is no config, or there is a workdir, which the launcher must know.
    """
    names = {argument.split("=", 1)[0].lstrip("-") for argument in arguments}
    if "workdir" in names:
        raise UsageError("--workdir goes before the --, to the launcher, which passes it on")
    if "config" not in names:
        raise UsageError("the config is missing. Add: -- --config=configs/imagenet.py")
    return [f"--num_processes={processes}", *arguments, f"--workdir={workdir}"]


def check_name(name: str, what: str = "name", most: int = 61) -> str:
    """Returns the name if Google Cloud and Kubernetes allow it.

    Raises:
      UsageError: it has other characters, or too many.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > most:
        raise UsageError(
            f"{what} {name!r}: only a-z, 0-9 and -, beginning with a letter, not ending with -, "
            f"at most {most} of them"
        )
    return name


def check_workdir(workdir: str) -> str:
    """The path of a run inside the bucket, without a slash at its ends.

    Raises:
      UsageError: it is absolute, empty, or leads out of the bucket.
    """
    parts = workdir.strip("/").split("/")
    if workdir.startswith(("/", "gs:")) or {"", ".", ".."} & set(parts) or "\n" in workdir:
        raise UsageError(f"--workdir={workdir}: give a path inside the bucket, as runs/imagenet")
    return "/".join(parts)


def main(command: Callable[[list[str]], dict[str, object] | None]) -> NoReturn:
    """Runs a launcher and ends the process.

    Exit codes: 0 done; 1 failed; 2 bad usage; 75 (EX_TEMPFAIL) not finished, run it again; 130
    Ctrl-C.
    """
    try:
        result = command(sys.argv[1:])
    except UsageError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(75 if isinstance(error, UnfinishedError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    if result is not None:
        print(json.dumps(result))
    sys.exit(0)
