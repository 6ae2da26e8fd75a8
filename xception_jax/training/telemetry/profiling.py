"""A trace of some steps of a run, for XProf and TensorBoard."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces the steps `first` to `last` into `workdir/profile`; a context manager.

    Every process traces its own devices.

    Args:
      workdir: of the run.
      steps: two numbers, or none: nothing is traced.
      say: tells the user a line.
    """

    def __init__(self, workdir: Path, steps: tuple[int, ...], say: Callable[[str], None]):
        self._folder, self._say = workdir / "profile", say
        self._first, self._last = steps or (0, 0)
        self._running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._running:
            self._stop()

    def begin(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """To be entered around a step, which it names in the trace."""
        if self._first and step == self._first:
            jax.profiler.start_trace(self._folder)
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def end(self, step: int, result: Any) -> None:
        """After a step was dispatched, with what it computes."""
        if self._running and step >= self._last:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False
        self._say(f"traced: tensorboard --logdir={self._folder} (with pip install xprof) shows it")
