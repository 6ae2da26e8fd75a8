"""Checkpoints: `workdir/checkpoints/<step>`, written by Orbax in the background.

The parts of the state (`params`, `batch_stats`, `opt_state`, `ema`) are separate items, so that an
evaluation only reads what it needs. The item `meta` is the manifest, see `manifest`. It has a
digest of every array, because Orbax does not detect a flipped bit in array data. All items are
finalized together. Frozen parts of a model are stored once, see `frozen_part`.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from xception_jax.config import Best
from xception_jax.errors import ReadError, RunError, UsageError
from xception_jax.runtime import cluster
from xception_jax.training.checkpoint import frozen_part, manager, manifest, reading, storage
from xception_jax.training.checkpoint.digest import digests
from xception_jax.training.checkpoint.frozen_part import DamagedFrozenPartError
from xception_jax.training.checkpoint.manifest import DamagedCheckpointError, Meta
from xception_jax.training.checkpoint.tracebacks import Tracebacks
from xception_jax.training.state import TrainState, Tree
from xception_jax.utils import retry
from xception_jax.utils.files import write_atomically

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last write.

    Opening it reads the manifests of all checkpoints and changes nothing.

    Args:
      workdir: the run's folder.
      keep: the number of newest checkpoints to keep, in addition to the best one.
      best: how to choose the best one; None: as `eval.best` `auto`.
      read_only: whether to leave all files unchanged.
      say: prints a line when a file must be read again; None: to standard error.

    Raises:
      ReadError: a manifest could not be read for two minutes.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        keep: int = 1,
        best: Best | None = None,
        read_only: bool = False,
        say: storage.Say = None,
    ):
        self.workdir = workdir
        self._folder = workdir.absolute() / "checkpoints"
        self._keep, self._read_only, self._say = keep, read_only, say
        self._writing, self._criterion = False, best or Best()
        self._tracebacks = Tracebacks(workdir)
        # For each step: its manifest, or what is wrong with it, as process 0 sees it.
        self._found = self._survey()
        # Frozen parts that were read or written and are verified.
        self._verified: set[Path] = set()

    @classmethod
    def from_config(cls, config: ConfigDict, workdir: Path) -> "Checkpoints":
        """The checkpoints of a run with this config."""
        return cls(workdir, keep=config.checkpoint.keep, best=Best.parse(config.eval.best))

    def _survey(self) -> dict[int, Meta | str]:
        def survey() -> list[tuple[int, Any]]:
            if not cluster.is_first():
                return []
            found = manifest.survey(self._folder, self._say)
            return [(step, one.fields() if isinstance(one, Meta) else one)
                    for step, one in found.items()]  # fmt: skip

        [first, *_] = _together(survey)
        return {
            step: one if isinstance(one, str) else manifest.from_fields(one) for step, one in first
        }

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """Orbax's manager, which saves and deletes; damaged checkpoints were moved before."""
        assert not self._read_only
        self._delete()  # leftovers of a killed run
        try:
            created = manager.create(self._folder, self._keep, self._best)
        except OSError as error:
            raise self._failed("a checkpoint", error) from error
        self._writing = True
        return created

    def __enter__(self) -> "Checkpoints":
        self._tracebacks.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self._close()
        except RunError:
            if kind is None:  # else the first error is reported
                raise
        finally:
            self._tracebacks.__exit__()

    @contextmanager
    def writing(self, say: Callable[[str], None]) -> Iterator[None]:
        """A context in which steps can be saved; at its end it waits for all writes.

        Args:
          say: prints a line about a failed write if another error ends the context.

        Raises:
          RunError: a write failed.
        """
        try:
            yield
        except BaseException:
            try:
                self._close()
            except RunError as error:
                say(f"also: {error}")
            raise
        self._close()

    def _close(self) -> None:
        """Waits for all writes and ends saving. Raises `RunError` if a write failed."""
        if not self._writing:
            return
        self._found = {step: self._found[step] for step in self.steps()}
        self._writing = False
        try:
            self._manager.close()
            self._delete()
        except Exception as error:
            raise self._failed("a checkpoint", error) from error

    def steps(self) -> list[int]:
        """The steps of all checkpoints in order, including damaged ones."""
        return sorted(self._manager.all_steps()) if self._writing else sorted(self._found)

    def find(self, step: str) -> int:
        """The step of `latest`, `best` or a number.

        Raises:
          UsageError: there is no such checkpoint.
          DamagedCheckpointError: its manifest is damaged. For `best`, any damaged manifest, because
            that checkpoint could be the best.
        """
        steps = self.steps()
        if not steps:
            raise UsageError(f"no checkpoint in {self._folder}")
        if step == "best":
            if damage := [one for step in steps if isinstance(one := self._found[step], str)]:
                raise DamagedCheckpointError(
                    f"{damage[0]}; it could be the best. Choose a checkpoint, for example with "
                    f"--step=latest, or continue the run, which moves the damaged one away"
                )
            best = self.best()
            if best is None:
                what = self._criterion.metric and f" by a finite {self._criterion.metric}"
                raise UsageError(
                    f"no checkpoint in {self._folder} was evaluated{what}; use --step=latest"
                )
            return best
        if step != "latest" and (not step.isdecimal() or int(step) not in steps):
            there = ", ".join(map(str, steps))
            raise UsageError(f"no checkpoint {step!r} in {self._folder}; latest, best, or: {there}")
        found = steps[-1] if step == "latest" else int(step)
        self.meta(found)
        return found

    def meta(self, step: int) -> Meta:
        """A checkpoint's manifest; raises `DamagedCheckpointError` if it is damaged."""
        found = self._found[step]
        if isinstance(found, str):
            raise DamagedCheckpointError(found)
        return found

    def metrics(self, step: int) -> dict[str, float] | None:
        """The results of the run's evaluation at this step, or None."""
        found = self._found.get(step)
        return found.metrics if isinstance(found, Meta) else None

    def log(self, step: int) -> dict[str, Any] | None:
        """The log's sums at this step, see `Telemetry.to_carry`, or None."""
        found = self._found.get(step)
        return found.log if isinstance(found, Meta) else None

    def _best(self, steps: Sequence[int]) -> int | None:
        """The best step, the newest of equals; None if none was evaluated by the criterion."""
        evaluated = {step: found for step in steps if (found := self.metrics(step))}
        rated = {
            step: (self._criterion.quality(found), step)
            for step, found in evaluated.items()
            if self._criterion.is_in(found)
        }
        return max(rated, key=rated.__getitem__, default=None)

    def best(self) -> int | None:
        """The best step; None if the deciding metric is finite in no checkpoint."""
        return self._best(self.steps())

    def warm_up(self, state: TrainState) -> None:
        """Computes the digests of a state once, so that a later urgent save compiles nothing."""
        for tree in _items(state).values():
            digests(tree)

    def save(self, state: TrainState, meta: Meta, metrics: dict[str, float] | None = None) -> None:
        """Copies the state from the devices and writes it in the background.

        If `meta` has frozen parts, the first save writes them before it returns.

        Raises:
          RunError: the state is not finite, or an earlier write failed.
        """
        items = _items(state)
        found = {name: digests(tree) for name, tree in items.items()}
        broken = [f"{name}.{leaf}" for name, (_, leaves) in found.items() for leaf in leaves]
        if broken:
            raise RunError(f"at step {meta.step} {broken[0]} is not finite; nothing was saved. "
                           f"The last good checkpoint is {self._last()}")  # fmt: skip
        sums = {name: sums for name, (sums, _) in found.items()}
        meta = replace(meta, digests=sums, metrics=metrics)
        trained, held = frozen_part.split(items, meta.frozen)
        args = {name: ocp.args.StandardSave(tree) for name, tree in trained.items()}
        composite = ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta.fields()))
        self.wait()
        self._delete()
        if meta.step in self.steps():
            raise RunError(f"step {meta.step} is already saved; saved steps: {self.steps()}")
        self._found[meta.step] = meta  # before the save, which deletes by the best
        try:
            if held:
                self._write_frozen(frozen_part.place(self._folder, meta), held)
            saved = self._manager.save(meta.step, args=composite)
        except Exception as error:
            raise self._failed(f"checkpoint {meta.step}", error) from error
        if not saved:
            raise RunError(f"Orbax did not save step {meta.step}; saved steps: {self.steps()}")

    def _write_frozen(self, place: Path, held: dict[str, Tree]) -> None:
        """Writes the frozen part, unless it is verified and still exists."""
        if cluster.on_first(lambda: place in self._verified and place.is_dir()):
            return
        metas = [self._found[step] for step in self.steps()]
        needed = {frozen_part.place(self._folder, one) for one in metas if isinstance(one, Meta)}
        frozen_part.write(place, held, needed)
        self._verified.add(place)

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the results of an evaluation to a saved checkpoint."""
        self.wait()
        meta = replace(self.meta(step), metrics=metrics)
        path = manifest.path_of(self._folder / str(step))
        cluster.on_first(lambda: write_atomically(path, json.dumps(meta.fields())))
        self._found[step] = meta

    def wait(self) -> None:
        """Waits until everything is written. Raises `RunError` if a write failed."""
        if not self._writing:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed("a checkpoint", error) from error

    def _delete(self) -> None:
        """Deletes old checkpoints while Orbax writes nothing; see `manager.DELETED`."""
        if cluster.is_first():
            shutil.rmtree(self._folder / manager.DELETED, ignore_errors=True)

    def _failed(self, what: str, error: Exception) -> RunError:
        """The error for a failed write, in one line with the path of Orbax's traceback."""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if why := retry.fault(error):
            reason = f"{why}: {retry.file_of(error) or self._folder}"
        path = self._tracebacks.write()
        return RunError(
            f"{what} could not be written: {reason}"
            + (f"; {path} has the traceback" if path else "")
        )

    def _last(self) -> str:
        steps = self.steps()
        return str(self._folder / str(steps[-1])) if steps else "none"

    def restore(self, step: int, targets: dict[str, Tree]) -> tuple[dict[str, Tree], Meta]:
        """Reads items of a checkpoint onto the devices and checks every array's digest.

        Either all processes of a run succeed, or all raise.

        Args:
          step: one of `steps()`.
          targets: for each item to read, a tree of `jax.ShapeDtypeStruct` with shardings.

        Raises:
          DamagedCheckpointError: with the reason, and the name of the leaf if it is one.
          DamagedFrozenPartError: the same, for the part that all steps share.
          ReadError: a file could not be read for two minutes.
        """
        meta = self.meta(step)
        folder = self._folder / str(step)
        trained, held = frozen_part.split(targets, meta.frozen)
        found: dict[str, Tree] = {}
        frozen: dict[str, Tree] = {}
        _together(lambda: found.update(self._read(folder, trained)))
        if held:
            place = frozen_part.place(self._folder, meta)
            _together(lambda: frozen.update(self._read_frozen(place, held)))
        state = frozen_part.join(found, frozen)
        # Digests are sums over all devices, so all processes must have finished reading.
        _together(lambda: reading.compare(step, state, meta, self._folder))
        if held:
            self._verified.add(frozen_part.place(self._folder, meta))
        return state, meta

    def _read(
        self, folder: Path, targets: dict[str, Tree], what: str | None = None
    ) -> dict[str, Tree]:
        """The arrays of a folder's items. Errors are raised as `DamagedCheckpointError`."""

        def action() -> dict[str, Tree]:
            return {
                name: reading.read_arrays(folder / name, target) for name, target in targets.items()
            }

        return reading.as_damage(folder, lambda: storage.read(folder, action, self._say), what)

    def _read_frozen(self, folder: Path, targets: dict[str, Tree]) -> dict[str, Tree]:
        what = f"the frozen part {folder}"
        try:
            storage.read(folder, lambda: manifest.check_regular(folder, what), self._say)
            return self._read(folder, targets, what)
        except DamagedCheckpointError as damage:
            raise frozen_part.damaged(str(damage)) from damage

    def restore_newest(
        self, target: TrainState
    ) -> tuple[TrainState | None, Meta | None, list[str]]:
        """Restores the newest checkpoint that all processes can read without damage.

        Newer ones, and older ones with a damaged manifest, are moved to `workdir/damaged`.

        Returns:
          The state and its meta (None, None without any checkpoint), and a line for each
          checkpoint that was moved.

        Raises:
          RunError: all checkpoints are damaged; nothing was moved.
          ReadError: a file could not be read for two minutes; nothing was moved.
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
            older = {step: one for step, one in self._found.items() if isinstance(one, str)}
            return state, meta, self._move_aside({**older, **complaints})
        if complaints:
            raise RunError(
                f"no checkpoint in {self._folder} can be restored; the newest: "
                f"{next(iter(complaints.values()))}"
            )
        return None, None, []

    def _move_aside(self, complaints: dict[int, str]) -> list[str]:
        """Moves checkpoints to `workdir/damaged`; returns the complaints with the new paths."""
        notes: list[str] = []
        for step, complaint in sorted(complaints.items(), reverse=True):
            place = cluster.on_first(partial(reading.move_aside, self._folder / str(step)))
            notes.append(f"{complaint}; moved to {place}")
            del self._found[step]
        return notes


def _together(action: Callable[[], T]) -> list[T]:
    """As `cluster.together`, but a failed read in one process precedes damage in another."""
    kinds = (ReadError, DamagedFrozenPartError, DamagedCheckpointError)
    return cluster.together(action, kinds)


def _items(state: TrainState) -> dict[str, Tree]:
    """The parts that a state has, by name."""
    parts = {name: getattr(state, name) for name in manager.ITEMS}
    return {name: tree for name, tree in parts.items() if tree is not None}
