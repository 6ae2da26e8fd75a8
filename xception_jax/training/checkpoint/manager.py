"""Orbax's manager, which saves checkpoints and deletes old ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

ITEMS = ("params", "batch_stats", "opt_state", "ema")
# A folder in `checkpoints`. A checkpoint is moved there before it is deleted, so that a reader, or
# the next start after a kill, never sees a checkpoint with missing files.
DELETED = "deleted"

FindBest = Callable[[Sequence[int]], int | None]  # takes the existing steps


@dataclass
class _Best(policies.PreservationPolicy):  # type: ignore[misc]  # Orbax has no types
    """Makes Orbax keep the best step."""

    find: FindBest

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = self.find([info.step for info in checkpoints])
        return [info.step == best for info in checkpoints]


def create(folder: Path, keep: int, best: FindBest) -> ocp.CheckpointManager:
    """A manager that keeps a number of newest checkpoints and the best one."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), _Best(best)]),
        save_decision_policy=policies.FixedIntervalPolicy(1),
        cleanup_tmp_directories=True,
        todelete_subdir=DELETED,
    )
    return ocp.CheckpointManager(folder, options=options, item_names=(*ITEMS, "meta"))
