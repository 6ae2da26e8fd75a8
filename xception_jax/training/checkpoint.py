"""Checkpoints: `workdir/checkpoints/<step>`, written by Orbax in the background.

The parts of the state (`params`, `batch_stats`, `opt_state`, `ema`) are separate items, so that an
evaluation reads only what it needs. The item `meta` is JSON and holds a digest of every array,
since Orbax does not notice a flipped bit in array data. All of it is finalized together.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from xception_jax import cluster
from xception_jax.errors import RunError, UsageError
from xception_jax.training.digest import digests
from xception_jax.training.state import TrainState, Tree
from xception_jax.training.workdir import write_atomically

ITEMS = ("params", "batch_stats", "opt_state", "ema")


class DamagedCheckpointError(RunError):
    """A checkpoint that cannot be read, or whose arrays are not those that were saved."""


@dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself.

    Attributes:
      step: steps done.
      dataset: name, version and split of the training data.
      train_examples: their number, on which the order of the examples rests.
      class_names: what each label means.
      digests: `{item: {path of the leaf: digest}}`, filled in by `save`.
    """

    step: int
    dataset: str
    train_examples: int
    class_names: tuple[str, ...]
    digests: dict[str, dict[str, int]] | None = None

    def at(self, step: int) -> "Meta":
        """The same, of another step."""
        return replace(self, step=step)

    def check_data(self, now: "Meta") -> None:
        """Raises `UsageError` where a run would continue on other examples than it began with."""
        then = (self.dataset, self.train_examples)
        if then != (now.dataset, now.train_examples):
            raise UsageError(
                f"the run began on {self.train_examples} examples of {self.dataset}, and there are "
                f"{now.train_examples} of {now.dataset}; give it the data back, or start in "
                f"another --workdir"
            )
        self.check_classes(now.dataset, now.class_names)

    def check_classes(self, dataset: str, class_names: tuple[str, ...]) -> None:
        """Raises `UsageError` where the data's classes are not those that were learnt."""
        if self.class_names != class_names:
            raise UsageError(
                f"the classes of {dataset} are not the {len(self.class_names)} that the run learnt "
                f"from {self.dataset}"
            )


def _quality(metrics: dict[str, float]) -> tuple[float, float]:
    """What `best` means: the highest top-1, of multi-label data MAP; of equals the lowest loss."""
    return metrics["map" if "map" in metrics else "top1"], -metrics["loss"]


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last write.

    Args:
      workdir: the run's folder.
      keep: newest checkpoints that are kept, besides the best one.
      read_only: open what is there and change nothing.
    """

    def __init__(self, workdir: Path, *, keep: int = 1, read_only: bool = False):
        self._folder = workdir / "checkpoints"
        self._complaints: list[str] = []
        cluster.on_first(
            lambda: self._complaints.extend(_unreadable_metrics(self._folder, read_only))
        )
        best = policies.BestN(get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            save_decision_policy=None if read_only else policies.FixedIntervalPolicy(1),
            best_fn=_quality,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        self._manager = ocp.CheckpointManager(
            self._folder.absolute(), options=options, item_names=(*ITEMS, "meta")
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        return sorted(self._manager.all_steps())

    def find(self, step: str) -> int:
        """The step that `latest`, `best` or a number names; `UsageError` if there is none."""
        steps = self.steps()
        if not steps:
            raise UsageError(f"no checkpoint in {self._folder}")
        if step == "latest":
            return steps[-1]
        if step == "best":
            best = self._manager.best_step()
            if best is None:
                raise UsageError(
                    f"no checkpoint in {self._folder} was evaluated; take --step=latest"
                )
            return best
        if not step.isdecimal() or int(step) not in steps:
            there = ", ".join(map(str, steps))
            raise UsageError(f"no checkpoint {step!r} in {self._folder}; latest, best, or: {there}")
        return int(step)

    def metrics(self, step: int) -> dict[str, float] | None:
        """What the run's evaluation at this step found, if there was one."""
        return self._manager.metrics(step)

    def warm_up(self, state: TrainState) -> None:
        """Computes the digests of a state once, so that a save in a hurry compiles nothing."""
        for tree in _items(state).values():
            digests(tree)

    def save(self, state: TrainState, meta: Meta, metrics: dict[str, float] | None = None) -> None:
        """Copies the state off the devices and writes it in the background.

        Raises:
          RunError: the state is not finite, or an earlier write failed.
        """
        items = _items(state)
        found = {name: digests(tree) for name, tree in items.items()}
        broken = [f"{name}.{leaf}" for name, (_, leaves) in found.items() for leaf in leaves]
        if broken:
            raise RunError(f"at step {meta.step} {broken[0]} is not finite; nothing was saved. "
                           f"The last good checkpoint is {self._last()}")  # fmt: skip
        meta = replace(meta, digests={name: sums for name, (sums, _) in found.items()})
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        composite = ocp.args.Composite(**args, meta=ocp.args.JsonSave(asdict(meta)))
        try:
            saved = self._manager.save(meta.step, args=composite, metrics=metrics)
        except Exception as error:
            raise RunError(f"checkpoint {meta.step} could not be saved: {error}") from error
        if not saved:
            raise RunError(f"Orbax refused to save step {meta.step}; there are: {self.steps()}")

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Adds what an evaluation found to a checkpoint that was saved without."""
        self.wait()
        folder = self._folder / str(step) / "metrics"

        def write() -> None:
            folder.mkdir(exist_ok=True)  # as Orbax writes and reads them
            write_atomically(folder / "metrics", json.dumps(metrics))

        cluster.on_first(write)
        self._manager.reload()

    def wait(self) -> None:
        """Waits until everything is written. Raises `RunError` if a write failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise RunError(f"a checkpoint could not be written: {error}") from error

    def _last(self) -> str:
        steps = self.steps()
        return str(self._folder / str(steps[-1])) if steps else "none"

    def restore(self, step: int, targets: dict[str, Tree]) -> tuple[dict[str, Tree], Meta]:
        """Reads items of a checkpoint onto the devices and checks every array's digest.

        Args:
          step: one of `steps()`.
          targets: for each item wanted, its tree of `jax.ShapeDtypeStruct` with shardings.

        Raises:
          DamagedCheckpointError: with the reason, naming the leaf where it is one.
        """
        args = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
        composite = ocp.args.Composite(**args, meta=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=composite)
            meta = Meta(**restored.meta)
            meta = replace(meta, class_names=tuple(meta.class_names))
            if meta.step != step:
                raise ValueError(f"it says of itself that it is of step {meta.step}")
        except (MemoryError, PermissionError) as error:
            raise RunError(f"checkpoint {step} cannot be read: {error!r}") from error
        except Exception as error:  # Orbax and TensorStore raise many kinds
            if "RESOURCE_EXHAUSTED" in str(error) or "Too many open files" in str(error):
                raise RunError(f"checkpoint {step} cannot be read: {error}") from error
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DamagedCheckpointError(
                f"checkpoint {step} cannot be read: {reason[0]}"
            ) from error
        for item in targets:
            now, _ = digests(restored[item])
            then = (meta.digests or {}).get(item, {})
            wrong = [leaf for leaf, digest in now.items() if digest != then.get(leaf)]
            if wrong:
                raise DamagedCheckpointError(
                    f"checkpoint {step} is damaged: {item}.{wrong[0]} is not what was saved"
                )
        items = {name: restored[name] for name in targets}
        return items, meta

    def restore_newest(
        self, target: TrainState
    ) -> tuple[TrainState | None, Meta | None, list[str]]:
        """Restores the newest intact checkpoint and moves newer, damaged ones aside.

        Returns:
          The state and its meta (None, None without any checkpoint), and a line on each checkpoint
          that was moved to `workdir/damaged`.

        Raises:
          RunError: there are checkpoints, but not one that is intact; nothing has been moved.
        """
        targets = _items(target)
        complaints: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                items, meta = self.restore(step, targets)
            except DamagedCheckpointError as damage:
                complaints[step] = str(damage)
                continue
            state = TrainState(
                step=jax.device_put(jnp.asarray(step, jnp.int32), target.step.sharding),
                **{"ema": None, **items},
            )
            for damaged, complaint in complaints.items():
                self._move_aside(damaged, complaint)
            return state, meta, self._complaints
        if complaints:
            raise RunError(
                f"no checkpoint in {self._folder} can be restored; the newest: "
                f"{next(iter(complaints.values()))}"
            )
        return None, None, self._complaints

    def _move_aside(self, step: int, complaint: str) -> None:
        folder = self._folder / str(step)
        cluster.on_first(lambda: self._complaints.append(_move_aside(folder, complaint)))
        self._manager.reload()


def _items(state: TrainState) -> dict[str, Tree]:
    """The parts that a state has, by name."""
    parts = {name: getattr(state, name) for name in ITEMS}
    return {name: tree for name, tree in parts.items() if tree is not None}


def _move_aside(checkpoint: Path, complaint: str) -> str:
    """Moves a checkpoint to `workdir/damaged`; returns the complaint with its new place."""
    aside = checkpoint.parents[1] / "damaged"
    aside.mkdir(exist_ok=True)
    place, number = aside / checkpoint.name, 0
    while place.exists():
        number += 1
        place = aside / f"{checkpoint.name}.{number}"
    os.rename(checkpoint, place)
    return f"{complaint}; moved to {place}"


def _unreadable_metrics(folder: Path, read_only: bool) -> list[str]:
    """Moves checkpoints aside whose metrics are no JSON: Orbax could not even list them.

    Raises:
      DamagedCheckpointError: there is one, and `read_only` forbids to move it.
    """
    notes = []
    for path in sorted(folder.glob("*/metrics/metrics")):
        try:
            json.loads(path.read_text())
        except ValueError as error:
            complaint = f"checkpoint {path.parents[1].name} is damaged: its metrics: {error}"
            if read_only:
                raise DamagedCheckpointError(complaint) from None
            notes.append(_move_aside(path.parents[1], complaint))
    return notes
