"""Hooks: functions that the loop of a run calls between steps.

Telemetry and the profile are hooks, and `train.train(..., hooks=[...])` takes more. Saving and
stopping are in the loop itself, because a continued run depends on their order.
"""

from collections.abc import Mapping

import jax

from xception_jax.training.state import TrainState


class Hook:
    """A hook that does nothing; override the methods that you need.

    All processes of a run call their hooks at the same steps. An error in a hook ends the run.
    """

    def before_step(self, step: int) -> None:
        """Called before a step is dispatched to the devices."""

    def after_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """Called after a step is dispatched. Reading an array here waits for the devices.

        Args:
          step: the number of completed steps.
          state: after the step. The next step reuses its memory: copy what you need later.
          metrics: the means of the step's batch.
        """

    def on_evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """Called after an evaluation, before its checkpoint is saved.

        Args:
          step: the step of the weights.
          results: see `evaluation.Evaluators`.
        """

    def at_end(self, step: int) -> None:
        """Called after the last checkpoint is written, with the last completed step.

        It is not called if an error ends the run.
        """


class Hooks(Hook):
    """Calls several hooks in turn."""

    def __init__(self, *hooks: Hook):
        self._hooks = hooks

    def before_step(self, step: int) -> None:
        for hook in self._hooks:
            hook.before_step(step)

    def after_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        for hook in self._hooks:
            hook.after_step(step, state, metrics)

    def on_evaluation(self, step: int, results: Mapping[str, float]) -> None:
        for hook in self._hooks:
            hook.on_evaluation(step, results)

    def at_end(self, step: int) -> None:
        for hook in self._hooks:
            hook.at_end(step)
