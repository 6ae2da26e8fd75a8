"""Measures `predict` on CPU: its start, and its rate beside the bare model's.

    python -m benchmarks.predict
    python -m benchmarks.predict --pictures 1000 --rounds 3 --output benchmarks/results/predict.csv

The pictures are JPEGs of 500x375, and the model is an Xception for 299 pixels, in float32, with
random weights. Each process has all cores. In each round, one process after the other measures:

    cold   the command with one picture, with an empty compilation cache
    warm   the same with the resulting cache
    all    the command with all pictures, after another process has compiled its program
    bare   the compiled model alone, again and again on the same full batch in memory

The rate of `predict` is that of the pictures beyond the first: their number, divided by the extra
time of `all` over `warm`. So the start, which has its own rows, is not in it. The last batch takes
as long as a full one.
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
from pathlib import Path

import jax
from flax import nnx

from benchmarks import arguments, pictures, record
from benchmarks.arguments import count
from benchmarks.turns import digits
from xception_jax import models
from xception_jax.config import HALF
from xception_jax.serving.inference import BATCH
from xception_jax.weights import converted, pretrained
from xception_jax.weights.tensors import variables

ROOT = Path(__file__).parents[1]
SIDE = 299
# Runs in its own process: seconds of a batch, in wall and CPU time, without compilation.
BARE = f"""
import json, sys, time, jax, numpy as np
from functools import partial
from xception_jax.serving import inference
model = inference.of_file(sys.argv[1])
answer = jax.jit(partial(inference.answers, model.graphdef, activation=model.activation))
size = model.images.size
pixels = np.random.default_rng(0).integers(0, 256, ({BATCH}, size, size, 3), np.uint8)
weights, pixels = jax.device_put((model.weights, pixels))
run = lambda: jax.block_until_ready(answer(weights, pixels)["logits"])
run()
wall, cpu = time.perf_counter(), time.process_time()
for _ in range(int(sys.argv[2])):
    run()
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""


def write_weights(output: Path) -> None:
    """Writes a converted file of an Xception with random weights."""
    model = models.create("xception", num_classes=1000, rngs=nnx.Rngs(0))
    tensors = {name: jax.device_get(one.get_value()) for name, one in variables(model).items()}
    about = converted.About(
        "xception", pretrained.effective("xception", {}), 1000,
        preprocessing={"image_size": SIDE, "eval_preset": "area", "eval_crop": 0.875,
                       "mean": [*HALF], "std": [*HALF]},
        activation="softmax", source={},
    )  # fmt: skip
    converted.write(output, about, tensors)


def run(*command: str, cache: Path) -> tuple[str, float, float]:
    """The output of a command of Python, its wall seconds, and its CPU seconds."""
    environment = {
        **os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, wall, cpu


def measure(photos: Path, weights: Path, number: int) -> dict[str, float]:
    """One round."""
    predict = ["-m", "xception_jax.predict", f"--input={weights}", "--json"]
    one = str(min(photos.rglob("*.jpg")))
    with tempfile.TemporaryDirectory() as cache:
        _, cold, _ = run(*predict, one, cache=Path(cache))
        few = map(str, sorted(photos.rglob("*.jpg"))[:BATCH])
        run(*predict, *few, cache=Path(cache))  # compiles for its batch
        _, warm, warm_cpu = run(*predict, one, cache=Path(cache))
        told, every, every_cpu = run(*predict, str(photos), cache=Path(cache))
        steps = max(2, number // BATCH)
        bare, _, _ = run("-c", BARE, str(weights), str(steps), cache=Path(cache))
    answered = len(told.splitlines())
    if answered != number:
        raise SystemExit(f"predict answered {answered} of {number} pictures; run it by hand")
    bare_wall, bare_cpu = json.loads(bare.splitlines()[-1])
    rate, bare_rate = (number - 1) / (every - warm), steps * BATCH / bare_wall
    cpu, own_cpu = (every_cpu - warm_cpu) / (number - 1), bare_cpu / (steps * BATCH)
    return {
        "one picture, cold, s": cold,
        "one picture, warm, s": warm,
        "predict, images/s": rate,
        "the bare model, images/s": bare_rate,
        "predict / bare": rate / bare_rate,
        "predict, CPU ms an image": cpu * 1e3,
        "the bare model, CPU ms an image": own_cpu * 1e3,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--pictures", type=count, default=1000, help="(%(default)s)")
    parser.add_argument("--rounds", type=count, default=3, help="(%(default)s)")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    options = parser.parse_args()
    if options.pictures < 2 * BATCH:
        parser.error(f"--pictures={options.pictures}: at least {2 * BATCH} are needed")
    jax.config.update("jax_platforms", "cpu")
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        photos = pictures.write(Path(folder) / "photos", options.pictures) / "train"
        weights = Path(folder) / "xception.safetensors"
        write_weights(weights)
        for _ in range(options.rounds):
            rounds.append(measure(photos, weights, options.pictures))
            print("; ".join(f"{name} {digits(x)}" for name, x in rounds[-1].items()), flush=True)
    rows = []
    for name in rounds[0]:
        found = [one[name] for one in rounds]
        row = {"median": statistics.median(found), "min": min(found), "max": max(found)}
        rows.append({"what": name, **{k: digits(v) for k, v in row.items()}})
        print(f"{name:35} {digits(row['median'])}")
    if options.output:
        notes = {
            "machine": record.machine(), "versions": record.versions(["jax", "flax"]),
            "pictures": str(options.pictures), "rounds": str(options.rounds),
        }  # fmt: skip
        record.write(options.output, rows, notes)


if __name__ == "__main__":
    arguments.run(main)
