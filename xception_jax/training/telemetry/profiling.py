"""A trace of some steps of a run, for XProf and TensorBoard."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from xception_jax.training.hooks import Hook
from xception_jax.training.state import TrainState


class Profile(Hook):
    """Traces the steps `first` to `last` into `workdir/profile`; a context manager.

    Every process traces its own devices.

    Args:
      workdir: the run's folder.
      steps: the first and the last step; empty traces nothing.
      say: prints a line.
    """

    def __init__(self, workdir: Path, steps: tuple[int, ...], say: Callable[[str], None]):
        self._folder, self._say = workdir / "profile", say
        self._first, self._last = steps or (0, 0)
        self._running = False
        self._annotation: jax.profiler.StepTraceAnnotation | None = None

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._leave_step()
        if self._running:
            self._stop()

    def before_step(self, step: int) -> None:
        """Names the step in the trace."""
        if self._first and step == self._first:
            jax.profiler.start_trace(self._folder)
            self._running = True
        self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._annotation.__enter__()

    def after_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """Waits for the last traced step and writes the trace."""
        self._leave_step()
        if self._running and step >= self._last:
            jax.block_until_ready(metrics)
            self._stop()

    def _leave_step(self) -> None:
        if self._annotation:
            self._annotation.__exit__(None, None, None)
            self._annotation = None

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False
        self._say(f"traced; to show it: pip install xprof; tensorboard --logdir={self._folder}")
