"""The final lines of a run: signs of overfitting, and its checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xception_jax.training.results import TrainResult
from xception_jax.training.telemetry import records
from xception_jax.utils.text import quoted

# A smaller difference of accuracies can be chance, or a harder test set.
_APART = 0.15
# A smaller rise of the loss, as a factor or as a difference, can be noise.
_RISE, _RISE_BY = 1.1, 0.05


def of(figures: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each problem in the metrics of a run; see `records.read`."""
    training = [record for record in figures if record.get("kind") == "train"]
    tests = [record for record in figures if record.get("kind") == "eval"]
    if not tests:
        return []
    found = [_apart(training[-1], tests[-1])] if training else []
    found.append(_risen(tests))
    return [line for line in found if line]


def _apart(training: dict[str, Any], test: dict[str, Any]) -> str | None:
    name = "map" if "map" in test else "top1"
    if name not in training or name not in test or training[name] - test[name] < _APART:
        return None
    return (
        f"NOTE: {training[name]:.1%} correct in training and {test[name]:.1%} in the test: the "
        f"model overfits. More images, stronger config.augment, weight decay or dropout, or "
        f"init_from (pretrained weights) help"
    )


def _risen(tests: Sequence[dict[str, Any]]) -> str | None:
    last, least = tests[-1], min(tests, key=lambda test: test["loss"])
    if last["loss"] < max(_RISE * least["loss"], least["loss"] + _RISE_BY):
        return None
    return (
        f"NOTE: the test loss rose from {least['loss']:.4f} at step {least['step']} to "
        f"{last['loss']:.4f} at step {last['step']}: the model overfits; a shorter "
        f"config.duration or a lower learning rate helps"
    )


def lines(result: TrainResult, best: int | None, by: str = "") -> list[str]:
    """The last lines of a completed run.

    Args:
      result: of the run.
      best: the step of the best checkpoint; None: no checkpoint can be rated.
      by: the metric that decides the best one; empty: the default.
    """
    folder, last, total = result.workdir, result.step, result.total_steps
    early = f"stopped early, after {last:,} of {total:,} steps, by config.eval.patience: "
    early += f"no evaluation since step {best} was better" if best else "none could be rated"
    return [
        *([early] if last < total else []),
        *of(records.read(folder)),
        _done(folder, last, best, by),
    ]


def _done(folder: Path, last: int, best: int | None, by: str) -> str:
    there = folder / "checkpoints"
    command = f"evaluate it with: python -m xception_jax.evaluate --workdir={quoted(folder)}"
    if best is None:
        return f"done: {there / str(last)}; no checkpoint has a finite {by or 'metric'}\n{command}"
    by = f" by {by}" if by else ""
    if last == best:
        return f"done: {there / str(last)}, the best{by}\n{command}"
    return f"done: {there / str(last)}; the best{by} is {best}, --step=best\n{command} --step=best"
