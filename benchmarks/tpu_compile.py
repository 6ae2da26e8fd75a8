"""What the TPU compiler says of the training step, without a TPU.

    pip install -e . libtpu
    python -m benchmarks.tpu_compile --chips v5e:2x2 v6e:2x2            # a quarter of an hour
    python -m benchmarks.tpu_compile --blocks short --check             # the gate: minutes

The real step of `configs/imagenet.py`, in bfloat16, is compiled for a topology; libtpu writes down
the schedule of each operation as it goes. An operation is taken to last as long as its schedule,
or as its bytes take at the memory's bandwidth, whichever is longer; the step as the sum. That
ranks variants of a program; as absolute time it is unproven, since no device has been seen.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from benchmarks import record
from benchmarks.arguments import assignment
from benchmarks.tpu_bundles import schedules
from benchmarks.tpu_hlo import Cost, Program, exposed_cycles
from xception_jax.errors import UsageError

_DUMP = (
    "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=packed-bundles-post-ra"
)
# A copy of fewer bytes is an index, a scalar, or a row of channels.
_REAL_COPY = 2_000_000

Row = dict[str, object]


@dataclass(frozen=True)
class Chip:
    """Rates of a chip: clock in GHz, inferred from its peak rate, and memory in GB/s."""

    ghz: float
    gb_per_s: float

    def memory_cycles(self, count: int) -> float:
        """Cycles in which the memory moves so many bytes."""
        return count * self.ghz / self.gb_per_s


CHIPS = {"v5e": Chip(1.5, 819), "v6e": Chip(1.75, 1640)}

# Figures that `--check` compares: name, and by how much of itself each may grow.
TOLERANCES = {"larger_mcycles": 0.03, "temporary_gb": 0.05, "all_reduces": 0.0, "real_copies": 0.0,
              "without_schedule": 0.1}  # fmt: skip
_KEYS = ("chips", "blocks", "batch", "side", "microbatch", "overrides")


class FailureError(Exception):
    """Ends the command with a line for the user and an exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def compile_step(request: Mapping[str, object], folder: Path) -> tuple[str, dict[str, float]]:
    """Compiles in a process of its own; the scheduled HLO, and the executable's own figures.

    The process takes no device, so it may load libtpu beside another that does.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is not compiled dumps nothing
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {_DUMP.format(folder)}",
    }
    ask = json.dumps({**request, "folder": str(folder)})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tpu_program", ask],
        env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        killed = f"ended by signal {-done.returncode}"
        reason = killed if done.returncode < 0 else lines[-1]  # the last line of the traceback
        raise FailureError(f"{request['chips']} does not compile: {reason[:300]}", 1)
    hlo = (folder / "program.hlo").read_text()
    return hlo, json.loads((folder / "program.json").read_text())


def measure(request: Mapping[str, object]) -> list[Row]:
    """The rows of one topology: `all`, then by stage and direction, then by class of operation."""
    chip = CHIPS[str(request["chips"]).split(":")[0]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hlo, answer = compile_step(request, folder)
        found = schedules(folder)
        if not found:
            raise FailureError("libtpu left no schedules; is it another version's dump?", 1)
        program = Program(hlo, found)
    costs = list(program.costs())
    groups: dict[str, list[Cost]] = {"all": costs}
    groups |= _grouped(costs, lambda c: f"{c.stage} {'backward' if c.backward else 'forward'}")
    groups |= _grouped(costs, lambda c: f"class {c.kind}")
    fields = {name: request[name] for name in _KEYS if name in request}
    fields |= {"blocks": "short" if request["short"] else "all"}
    fields["overrides"] = " ".join(f"{k}={v}" for k, v in dict(request["overrides"]).items())
    rows = [{**{k: fields[k] for k in _KEYS}, "part": part, **_sums(members, chip)}
            for part, members in groups.items()]  # fmt: skip
    whole = _whole(rows[0], costs, chip, int(request["batch"]), answer)
    return [
        {**row, **(whole if i == 0 else dict.fromkeys(whole, ""))} for i, row in enumerate(rows)
    ]


def _grouped(costs: Iterable[Cost], key: Callable[[Cost], str]) -> dict[str, list[Cost]]:
    groups: dict[str, list[Cost]] = defaultdict(list)
    for cost in costs:
        groups[key(cost)].append(cost)
    return dict(sorted(groups.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> tuple[str, int, str]:
    """`block2` before `block10`."""
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


def _whole(
    sums: Row, costs: list[Cost], chip: Chip, batch: int, answer: Mapping[str, float]
) -> Row:
    seconds = float(str(sums["larger_mcycles"])) / chip.ghz / 1e3
    prefetch = chip.memory_cycles(sum(c.bytes for c in costs if c.kind == "prefetch"))
    hidden = prefetch - exposed_cycles(costs, chip.memory_cycles)
    copies = [c for c in costs if c.kind == "copy" and c.bytes / c.rounds > _REAL_COPY]
    return {
        "images_per_s_chip": round(batch / seconds, 1),
        # Asynchronous copies between HBM and on-chip memory go on beside what computes: counted
        # only as far as they do not fit there, or not at all.
        "overlapped_mcycles": round(float(str(sums["larger_mcycles"])) - hidden / 1e6, 3),
        "without_prefetch_mcycles": round(float(str(sums["larger_mcycles"])) - prefetch / 1e6, 3),
        "temporary_gb": round(answer["temporary"] / 1e9, 3),
        "arguments_gb": round(answer["arguments"] / 1e9, 3),
        "all_reduces": sum(c.kind == "all-reduce" for c in costs),
        "real_copies": len(copies),
        "without_schedule": sum(c.cycles == 0 and c.kind not in ("prefetch", "all-reduce")
                                for c in costs),
        "compile_s": round(answer["compile_s"]),
    }  # fmt: skip


def worse(row: Mapping[str, object], before: Iterable[Mapping[str, str]]) -> str | None:
    """What is worse than in the committed row of the same program, in a line; None: nothing."""
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
    add("--side", type=int, default=299, help="of the images, pixels (default: %(default)s)")
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
    add(
        "--check", action="store_true", help="exit 1 where a figure is worse than the committed one"
    )
    add("--output", type=Path, help="CSV file to write")
    add("--append", action="store_true", help="keep other rows of a file that is there")
    return parser.parse_args(argv)  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Measures, prints, writes, checks. Raises `FailureError`."""
    if util.find_spec("libtpu") is None:
        raise FailureError(
            "libtpu is not installed; pip install 'xception_jax[tpu]', or pip install libtpu", 2
        )
    for chips in args.chips:
        if chips.split(":")[0] not in CHIPS or ":" not in chips:
            raise FailureError(
                f"--chips {chips}: takes KIND:SHAPE such as v5e:2x2; kinds: {', '.join(CHIPS)}", 2
            )
    if args.append and not args.output:
        raise FailureError("--append needs --output", 2)
    short = args.blocks == "short"
    committed = record.RESULTS / ("tpu_short.csv" if short else "tpu_compile.csv")
    before = record.read(committed)[1] if args.check and committed.exists() else []
    earlier, kept = record.earlier(args.output) if args.append else ({}, [])
    rows: list[Row] = []
    for chips in args.chips:
        request = {
            "chips": chips,
            "batch": args.batch,
            "side": args.side,
            "microbatch": args.microbatch,
            "short": short,
            "overrides": dict(args.override),
        }
        found = measure(request)
        print(f"{chips}\n{_table(found)}\n", flush=True)
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
                raise FailureError(complaint, 1)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    try:
        run(arguments(argv))
    except FailureError as failure:
        print(failure, file=sys.stderr)
        return failure.code
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
