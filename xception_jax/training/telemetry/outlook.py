"""What a run is told before its first step: how long it compiles, and how long it may take."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xception_jax.models import counts
from xception_jax.training.state import TrainState

# Seconds that the step of an Xception takes to compile for the first time, by platform: on two idle
# CPU cores, an H200 (benchmarks/results/step_cpu.csv, step_gpu.csv), TPUs (plan.csv, 4 to 11 min).
_XCEPTION_S = {"cpu": 31, "gpu": 80, "tpu": 450}
_XCEPTION_ARRAYS = 156  # its weights: layers take their time one by one, whatever their size

# Shorter runs on CPU are told nothing of their length.
_LONG_S = 2 * 3600


def tell(say: Callable[[str], None], step: Any, state: TrainState, batch: Any, steps: int) -> None:
    """Says what there is to say before a step is compiled.

    Args:
      say: takes a line.
      step: jitted, see `step.jit_train_step`.
      state, batch: what it will be called with.
      steps: that are left.
    """
    say(compilation(len(jax.tree.leaves(state.params))))
    if note := on_cpu(step.trace(state, batch), steps):
        say(note)


def compilation(arrays: int) -> str:
    """A line on how long a step may compile whose model has so many arrays of weights."""
    seconds = _XCEPTION_S.get(jax.default_backend())
    first = f"about {_span(seconds * arrays / _XCEPTION_ARRAYS)}" if seconds else "minutes"
    return (
        f"compiling the training step: {first} the first time; seconds where this machine has kept "
        f"the program"
    )


def on_cpu(step: Any, steps: int) -> str | None:
    """A line where so many steps would take hours on this CPU; None elsewhere, and where not.

    Args:
      step: the traced step, see `jax.jit(...).trace`.
      steps: that are left.
    """
    if jax.default_backend() != "cpu":
        return None
    work = counts.multiply_adds(step.jaxpr.jaxpr)
    # No convolution is faster than a large product of matrices.
    seconds = steps * work / _multiply_adds_per_second()
    if seconds < _LONG_S:
        return None
    return (
        f"NOTE: this run takes about {_span(seconds)} on this CPU: {steps:,} steps of "
        f"{work / 1e9:,.1f} billion multiply-adds. Use a GPU or TPU, or lower config.duration, "
        f"config.data.image_size (work grows with its square) or config.model.width"
    )


def _multiply_adds_per_second(size: int = 1024, rounds: int = 3) -> float:
    """Measured, of float32 products of square matrices; the best of some."""
    square = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    best = float("inf")
    for _ in range(rounds):
        since = time.perf_counter()
        product(square, square).block_until_ready()
        best = min(best, time.perf_counter() - since)
    return size**3 / best


def _span(seconds: float) -> str:
    """As people say it: 40 seconds, 5 minutes, 30 hours, 12 days."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{round(seconds / length)} {unit}"
    return f"{max(2, round(seconds))} seconds"
