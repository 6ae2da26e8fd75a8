"""Estimates before the first step: how long compilation and the run will take."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xception_jax.models import counts
from xception_jax.training.state import TrainState, partition
from xception_jax.utils.text import span

# Seconds to compile the step of an Xception without a cache, by platform: on two idle CPU cores, an
# H200 (benchmarks/results/step_cpu.csv, step_gpu.csv), TPUs (plan.csv, 4 to 11 min).
_XCEPTION_S = {"cpu": 31, "gpu": 80, "tpu": 450}
_XCEPTION_ARRAYS = 156  # its arrays of weights: compile time grows with their number, not size

# There is no note on the length of shorter runs on CPU.
_LONG_S = 2 * 3600


def tell(
    say: Callable[[str], None],
    step: Any,
    state: TrainState,
    batch: Any,
    steps: int,
    frozen: tuple[str, ...] = (),
) -> None:
    """Prints estimates before a step is compiled.

    Args:
      say: prints a line.
      step: jitted, see `step.jit_train_step`.
      state: the step's argument.
      batch: the step's argument.
      steps: the number of remaining steps.
      frozen: see `state.frozen_parts`; not in the step if the batch has features.
    """
    params = partition(state.params, frozen) if "features" in batch else state.params
    say(compilation(len(jax.tree.leaves(params))))
    if note := on_cpu(step.trace(state, batch), steps):
        say(note)


def compilation(arrays: int) -> str:
    """A line with the estimated compile time for a model with a number of arrays of weights."""
    seconds = _XCEPTION_S.get(jax.default_backend())
    first = f"about {span(seconds * arrays / _XCEPTION_ARRAYS)}" if seconds else "minutes"
    return (
        f"compiling the training step: {first} the first time, seconds if the program is in this "
        f"machine's cache"
    )


def on_cpu(step: Any, steps: int) -> str | None:
    """A warning if the remaining steps would take hours on this CPU, else None.

    Args:
      step: the traced step, see `jax.jit(...).trace`.
      steps: the number of remaining steps.
    """
    if jax.default_backend() != "cpu":
        return None
    work = counts.multiply_adds(step.jaxpr.jaxpr)
    # Convolutions are not faster than a large matrix product.
    seconds = steps * work / multiply_adds_per_second()
    if seconds < _LONG_S:
        return None
    return (
        f"NOTE: this run takes about {span(seconds)} on this CPU: {steps:,} steps of "
        f"{work / 1e9:,.1f} billion multiply-adds. Use a GPU or TPU, or lower config.duration, "
        f"config.data.image_size (work grows with its square) or config.model.width"
    )


def multiply_adds_per_second(size: int = 1024, dtype: str = "float32", rounds: int = 3) -> float:
    """The measured speed of products of square matrices on one device, the best of `rounds`."""
    square = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(square, square).block_until_ready()
    best = float("inf")
    for _ in range(rounds):
        since = time.perf_counter()
        product(square, square).block_until_ready()
        best = min(best, time.perf_counter() - since)
    return size**3 / best
