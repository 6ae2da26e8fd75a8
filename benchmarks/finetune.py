"""Fine-tunes on real small sets of pictures: our command, a linear probe, Keras' recipe, and timm.

    python -m benchmarks.finetune PACKAGES --set stamps --seeds 5
    python -m benchmarks.finetune PACKAGES --set cifar10 --train 2000 --contenders ours probe \
        --change model.freeze=middle_flow --output trial.csv

PACKAGES is a folder with downloaded packages: `benchmarks/picture_sets.py` says which, and how to
get them. Each seed is another choice of the pictures, and the seed of the training.

All contenders start from Keras' ImageNet weights of Xception without a classifier, see the same
training pictures, and are tested once on the same test pictures. Whatever a contender selects by,
it holds out of the training pictures. Each has its own process, with an empty compilation cache;
its minutes are those of the process, from start to end.

The values of `xception_jax/finetuning/table.py` may be chosen by the sets of `picture_sets.TUNING`.
Those of `picture_sets.JUDGED`, Tux Paint's stamps and Noto's emoji, measure the result; nothing may
be chosen by them.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import arguments, picture_sets, record
from benchmarks.arguments import assignment, count
from xception_jax import convert

ROOT = Path(__file__).parents[1]
PEERS = Path(__file__).parent / "peers"
CONTENDERS = ("ours", "probe", "probe_area", "keras", "timm")

Row = Mapping[str, str | int | float]


class ContenderError(Exception):
    """A contender has failed; the message is its last line."""


def command(
    contender: str, options: argparse.Namespace, folder: Path, starts: Path, seed: int, work: Path
) -> list[str]:
    """The command of a contender.

    Args:
      contender: one of `CONTENDERS`.
      options: of the command line.
      folder: with `train/` and `test/`.
      starts: the folder of the initial weights.
      seed: of the run.
      work: an empty folder for the run.
    """
    side, own = str(options.side), [str(folder), str(starts / "start.safetensors")]
    usual = [*own, side, str(seed)]
    if contender == "ours":
        fields = [("seed", seed), ("data.image_size", options.side), *options.change]
        return [
            "-m", "xception_jax.finetune", own[0], f"--input={own[1]}", f"--workdir={work}",
            "--json", *(f"--config.{name}={value}" for name, value in fields),
        ]  # fmt: skip
    if contender in ("probe", "probe_area"):
        preset = "area" if contender == "probe_area" else "keras"
        return [str(PEERS / "tuned_probe.py"), *usual, preset]
    start = {"keras": "keras.weights.h5", "timm": "timm.safetensors"}[contender]
    asked = [str(folder), str(starts / start), side, str(seed)]
    minutes = [str(options.minutes)] if contender == "timm" else []
    return [str(PEERS / f"tuned_{contender}.py"), *asked, *minutes]


def measure(arguments: Sequence[str], work: Path) -> dict[str, float]:
    """Runs a contender; returns its error, the test pictures, and its minutes.

    Raises:
      ContenderError: it failed.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "KERAS_BACKEND": "jax",
        "JAX_COMPILATION_CACHE_DIR": str(work / "compiled"),
    }
    used, begin = _cpu_seconds(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, check=False,
        stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    wall, cpu = time.perf_counter() - begin, _cpu_seconds() - used
    if done.returncode:
        raise ContenderError(f"exit code {done.returncode}; its reason is above")
    told = json.loads(done.stdout.splitlines()[-1])
    error = told["error"] if "error" in told else 1 - told["top1"]
    return {
        "tested": told.get("tested") if "error" in told else told["examples"],
        "error": round(error, 5),
        "minutes": round(wall / 60, 2),
        "cpu_minutes": round(cpu / 60, 2),
    }


def _cpu_seconds() -> float:
    """Of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(options: argparse.Namespace, starts: Path) -> list[Row]:
    """All contenders, seed by seed, so that what is interrupted has complete seeds."""
    pictures = picture_sets.SETS[options.set](options.packages)
    rows: list[Row] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / options.set
            picture_sets.cut(pictures, options.train, options.test, seed, folder)
            for contender in options.contenders:
                work = Path(temporary) / contender
                work.mkdir()
                asked = command(contender, options, folder, starts, seed, work / "run")
                try:
                    found = measure(asked, work)
                except ContenderError as error:
                    print(f"{contender}: {error}", flush=True)
                    continue
                about = {"set": options.set, "train": options.train, "side": options.side}
                changes = " ".join(f"{name}={value}" for name, value in options.change)
                changed = {"changes": changes if contender == "ours" else ""}
                rows.append({**about, "seed": seed, "contender": contender, **changed, **found})
                print(" ".join(f"{k}={v}" for k, v in rows[-1].items()), flush=True)
    return rows


def write_starts(packages: Path, folder: Path) -> None:
    """Writes the initial weights for each library."""
    start = folder / "start.safetensors"
    picture_sets.write_start(packages, start)
    for library, name in (("keras", "keras.weights.h5"), ("timm", "timm.safetensors")):
        convert.convert(start, folder / name, source_format="xception_jax", target_format=library)


def summary(rows: Sequence[Row]) -> list[str]:
    """A line for each contender: its mean error, relative to the better probe's, and minutes."""
    errors: dict[str, list[float]] = {}
    minutes: dict[str, list[float]] = {}
    for row in rows:
        errors.setdefault(str(row["contender"]), []).append(float(row["error"]))
        minutes.setdefault(str(row["contender"]), []).append(float(row["minutes"]))
    means = {name: statistics.mean(found) for name, found in errors.items()}
    lines = []
    probe = min((mean for name, mean in means.items() if name.startswith("probe")), default=0)
    for name, mean in means.items():
        ratio = f"{mean / probe - 1:+.1%} against the better probe," if probe else ""
        lines.append(
            f"{name:12} error {mean:7.2%} ({min(errors[name]):.2%} to {max(errors[name]):.2%}, "
            f"{len(errors[name])} seeds) {ratio:32} {statistics.mean(minutes[name]):.1f} minutes"
        )
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetune", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("packages", type=Path, metavar="PACKAGES")
    parser.add_argument("--set", choices=list(picture_sets.SETS), default="stamps")
    parser.add_argument("--train", type=count, default=500, help="pictures (%(default)s)")
    parser.add_argument("--test", type=count, default=1000, help="at most (%(default)s)")
    parser.add_argument("--side", type=count, default=96, help="pixels (%(default)s)")
    parser.add_argument("--seeds", type=count, default=1, help="(%(default)s)")
    parser.add_argument("--first_seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--minutes", type=float, default=5.0, help="of timm (%(default)s)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument(
        "--change", type=assignment, nargs="*", default=[], metavar="FIELD=VALUE",
        help="fields of our config, in place of what finetune chooses",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="CSV file; rows of other runs in it are kept")
    options = parser.parse_args()
    notes, rows = record.earlier(options.output) if options.output else ({}, [])
    with tempfile.TemporaryDirectory() as starts:
        write_starts(options.packages, Path(starts))
        found = run(options, Path(starts))
    print("\n".join(summary(found)))
    if options.output and found:
        notes |= {"machine": record.machine(), "versions": record.versions(
            ["jax", "flax", "scikit-learn", "keras", "timm", "torch"])}  # fmt: skip
        record.write(options.output, [*rows, *found], notes)


if __name__ == "__main__":
    arguments.run(main)
