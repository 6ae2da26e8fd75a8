"""Measures the overhead of the training loop: images/s of complete runs and of the bare step.

    python -m benchmarks.loop
    python -m benchmarks.loop --config configs/digits.py --change data.image_size=48 --steps 40

In each round the bare step runs `--steps` times on a batch that is on the device. Then `train.loop`
runs as many steps, with its input, metrics, log, and two checkpoints. On CPU one core is the
accelerator: XLA is bound to it, and Python and the input's threads to the other cores. So the
host's work can overlap with the device's, as on other platforms.

A separate process measures the time that Python needs to call a step: a pass-through function on
the complete state of the paper's model, without and with averaged weights.
"""

import argparse
import dataclasses
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from rich.console import Console

from benchmarks import arguments, record
from benchmarks.arguments import assignment, count
from xception_jax import config as config_lib
from xception_jax import train
from xception_jax.data.skips import Skips
from xception_jax.errors import UsageError
from xception_jax.training import optimizer, preflight, sharding
from xception_jax.training import state as state_lib
from xception_jax.training.checkpoint import checkpoints as checkpoint
from xception_jax.training.hooks import Hooks
from xception_jax.training.telemetry import log as telemetry
from xception_jax.training.telemetry.goodput import Goodput
from xception_jax.training.telemetry.profiling import Profile


def config_from(path: str, changes: Mapping[str, object], steps: int) -> ConfigDict:
    """The config of a file with changes, for `steps` steps with two checkpoints.

    Raises:
      UsageError: a change is invalid.
      OSError: the file cannot be read.
    """
    spec = util.spec_from_file_location("config", path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    flat = config_lib.flatten(module.get_config())
    flat |= {
        "duration": f"{steps} steps",
        "optimizer.warmup": "0 steps",
        "checkpoint.every": f"{max(1, steps // 2)} steps",
        "eval.every": f"{steps} steps",
        "log.every": f"{max(1, steps // 4)} steps",
    }
    config_lib.unknown(changes)
    config = config_lib.default()
    for name, value in {**flat, **changes}.items():
        complaint = config_lib.SCHEMA[name].check(value)
        if complaint:
            raise UsageError(f"config.{name} {complaint}")
    config.update_from_flattened_dict({**flat, **changes})
    preflight.validate(config)
    return config_lib.resolve(config)


def give_the_device_its_own_core() -> None:
    """Binds XLA's CPU threads, which start here, to one core, and later threads to the others."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    on_cpu = jax.default_backend() == "cpu"
    os.sched_setaffinity(0, cores[1:] if on_cpu and len(cores) > 1 else cores)


def bare(run: train.Run, state: Any, steps: int) -> float:
    """Seconds a step on a batch that is on the device."""
    state = jax.tree.map(lambda leaf: leaf.copy(), state)  # the step donates its argument
    batch = next(run.batches(0))
    begin = time.perf_counter()
    for _ in range(steps):
        state, metrics = run.train_step(state, batch)
    jax.block_until_ready((state, metrics))
    return (time.perf_counter() - begin) / steps


def looped(run: train.Run, state: Any, steps: int) -> float:
    """Seconds a step of `train.loop`, without the evaluation at its end."""
    state = jax.tree.map(lambda leaf: leaf.copy(), state)
    spent: list[float] = []

    def timed_evaluation(weights: Any, *rest: Any) -> dict[str, float] | None:
        begin = time.perf_counter()
        result = run.evaluate(weights, *rest)
        spent.append(time.perf_counter() - begin)
        return result

    observed: Any = dataclasses.replace(run, evaluate=timed_evaluation)
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        checkpoint.Checkpoints(Path(folder), keep=1) as checkpoints,
        telemetry.Telemetry(
            Path(folder), Console(file=nowhere, force_terminal=True), Goodput(),
            start=0, total=steps,
            batch_size=run.config.data.batch_size, epoch=len(run.train_source),
            due=run.every("log.every"),
        ) as log,
    ):  # fmt: skip
        begin = time.perf_counter()
        services = train.RunServices(
            checkpoints,
            log,
            Skips(Path(folder), 0.0, log.say),
            Hooks(Profile(Path(folder), (), log.say), log),
            lambda: False,
        )
        train.loop(observed, state, 0, services)
        return (time.perf_counter() - begin - sum(spent)) / steps


def python_overhead(with_ema: bool, calls: int = 300) -> tuple[int, float]:
    """Number of arrays in the state of the paper's model, and seconds to call a jitted function."""
    config = config_lib.default()
    make_model = state_lib.model_maker(config, 1000)
    run_optimizer = optimizer.from_config(config, 100)[0]
    mesh = sharding.make_mesh(1)
    replicated = sharding.replicated(mesh)
    shapes = state_lib.shapes_of(partial(state_lib.create, make_model, run_optimizer, with_ema))
    # The arrays' sizes do not matter, their number does.
    state = jax.tree.map(lambda leaf: jax.device_put(np.zeros(1, leaf.dtype), replicated), shapes)
    through = jax.jit(lambda state: state, in_shardings=(replicated,), out_shardings=replicated,
                      donate_argnums=0)  # fmt: skip
    return len(jax.tree.leaves(state)), per_call(through, state, calls)


def per_call(function: Callable[[Any], Any], state: Any, calls: int) -> float:
    """The median time of a call, seconds."""
    times = []
    for _ in range(calls):
        begin = time.perf_counter()
        state = function(state)
        times.append(time.perf_counter() - begin)
        jax.block_until_ready(state)
    return statistics.median(times)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/digits.py", help="(%(default)s)")
    parser.add_argument("--change", nargs="*", default=[], type=assignment, metavar="FIELD=VALUE",
                        help="changes of the config")  # fmt: skip
    parser.add_argument("--steps", type=count, default=100, help="steps a round (%(default)s)")
    parser.add_argument("--rounds", type=count, default=5, help="(%(default)s)")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    options = parser.parse_args()

    logging.set_verbosity(logging.ERROR)
    overhead = {}
    for with_ema in (False, True):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            leaves, seconds = process.submit(python_overhead, with_ema).result()
        overhead[f"python_ms_{leaves}_arrays"] = round(1e3 * seconds, 3)
    give_the_device_its_own_core()
    config = config_from(options.config, dict(options.change), options.steps)
    run = train.build_run(config)
    replicated = sharding.replicated(run.layout.mesh)
    state = state_lib.initialize(run.init, config.seed, replicated)
    looped(run, state, options.steps)  # compiles everything
    pairs = []
    for _ in range(options.rounds):
        pairs.append((bare(run, state, options.steps), looped(run, state, options.steps)))
        print("bare {:.4f} s a step, loop {:.4f}: {:.1%}".format(
            *pairs[-1], pairs[-1][0] / pairs[-1][1]), flush=True)  # fmt: skip
    shares = [step / loop for step, loop in pairs]
    row = {
        "config": options.config,
        "changes": " ".join(f"{k}={v}" for k, v in options.change),
        "bare_s_per_step": round(statistics.median(p[0] for p in pairs), 5),
        "loop_s_per_step": round(statistics.median(p[1] for p in pairs), 5),
        "share_median": round(statistics.median(shares), 4),
        "share_min": round(min(shares), 4),
        "share_max": round(max(shares), 4),
        "rounds": options.rounds,
        **overhead,
    }
    print("\n".join(f"{name:20} {value}" for name, value in row.items()))
    if options.output:
        notes = {
            "machine": record.machine(),
            "versions": record.versions(["jax", "flax", "grain", "orbax-checkpoint"]),
        }
        record.write(options.output, [row], notes)


if __name__ == "__main__":
    arguments.run(main)
