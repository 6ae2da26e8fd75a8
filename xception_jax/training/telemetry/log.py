"""The output of a run: lines or a progress bar, `metrics.jsonl`, TensorBoard events."""

import collections
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from xception_jax import config as config_lib
from xception_jax.errors import RunError
from xception_jax.runtime import cluster
from xception_jax.training import evaluation
from xception_jax.training.hooks import Hook
from xception_jax.training.metrics import SHARES
from xception_jax.training.state import TrainState
from xception_jax.training.telemetry.goodput import Goodput
from xception_jax.training.telemetry.records import TENSORBOARD, Records

# The number of steps that the host can be ahead of the device. It keeps the device busy and limits
# the memory of waiting batches.
_STEPS_AHEAD = 2

_KNOWN = (*SHARES, "loss", "examples", "skipped")


class Telemetry(Hook):
    """Collects the metrics of every step without stalling the device, and writes them out.

    A step's metrics are fetched when the host is two steps ahead, so that the device always has
    work. A line has the means since the previous line, even if the run was stopped in between.

    Args:
      workdir: for `metrics.jsonl` and the events.
      console: where to print.
      goodput: accounts for the run's time.
      start: the number of steps before this start. Logged records of later steps, which a killed
        run has left, are deleted.
      total: the number of steps of the run.
      batch_size: examples per step.
      epoch: examples per epoch.
      due: whether to print a line after a step; the last step always has one.
      writers: names of the log writers, see `writers`.
      config: the run's flat config, for the writers.
      silent: only check the metrics; for processes other than the first.
      carried: the result of `to_carry` from the checkpoint of step `start`.
    """

    def __init__(
        self,
        workdir: Path,
        console: Console,
        goodput: Goodput,
        *,
        start: int,
        total: int,
        batch_size: int,
        epoch: int,
        due: Callable[[int], bool] = lambda step: True,
        writers: Sequence[str] = (TENSORBOARD,),
        config: Mapping[str, Any] | None = None,
        silent: bool = False,
        carried: dict[str, Any] | None = None,
    ):
        self.goodput = goodput
        self._console, self._total = Console(quiet=True) if silent else console, total
        self._start, self._due = start, due
        self._batch_size, self._epoch = batch_size, epoch
        self._records = Records(
            None if silent else workdir, start, names=writers, config=config, say=self.say
        )
        self._waiting: collections.deque[tuple[int, Mapping[str, jax.Array], bool]] = (
            collections.deque()
        )
        # The number of steps since the last line, and the sum of each metric over them. The order
        # of addition is fixed, so that a stop does not change a line.
        self._steps: int = carried["steps"] if carried else 0
        self._sums: dict[str, float] = dict(carried["sums"]) if carried else {}
        self._first = True
        self._timed = 0  # steps since the mark
        self._mark = time.perf_counter()
        self._bar = _Bar(console, start, total) if console.is_terminal and not silent else None

    @classmethod
    def from_config(
        cls, config: ConfigDict, workdir: Path, console: Console, goodput: Goodput, **more: Any
    ) -> "Telemetry":
        """The telemetry for a resolved config; `more` are the other arguments."""
        return cls(
            workdir,
            console,
            goodput,
            batch_size=config.data.batch_size,
            writers=config_lib.log_writers(config),
            config=config_lib.portable(config_lib.flatten(config)),
            silent=not cluster.is_first(),
            **more,
        )

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self._bar:
            self._bar.stop()
        self._records.close(failed=kind is not None)

    def say(self, text: Any) -> None:
        """Prints a line, or any object of rich."""
        self._console.print(text)

    def after_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """See `step_dispatched`."""
        self.step_dispatched(step, metrics, log=self._due(step) or step == self._total)

    def step_dispatched(self, step: int, metrics: Mapping[str, jax.Array], *, log: bool) -> None:
        """Takes a step's metrics, which can still be computing.

        Args:
          step: the step.
          metrics: of the step.
          log: whether to print a line after it.

        Raises:
          RunError: the loss or the gradient of an earlier step is not finite.
        """
        self._waiting.append((step, metrics, log))
        while len(self._waiting) > _STEPS_AHEAD:
            self._fetch()

    def catch_up(self) -> None:
        """Waits for all dispatched steps and checks them."""
        while self._waiting:
            self._fetch()

    def _fetch(self) -> None:
        step, waiting, log = self._waiting.popleft()
        metrics = {name: float(value) for name, value in jax.device_get(waiting).items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics[name]):
                raise RunError(
                    f"the {name} of step {step} is {metrics[name]}; the run stops here, and all "
                    f"its checkpoints are from earlier steps"
                )
        self._steps += 1
        # A run that began with other metrics has sums of metrics that no longer exist.
        self._sums = {name: self._sums[name] for name in self._sums if name in metrics}
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._timed += 1
        self._records.tick()
        if self._bar:
            self._bar.move(step)
        if self._first:
            self._log_first(step, metrics, log)
        elif log:
            self._log_training(step, metrics["learning_rate"])

    def _log_first(self, step: int, metrics: dict[str, float], log: bool) -> None:
        """Prints the first line and resets the clock: this step's time includes compilation."""
        now = time.perf_counter()
        if log:
            self._records.write("train", step, self._means(metrics["learning_rate"]))
        self.say(
            f"step {step}/{self._total}  loss {metrics['loss']:.4f}  "
            f"after {now - self._mark:.1f} s, compilation included"
        )
        self._first, self._timed, self._mark = False, 0, now

    def to_carry(self) -> dict[str, Any] | None:
        """The sums for the next line, for a run that continues from here; see `carried`.

        JSON stores them exactly. Call it after `catch_up`.
        """
        return {"steps": self._steps, "sums": dict(self._sums)} if self._steps else None

    def _means(self, learning_rate: float) -> dict[str, float]:
        """The means since the last line, and the latest learning rate; resets the sums."""
        means = {name: total / self._steps for name, total in self._sums.items()}
        self._steps, self._sums = 0, {}
        return {**means, "learning_rate": learning_rate}

    def _log_training(self, step: int, learning_rate: float) -> None:
        now = time.perf_counter()
        seconds = (now - self._mark) / self._timed
        left = (self._total - step) * seconds
        means = self._means(learning_rate)
        speed = {
            "images_per_second": self._batch_size / seconds,
            "seconds_per_step": seconds,
            "seconds_left": left,
        }
        self._records.write("train", step, {**means, **speed})
        self.say(
            f"step {step}/{self._total}  epoch {step * self._batch_size / self._epoch:.1f}  "
            f"loss {means['loss']:.4f}  {_shares(means, 1)}  "
            f"lr {means['learning_rate']:.2g}  {speed['images_per_second']:.0f} images/s  "
            f"{seconds:.3g} s/step  {_clock(left)} left"
        )
        self._timed, self._mark = 0, now

    def on_evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """Logs the results of an evaluation.

        Raises:
          RunError: a loss is not finite. Other metrics can have any value: no weight depends on it.
        """
        for name, value in results.items():
            if name.rpartition("/")[2] == "loss" and not math.isfinite(value):
                raise RunError(
                    f"the {name} of the evaluation at step {step} is {value}; the run stops "
                    f"here, and all its checkpoints are from earlier steps"
                )
        self._records.write("eval", step, results)
        for name, metrics in evaluation.by_set(results).items():
            others = "".join(
                f"  {other} {metrics[other]:.4f}" for other in metrics if other not in _KNOWN
            )
            skipped = f", {metrics['skipped']} skipped" if metrics.get("skipped") else ""
            self.say(
                f"evaluation{f' on {name}' if name else ''} at step {step}  "
                f"{_shares(metrics, 2)}  loss {metrics['loss']:.4f}{others}  "
                f"{metrics['examples']} examples{skipped}"
            )

    @contextmanager
    def pause(self, cause: str) -> Iterator[None]:
        """A context whose time counts for the cause, not for the speed of steps."""
        since = time.perf_counter()
        self._records.flush()
        with self.goodput.spending(cause):
            yield
        self._mark += time.perf_counter() - since

    def at_end(self, step: int) -> None:
        """See `tell_goodput`; does nothing if no step was done."""
        if step > self._start:
            self.tell_goodput(step)

    def tell_goodput(self, step: int) -> None:
        """Logs and prints the shares of the run's time."""
        shares = self.goodput.shares()
        self._records.write("time", step, shares)
        total = shares.pop("seconds")
        parts = "  ".join(f"{cause} {share:.1%}" for cause, share in shares.items())
        self.say(f"time since the start: {_clock(total)}  {parts}")


class _Bar:
    """The progress bar of a terminal."""

    def __init__(self, console: Console, start: int, total: int):
        self._progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("", total=total, completed=start)
        self._progress.start()

    def move(self, step: int) -> None:
        self._progress.update(self._task, completed=step)

    def stop(self) -> None:
        self._progress.stop()


def _shares(metrics: dict[str, float], digits: int) -> str:
    """The metrics in percent, for a line."""
    return "  ".join(
        f"{name} {metrics[key]:.{digits}%}" for key, name in SHARES.items() if key in metrics
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
