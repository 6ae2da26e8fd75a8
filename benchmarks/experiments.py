"""Runs the variants of one of the paper's experiments and draws the results.

    python -m benchmarks.experiments residual
    python -m benchmarks.experiments activation --seeds 5 --output benchmarks/results/activation.csv

Each variant of `configs/experiments.py` is trained with each seed on the embedded digits (with
`--scale imagenet`, as in the paper), one run after the other, each in its own process. `--workdir`
names a folder for the runs, where interrupted ones resume. The result is a CSV with every
evaluation of every run, and a PNG of the curves with the same name.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks import arguments, record
from benchmarks.arguments import assignment, count
from configs.experiments import EXPERIMENTS
from xception_jax.errors import UsageError

ROOT = Path(__file__).parents[1]

Row = Mapping[str, str | int | float]


def train(variant: str, seed: int, workdir: Path, overrides: Sequence[tuple[str, object]]) -> None:
    """Trains one variant to its end, or resumes it."""
    fields = [("seed", seed), *overrides]
    command = [
        sys.executable, "-m", "xception_jax.main", f"--config=configs/experiments.py:{variant}",
        f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in fields),
    ]  # fmt: skip
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise SystemExit(f"the run of {variant} with seed {seed} failed; its reason is above")


def evaluations(workdir: Path) -> list[dict[str, float]]:
    """Step, top-1 and loss of each evaluation of a run."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    fields = ("step", "top1", "loss")
    return [{name: line[name] for name in fields} for line in lines if line["kind"] == "eval"]


def draw(path: Path, title: str, rows: Sequence[Row]) -> None:
    """Draws the mean top-1 of each variant over the steps; the range over the seeds is shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for variant in dict.fromkeys(row["variant"] for row in rows):
        curve: dict[int, list[float]] = {}
        for row in rows:
            if row["variant"] == variant:
                curve.setdefault(int(row["step"]), []).append(100 * float(row["top1"]))
        steps = sorted(curve)
        (line,) = axes.plot(steps, [statistics.mean(curve[s]) for s in steps], label=str(variant))
        least, most = ([pick(curve[s]) for s in steps] for pick in (min, max))
        axes.fill_between(steps, least, most, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(title=title, xlabel="step", ylabel="top-1, % of the test images")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def summary(rows: Sequence[Row]) -> list[str]:
    """A line for each variant: its final top-1, mean and range over the seeds."""
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        last = {row["seed"]: 100 * float(row["top1"]) for row in rows if row["variant"] == variant}
        found = list(last.values())
        lines.append(
            f"{variant!s:14} top-1 {statistics.mean(found):6.2f} %"
            f"  ({min(found):.2f} to {max(found):.2f}, {len(found)} seeds)"
        )
    return lines


def run(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Trains all variants, seed by seed, so that an interrupted experiment has complete seeds."""
    rows: list[Row] = []
    suffix = "/digits" if options.scale == "digits" else ""
    for seed in range(options.seeds):
        for variant in EXPERIMENTS[options.experiment]:
            workdir = folder / f"{options.experiment}_{variant}_{options.scale}_{seed}"
            train(f"{options.experiment}/{variant}{suffix}", seed, workdir, options.override)
            rows += [{"variant": variant, "seed": seed, **e} for e in evaluations(workdir)]
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("experiment", choices=list(EXPERIMENTS))
    parser.add_argument("--scale", choices=("digits", "imagenet"), default="digits")
    parser.add_argument("--seeds", type=count, default=3, help="(%(default)s)")
    parser.add_argument("--output", type=Path, help="CSV file (results/EXPERIMENT_SCALE.csv)")
    parser.add_argument("--workdir", type=Path, help="folder for the runs; by default temporary")
    parser.add_argument(
        "--override", type=assignment, nargs="*", default=[], metavar="FIELD=VALUE",
        help="fields of the config to change in all variants",
    )  # fmt: skip
    options = parser.parse_args()
    if find_spec("matplotlib") is None:
        raise UsageError("the curves need matplotlib: pip install -e '.[experiments]'")
    name = f"{options.experiment}_{options.scale}"
    output = options.output or record.RESULTS / f"{name}.csv"
    with tempfile.TemporaryDirectory() as temporary:
        rows = run(options, options.workdir or Path(temporary))
    notes = {"machine": record.machine(), "versions": record.versions(["jax", "flax", "optax"])}
    record.write(output, rows, notes)
    draw(output.with_suffix(".png"), f"{options.experiment}, {options.scale}", rows)
    print("\n".join(summary(rows)))
    print(f"{output} and {output.with_suffix('.png').name}")


if __name__ == "__main__":
    arguments.run(main)
