"""What a run's loop calls from step to step: one small interface for whatever hangs on it.

Telemetry and the profile are hooks, and `train.train(..., hooks=[...])` takes further ones. Saving
and stopping are in the loop itself: what a killed run goes on from depends on their order.
"""

from collections.abc import Mapping

import jax

from xception_jax.training.state import TrainState


class Hook:
    """Does nothing; a hook overrides what it needs.

    All processes of a run call their hooks, at the same steps. An error that one raises ends the
    run.
    """

    def before_step(self, step: int) -> None:
        """Before a step is dispatched to the devices."""

    def after_step(self, step: int, state: TrainState, metrics: Mapping[str, jax.Array]) -> None:
        """After a step was dispatched; to read an array here waits for the devices.

        Args:
          step: the number of steps done.
          state: after the step. The next step takes its memory: copy what is needed later.
          metrics: the means of the step's batch.
        """

    def on_evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """After an evaluation, before its checkpoint is saved.

        Args:
          step: of the weights.
          results: see `evaluation.Evaluators`.
        """

    def at_end(self, step: int) -> None:
        """After the last checkpoint is written; `step` is the last one done.

        It is not called where an error has ended the run.
        """


class Hooks(Hook):
    """Calls several hooks one after the other."""

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
