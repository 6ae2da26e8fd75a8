"""Rewrites tables in docs/ from the result files: python -m benchmarks.tables [--check]

Text between `<!-- table: NAME -->` and `<!-- end -->` is generated from results/NAME.csv.
"""

import argparse
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import arguments, record

_DOCUMENTS = Path(__file__).parents[1] / "docs"
_MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
# The columns that identify a work of benchmarks/step.py.
_WORK = ("model", "work", "side", "batch", "dtype", "allocator")

Rows = Sequence[Mapping[str, str]]


def main() -> int:
    """Rewrites the documents; with `--check`, returns 1 if that would change one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables",
        description="Rewrites the tables of docs/*.md from the result files.",
        epilog="example: python -m benchmarks.tables --check",
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit code 1 if out of date"
    )
    parser.add_argument("--document", type=Path, help="only this document")
    parser.add_argument("--results", type=Path, default=record.RESULTS, help="folder of the CSVs")
    options = parser.parse_args()
    stale = 0
    for path in [options.document] if options.document else sorted(_DOCUMENTS.glob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = rewritten(old, options.results)
        if new == old:
            continue
        if options.check:
            print(f"{path} is out of date; run: python -m benchmarks.tables")
            stale = 1
        else:
            path.write_text(new, encoding="utf-8")
    return stale


def rewritten(text: str, results: Path) -> str:
    """A document's text with its tables generated from the CSV files in a folder."""

    def table(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        path = results / f"{name}.csv"
        if not path.exists():
            raise SystemExit(f"the document has a table {name!r}, and there is no {path}")
        return f"{begin}{of_file(path)}\n{end}"

    return _MARKED.sub(table, text)


def of_file(path: Path) -> str:
    """A result file as a Markdown table, with a line on its origin below."""
    notes, rows = record.read(path)
    if rows and {*_WORK, "contender"} <= set(rows[0]):
        lines = of_works(rows, "wall" if notes.get("platform") == "gpu" else "cpu")
    elif rows and {"set", "seed", "contender"} <= set(rows[0]):
        lines = of_seeds(rows)
    else:
        # A file with partial sums is shown by its totals.
        rows = [{k: v for k, v in row.items() if k != "part"} for row in rows
                if row.get("part", "all") == "all"]  # fmt: skip
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    origin = ", ".join(notes[name] for name in ("machine", "date") if name in notes)
    made = "; ".join(notes[name] for name in ("earlier", "command") if name in notes)
    return f"{markdown(lines)}\n\n{origin}: `{made}`"


def of_works(rows: Rows, clock: str) -> list[list[str]]:
    """Contenders by works: milliseconds an image, their ratio to ours and its spread.

    Below them, our shares of the machine's peak rates.

    Args:
      rows: rows of benchmarks/step.py.
      clock: the clock of the milliseconds, `cpu` or `wall`.
    """
    works = list(dict.fromkeys(tuple(row[name] for name in _WORK) for row in rows))
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    # Model, dtype and allocator are in the heading only if they differ between works.
    told = [i for i, values in enumerate(zip(*works, strict=True)) if len(set(values)) > 1]
    headings = []
    for work in works:
        _, kind, side, batch, *_ = work
        others = [work[i] for i in told if _WORK[i] in ("model", "dtype", "allocator")]
        headings.append(", ".join([f"{kind} {side}, batch {batch}", *others]))
    cells = {
        (row["contender"], tuple(row[name] for name in _WORK)): _cell(row, clock) for row in rows
    }
    body = [[name, *(cells.get((name, work), "") for work in works)] for name in contenders]
    ours = {tuple(row[name] for name in _WORK): row for row in rows if row["contender"] == "ours"}
    for share in ("share_of_peak", "share_of_bandwidth"):
        values = [ours[work].get(share, "") if work in ours else "" for work in works]
        shown = [f"{float(value):.0%}" if value else "" for value in values]
        if any(shown):
            body.append([f"ours: {share.replace('_', ' ')}", *shown])
    return [[f"{clock} ms an image (ratio, spread)", *headings], *body]


def of_seeds(rows: Rows) -> list[list[str]]:
    """Contenders by sets of pictures: the mean error over the seeds, and the minutes.

    Args:
      rows: rows of benchmarks/finetune.py.
    """

    def place(row: Mapping[str, str]) -> tuple[str, ...]:
        return row["set"], row["train"], row["side"]

    def who(row: Mapping[str, str]) -> str:
        return " ".join(filter(None, (row["contender"], row["changes"])))

    sets = list(dict.fromkeys(map(place, rows)))
    body = []
    for name in dict.fromkeys(map(who, rows)):
        cells = []
        for one in sets:
            own = [row for row in rows if who(row) == name and place(row) == one]
            errors = [100 * float(row["error"]) for row in own]
            if not own:
                cells.append("")
                continue
            minutes = statistics.mean(float(row["minutes"]) for row in own)
            spread = f"{min(errors):.1f} to {max(errors):.1f}"
            cells.append(f"{statistics.mean(errors):.1f} ({spread}), {minutes:.1f} min")
        body.append([name, *cells])
    seeds = len({row["seed"] for row in rows})
    heading = f"mean error in % over {seeds} seeds (lowest to highest), mean time"
    told = (f"{name}, {train} pictures of {side} pixels" for name, train, side in sets)
    return [[heading, *told], *body]


def _cell(row: Mapping[str, str], clock: str) -> str:
    median = row[f"{clock}_ms_per_image_median"]
    if row["contender"] == "ours" or not row[f"ratio_{clock}"]:
        return median
    ratio, least, most = (float(row[f"ratio_{clock}{end}"]) for end in ("", "_min", "_max"))
    return f"{median} ({ratio:.2f}, {least:.2f} to {most:.2f})"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a table; the first line is the heading."""
    head, *body = (f"| {' | '.join(cells)} |" for cells in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *body])


if __name__ == "__main__":
    arguments.run(main)
