"""Rounds in which each contender has its turn, and statistics of their times.

Waiting contenders are suspended, see `contenders.Worker`.
"""

import contextlib
import random
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.contenders import ContenderError, Worker, say

Rounds = dict[str, list[dict[str, float]]]  # the times of each turn, by contender


def take_turns(
    starts: Mapping[str, Callable[[], tuple[Worker, dict[str, Any]]]], rounds: int, clock: str
) -> tuple[Rounds, dict[str, dict[str, Any]], list[str]]:
    """Starts all contenders, then gives each its turn in every round, in a random order.

    Args:
      starts: functions that start a worker, by contender.
      rounds: number of rounds.
      clock: `cpu` or `wall`, the time to print.

    Returns:
      The rounds and the first answers of the contenders that succeeded, and a line for each that
      failed.
    """
    took: Rounds = {}
    ready: dict[str, dict[str, Any]] = {}
    lost: list[str] = []
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, start in starts.items():
            try:
                workers[name], ready[name] = start()
            except ContenderError as error:
                lost.append(say(error))
                continue
            stack.callback(workers[name].close)
            took[name] = []
            said = ready[name]
            print(
                f"  {name} compiled in {said['compile_seconds']:.1f} s; steps a turn: "
                f"{said['steps']}",
                flush=True,
            )
        for number in range(1, rounds + 1):
            for name in random.sample(list(took), len(took)):
                try:
                    took[name].append(workers[name].ask({}))
                except ContenderError as error:
                    lost.append(say(error))
                    del took[name], ready[name]
            times = (f"{name} {1e3 * turns[-1][clock]:.4g}" for name, turns in took.items())
            print(f"  round {number}, {clock} ms an image: {', '.join(times)}", flush=True)
    return took, ready, lost


def times(rounds: Rounds, name: str, reference: str = "ours") -> dict[str, Any]:
    """Columns of a result file: times of a contender's turns, and ratios to the reference.

    CPU time is that of all threads. `ratio_*` is the contender's time divided by the reference's in
    the same round: median, minimum and maximum over the rounds. It is empty if the reference is
    missing.
    """
    columns: dict[str, Any] = {}
    for clock in ("cpu", "wall"):
        took = [1e3 * turn[clock] for turn in rounds[name]]
        columns[f"{clock}_ms_per_image_median"] = statistics.median(took)
        columns[f"{clock}_ms_per_image_min"] = min(took)
        columns[f"{clock}_ms_per_image_max"] = max(took)
    columns["images_per_second"] = 1e3 / columns["wall_ms_per_image_median"]
    for clock in ("cpu", "wall"):
        pairs = zip(rounds[name], rounds.get(reference, ()), strict=False)
        ratios = [own[clock] / other[clock] for own, other in pairs]
        columns[f"ratio_{clock}"] = statistics.median(ratios) if ratios else ""
        columns[f"ratio_{clock}_min"] = min(ratios, default="")
        columns[f"ratio_{clock}_max"] = max(ratios, default="")
    return columns


def digits(value: float) -> str:
    """A number with four significant digits, without an exponent if it is large."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
