"""Result files: a CSV table below comments that say how to reproduce it."""

import csv
import datetime
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from xception_jax.errors import UsageError

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """The processor's name, the number of its cores, and the memory."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (
            line.split(":", 1)
            for line in cpuinfo.read_text(encoding="utf-8").splitlines()
            if ":" in line
        )
        name = next((v.strip() for k, v in lines if k.strip() == "model name"), name)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"


def versions(packages: Iterable[str]) -> str:
    """`name version` of each installed package, and Python's."""
    found = {name: metadata.version(name) for name in packages}
    return ", ".join(f"{k} {v}" for k, v in {"python": platform.python_version(), **found}.items())


def write(path: Path, rows: list[Mapping[str, object]], notes: Mapping[str, str]) -> None:
    """Writes rows with the same keys, below the command line, the date and the notes.

    Args:
      path: path of the CSV file.
      rows: at least one; the keys of the first are the columns.
      notes: notes such as `machine` and `versions`; each becomes a line `# name: text`.
    """
    script = Path(sys.argv[0])  # absolute under `python -m`
    command = shlex.join(["python", "-m", f"{script.parent.name}.{script.stem}", *sys.argv[1:]])
    head = {"command": command, "date": datetime.date.today().isoformat(), **notes}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Completely or not at all: an interrupted run leaves the earlier results.
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {name}: {text}\n" for name, text in head.items())
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(path)


def read(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The notes and the rows of a file that `write` made."""
    lines = path.read_text(encoding="utf-8").splitlines()
    notes = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return notes, list(csv.DictReader(line for line in lines if not line.startswith("# ")))


def earlier(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The notes and rows that a file keeps when new rows are added.

    Raises:
      UsageError: it was made on another machine; its note on the machine is for all rows.
    """
    if not path.exists():
        return {}, []
    notes, rows = read(path)
    if notes.get("machine") != machine():
        raise UsageError(
            f"{path} is of another machine ({notes.get('machine')}); give another file"
        )
    commands = [notes[name] for name in ("earlier", "command") if name in notes]
    made = "; ".join(dict.fromkeys("; ".join(commands).split("; ")))
    return {"earlier": made, **{k: v for k, v in notes.items() if k.endswith(" ran")}}, rows
