"""The TPU compiler's figures for the training step, without a TPU.

    pip install -e '.[plan]'
    python -m benchmarks.tpu_compile --chips v5e:2x2 v6e:2x2            # a quarter of an hour
    python -m benchmarks.tpu_compile --blocks short --check             # the gate: minutes

The real step of `configs/imagenet.py`, in bfloat16, is compiled for a topology, and libtpu writes
the schedule of each operation. The time of an operation is that of its schedule or of its bytes at
the memory's bandwidth, whichever is longer. The time of the step is the sum. This ranks variants of
a program; as absolute time it is unproven, since it was never compared with a device.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.arguments import assignment
from xception_jax.errors import RunError, UsageError
from xception_jax.planning.tpu import chips, compiler
from xception_jax.planning.tpu.chips import CHIPS, Chip
from xception_jax.planning.tpu.costs import Cost, Program, exposed_cycles

# A copy of fewer bytes is an index, a scalar, or a row of channels.
_REAL_COPY = 2_000_000

Row = dict[str, object]


# Figures that `--check` compares: name, and allowed relative growth.
TOLERANCES = {"larger_mcycles": 0.03, "temporary_gb": 0.05, "all_reduces": 0.0, "real_copies": 0.0,
              "without_schedule": 0.1}  # fmt: skip
_KEYS = ("chips", "blocks", "batch", "side", "microbatch", "overrides")


def measure(request: Mapping[str, object]) -> list[Row]:
    """The rows of one topology: `all`, then by stage and direction, then by class of operation."""
    topology = chips.parse(str(request["chips"]))
    told = {**request, **topology.request, "schedules": True}
    answer = compiler.compile_program(told, module="benchmarks.tpu_program")
    if not answer.cycles:
        raise RunError("libtpu wrote no schedules; is it another version?")
    costs = list(Program(answer.hlo, answer.cycles).costs())
    groups: dict[str, list[Cost]] = {"all": costs}
    groups |= _grouped(costs, lambda c: f"{c.stage} {'backward' if c.backward else 'forward'}")
    groups |= _grouped(costs, lambda c: f"class {c.kind}")
    fields = {name: request[name] for name in _KEYS if name in request}
    fields |= {"blocks": "short" if request["short"] else "all"}
    fields["overrides"] = " ".join(f"{k}={v}" for k, v in dict(request["overrides"]).items())
    rows = [{**{k: fields[k] for k in _KEYS}, "part": part, **_sums(members, topology.chip)}
            for part, members in groups.items()]  # fmt: skip
    total = _total(rows[0], costs, topology.chip, int(request["batch"]), answer.figures)
    return [
        {**row, **(total if i == 0 else dict.fromkeys(total, ""))} for i, row in enumerate(rows)
    ]


def _grouped(costs: Iterable[Cost], key: Callable[[Cost], str]) -> dict[str, list[Cost]]:
    groups: dict[str, list[Cost]] = defaultdict(list)
    for cost in costs:
        groups[key(cost)].append(cost)
    return dict(sorted(groups.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> tuple[str, int, str]:
    """A sort key that puts `block2` before `block10`."""
    first, _, rest = name.partition(" ")
    letters = first.rstrip("0123456789")
    return letters, int(first[len(letters) :] or 0), rest


def _sums(costs: list[Cost], chip: Chip) -> Row:
    larger = sum(max(c.cycles, chip.memory_cycles(c.bytes)) for c in costs)
    return {
        "operations": len(costs),
        "schedule_mcycles": round(sum(c.cycles for c in costs) / 1e6, 3),
        "bytes_gb": round(sum(c.bytes for c in costs) / 1e9, 3),
        "larger_mcycles": round(larger / 1e6, 3),
        "classic_mcycles": round(
            sum(c.rounds * c.operation.classic_cycles for c in costs) / 1e6, 3
        ),
    }


def _total(sums: Row, costs: list[Cost], chip: Chip, batch: int, figures: Mapping[str, Any]) -> Row:
    seconds = float(str(sums["larger_mcycles"])) / chip.ghz / 1e3
    prefetch = chip.memory_cycles(sum(c.bytes for c in costs if c.kind == "prefetch"))
    hidden = prefetch - exposed_cycles(costs, chip.memory_cycles)
    copies = [c for c in costs if c.kind == "copy" and c.bytes / c.rounds > _REAL_COPY]
    return {
        "images_per_s_chip": round(batch / seconds, 1),
        # Asynchronous copies between HBM and on-chip memory overlap with computation. The first
        # figure counts only the part that does not overlap, the second none.
        "overlapped_mcycles": round(float(str(sums["larger_mcycles"])) - hidden / 1e6, 3),
        "without_prefetch_mcycles": round(float(str(sums["larger_mcycles"])) - prefetch / 1e6, 3),
        "temporary_gb": round(figures["memory"]["temporary"] / 1e9, 3),
        "arguments_gb": round(figures["memory"]["arguments"] / 1e9, 3),
        "all_reduces": sum(c.kind == "all-reduce" for c in costs),
        "real_copies": len(copies),
        "without_schedule": sum(c.cycles == 0 and c.kind not in ("prefetch", "all-reduce")
                                for c in costs),
        "compile_s": round(figures["compile_s"]),
    }  # fmt: skip


def worse(row: Mapping[str, object], before: Iterable[Mapping[str, str]]) -> str | None:
    """The first figure that is worse than committed for the same program; None: none is."""
    same = [old for old in before if all(str(row[k]) == old[k] for k in (*_KEYS, "part"))]
    if not same:
        return f"{row['chips']}: no committed figures for these arguments; write them with --output"
    for name, tolerance in TOLERANCES.items():
        now, then = float(str(row[name])), float(same[0][name])
        if now > then * (1 + tolerance):
            allowed = f"{then:g} is committed (+{tolerance:.0%} allowed)"
            return f"{row['chips']}: {name} is {now:g}; {allowed}"
    return None


def _table(rows: list[Row]) -> str:
    columns = (
        "part",
        "operations",
        "schedule_mcycles",
        "bytes_gb",
        "larger_mcycles",
        "classic_mcycles",
    )
    lines = [f"{columns[0]:22}" + "".join(f"{name:>18}" for name in columns[1:])]
    lines += [f"{row['part']:22}" + "".join(f"{row[c]:>18}" for c in columns[1:]) for row in rows]
    head = rows[0]
    lines.append(
        ", ".join(f"{k} {head[k]}" for k in list(head)[list(head).index("images_per_s_chip") :])
    )
    return "\n".join(lines)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tpu_compile",
        description=(__doc__ or "").split("\n\n")[0],
        epilog="example: python -m benchmarks.tpu_compile --chips v5e:2x2 --batch 128",
    )
    add = parser.add_argument
    add(
        "--chips",
        nargs="+",
        default=["v5e:2x2", "v6e:2x2"],
        metavar="KIND:SHAPE",
        help=f"topologies; kinds: {', '.join(CHIPS)} (default: %(default)s)",
    )
    add("--batch", type=int, default=64, help="images a chip (default: %(default)s)")
    add("--side", type=int, default=299, help="side of the images, pixels (default: %(default)s)")
    add("--microbatch", type=int, default=0, help="optimizer.microbatch (default: 0, no limit)")
    add(
        "--override",
        type=assignment,
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="fields of config.model",
    )
    add(
        "--blocks",
        choices=("all", "short"),
        default="all",
        help="short: the stem, one block of the entry flow and two of the middle flow",
    )
    add("--check", action="store_true", help="exit 1 if a figure is worse than the committed one")
    add("--output", type=Path, help="CSV file to write")
    add("--append", action="store_true", help="keep other rows of an existing file")
    return parser.parse_args(argv)  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Measures, prints, writes, checks. Raises `UsageError` and `RunError`."""
    compiler.check_installed()
    for name in args.chips:
        chips.parse(name)
    if args.append and not args.output:
        raise UsageError("--append needs --output")
    short = args.blocks == "short"
    committed = record.RESULTS / ("tpu_short.csv" if short else "tpu_compile.csv")
    before = record.read(committed)[1] if args.check and committed.exists() else []
    earlier, kept = record.earlier(args.output) if args.append else ({}, [])
    rows: list[Row] = []
    for name in args.chips:
        request = {
            "chips": name,
            "batch": args.batch,
            "side": args.side,
            "microbatch": args.microbatch,
            "short": short,
            "overrides": dict(args.override),
        }
        found = measure(request)
        print(f"{name}\n{_table(found)}\n", flush=True)
        rows += found
    if args.output:
        notes = {
            "machine": record.machine(),
            "versions": record.versions(["jax", "libtpu", "flax"]),
            **earlier,
        }
        made = {tuple(str(row[k]) for k in _KEYS) for row in rows}
        rest = [row for row in kept if tuple(row[k] for k in _KEYS) not in made]
        record.write(args.output, [*rest, *rows], notes)
    if args.check:
        for row in rows:
            complaint = worse(row, before) if row["part"] == "all" else None
            if complaint:
                raise RunError(complaint)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    try:
        run(arguments(argv))
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
