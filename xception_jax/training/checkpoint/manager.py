"""Orbax' manager, which saves checkpoints and deletes those that are not kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

ITEMS = ("params", "batch_stats", "opt_state", "ema")
# Below the checkpoints: where those go that are not kept. They are renamed first and deleted then,
# so that a kill or a reader at that moment never meets a checkpoint with half of its files.
DELETED = "deleted"

FindBest = Callable[[Sequence[int]], int | None]  # among the steps that there are


@dataclass
class _Best(policies.PreservationPolicy):  # type: ignore[misc]  # Orbax has no types
    """Has Orbax keep the best step."""

    find: FindBest

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = self.find([info.step for info in checkpoints])
        return [info.step == best for info in checkpoints]


def create(folder: Path, keep: int, best: FindBest) -> ocp.CheckpointManager:
    """A manager that keeps the newest checkpoints, so many, and the best."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), _Best(best)]),
        save_decision_policy=policies.FixedIntervalPolicy(1),
        cleanup_tmp_directories=True,
        todelete_subdir=DELETED,
    )
    return ocp.CheckpointManager(folder, options=options, item_names=(*ITEMS, "meta"))
