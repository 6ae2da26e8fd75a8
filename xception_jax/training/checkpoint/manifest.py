"""The manifest of a checkpoint: `<step>/meta/metadata`, one sealed JSON object.

It covers everything of a step: digests of the arrays, metrics, a description of the data, config.
Each read checks its seal, its fields and their types. Older checkpoints have no seal and store the
metrics in a separate file; there only types are checked.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from xception_jax.data.readers.folder_files import composed
from xception_jax.errors import RunError, UsageError
from xception_jax.training.checkpoint import digest, storage
from xception_jax.training.checkpoint.storage import Say
from xception_jax.utils import retry, seal
from xception_jax.utils.numbers import for_json, from_json
from xception_jax.utils.text import quoted


class DamagedCheckpointError(RunError):
    """A damaged checkpoint, or a folder that is not a checkpoint."""


@dataclass(frozen=True)
class Meta:
    """A checkpoint's description of itself.

    Attributes:
      step: the number of completed steps.
      dataset: name, version and split of the training data.
      train_examples: their number, which determines the order of the examples.
      class_names: the name of each label.
      config: the run's flat config; None in checkpoints without a seal.
      log: the log's sums for the next start, or None.
      metrics: the results of the run's evaluation at this step, or None. A value that is not finite
        is null in the JSON, and NaN when it is read.
      digests: `{item: {path of the leaf: digest}}`; `Checkpoints.save` sets it.
      digest_algorithm: see `digest`.
      frozen: parts whose leaves are stored separately, see `frozen_part`; not in the JSON if empty.
    """

    step: int
    dataset: str
    train_examples: int
    class_names: tuple[str, ...]
    config: dict[str, Any] | None = None
    log: dict[str, Any] | None = None
    metrics: dict[str, float] | None = None
    digests: dict[str, dict[str, Any]] | None = None
    digest_algorithm: int = digest.LATEST
    frozen: tuple[str, ...] = ()

    def at(self, step: int, log: dict[str, Any] | None = None) -> "Meta":
        """The same description for another step; `log` must be JSON."""
        return replace(self, step=step, log=log)

    def fields(self) -> dict[str, Any]:
        """The fields for JSON, with a seal."""
        fields = asdict(self)
        if self.metrics is not None:
            fields["metrics"] = for_json(self.metrics)
        if not self.frozen:
            del fields["frozen"]
        return seal.sealed(fields)

    def check_data(self, now: "Meta", workdir: Path) -> None:
        """Raises `UsageError` if a run would continue on other examples than it began with.

        Args:
          now: describes the current data.
          workdir: the run's folder, for the message.
        """
        then = (self.dataset, self.train_examples)
        if then != (now.dataset, now.train_examples) or self.class_names != now.class_names:
            changed = "other classes" if self.class_names != now.class_names else "other examples"
            raise UsageError(
                f"the run began on {self.train_examples:,} examples of {self.dataset}, but now "
                f"there are {now.train_examples:,} of {now.dataset}, {changed}; restore the data, "
                f"or start a new run from its weights: --config.init_from={quoted(workdir)} and "
                f"another --workdir"
            )

    def check_classes(self, dataset: str, class_names: tuple[str, ...]) -> None:
        """Raises `UsageError` if the data's classes are not those of the training."""
        if tuple(map(composed, self.class_names)) != tuple(map(composed, class_names)):
            raise UsageError(
                f"the classes of {dataset} are not the {len(self.class_names)} classes that the "
                f"run learned from {self.dataset}"
            )


def is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _are_metrics(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if not all(number is None or _is_number(number) for number in value.values()):
        return False
    return _is_number(value.get("loss")) and _is_number(value.get("map", value.get("top1")))


def _are_digests(value: Any, algorithm: Any) -> bool:
    kind = int if algorithm == 1 else str
    return isinstance(value, dict) and all(
        isinstance(leaves, dict) and all(type(leaf) is kind for leaf in leaves.values())
        for leaves in value.values()
    )


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


# The fields of manifests without a seal, then the additional fields of sealed ones.
_OLD: dict[str, Callable[[Any], bool]] = {
    "step": is_count,
    "dataset": lambda value: isinstance(value, str),
    "train_examples": is_count,
    "class_names": _are_names,
    "digests": _is_dict,
}
_SINCE: dict[str, Callable[[Any], bool]] = {
    "config": lambda value: value is None or _is_dict(value),
    "log": lambda value: value is None or _is_dict(value),
    "metrics": lambda value: value is None or _are_metrics(value),
    "digest_algorithm": lambda value: value in (1, digest.LATEST),
}
# A field that only manifests of runs with a frozen part have.
_FROZEN: dict[str, Callable[[Any], bool]] = {
    "frozen": lambda value: _are_names(value) and len(value) > 0,
}


def parse(text: str | bytes) -> Meta:
    """Parses a manifest; raises `ValueError` if it is damaged or incomplete."""
    try:
        fields = seal.parse(text)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    return from_fields(fields)


def from_fields(fields: dict[str, Any]) -> Meta:
    """The manifest with these fields; raises `ValueError` if they are invalid or incomplete."""
    fields, shape = dict(fields), _OLD
    if fields.keys() != _OLD.keys():
        # Anything but the exact old fields needs a seal: a flipped bit could have renamed it.
        seal.check(fields)
        del fields[seal.NAME]
        shape = _OLD | _SINCE | (_FROZEN if "frozen" in fields else {})
    if lacking := [*(shape.keys() - fields.keys()), *(fields.keys() - shape.keys())]:
        raise ValueError(f"has a missing or unknown field {lacking[0]}")
    for name, fits in shape.items():
        if not fits(fields[name]):
            raise ValueError(f"has an invalid {name}")
    algorithm = fields.get("digest_algorithm", 1)
    if not _are_digests(fields["digests"], algorithm):
        raise ValueError("has invalid digests")
    for name in ("class_names", "frozen"):
        fields[name] = tuple(fields.get(name, ()))
    if fields.get("metrics"):
        fields["metrics"] = from_json(fields["metrics"])
    return Meta(**{"digest_algorithm": algorithm, **fields})


def path_of(folder: Path) -> Path:
    """The path of a checkpoint's manifest, where Orbax's JSON handler writes the item `meta`."""
    return folder / "meta" / "metadata"


def read(folder: Path) -> Meta:
    """Reads and checks a checkpoint's manifest, and checks that the folder has only files.

    Raises:
      DamagedCheckpointError: the manifest is damaged.
      OSError: the storage failed, see `retry.fault`.
    """
    try:
        check_regular(folder)
        meta = parse(storage.bytes_of(path_of(folder)))
        if meta.step != int(folder.name):
            raise ValueError(f"is of step {meta.step}")
        if meta.digest_algorithm == 1 and meta.metrics is None:
            meta = replace(meta, metrics=_old_metrics(folder))
    except OSError as error:
        if retry.fault(error):
            raise
        missing = isinstance(error, FileNotFoundError)
        why = " is missing" if missing else f": {error.strerror}"
        reason = f"{error.filename}{why}"
        raise DamagedCheckpointError(f"checkpoint {folder.name} is damaged: {reason}") from None
    except ValueError as error:
        raise DamagedCheckpointError(
            f"checkpoint {folder.name} is damaged: its manifest {error}"
        ) from None
    return meta


def _old_metrics(folder: Path) -> dict[str, float] | None:
    """The metrics of a checkpoint without a seal, from a separate file."""
    path = folder / "metrics" / "metrics"
    if not path.exists():
        return None
    try:
        metrics = seal.parse(storage.bytes_of(path))
        if not _are_metrics(metrics):
            raise ValueError("they are invalid")
        return from_json(metrics)
    except ValueError as error:
        raise DamagedCheckpointError(
            f"checkpoint {folder.name} is damaged: its metrics: {error}"
        ) from None


def check_regular(folder: Path, what: str | None = None) -> None:
    """Raises `DamagedCheckpointError` unless the folder has only regular files and folders.

    Opening a pipe would block the run forever. Links are followed.

    Args:
      folder: the folder.
      what: its name in the message; None: `checkpoint NAME`.
    """
    seen, what = set(), what or f"checkpoint {folder.name}"

    def check(path: Path) -> None:
        try:
            info = path.stat()
        except OSError as error:
            if retry.fault(error):
                raise
            raise DamagedCheckpointError(f"{what} is damaged: {path}: {error.strerror}") from None
        place = (info.st_dev, info.st_ino)
        directory = stat.S_ISDIR(info.st_mode)
        if directory and place not in seen:
            seen.add(place)
            for name in sorted(os.listdir(path)):
                check(path / name)
        elif directory or not stat.S_ISREG(info.st_mode):
            raise DamagedCheckpointError(
                f"{what} is damaged: {path} is neither a file nor a folder"
            )

    check(folder)
    if not folder.is_dir():
        raise DamagedCheckpointError(f"{what} is damaged: {folder} is not a folder")


def steps(checkpoints: Path, say: Say = None) -> list[int]:
    """The steps of all finished checkpoints in order, damaged or not.

    Raises:
      ReadError: the folder could not be listed.
    """

    def names() -> list[str]:
        try:
            return os.listdir(checkpoints)
        except (FileNotFoundError, NotADirectoryError):
            return []

    names_there = storage.read(checkpoints, names, say)
    return sorted(int(name) for name in names_there if name.isdecimal() and name == str(int(name)))


def survey(checkpoints: Path, say: Say = None) -> dict[int, Meta | str]:
    """The manifest of each checkpoint of a run, or the complaint if it is damaged, by step.

    Args:
      checkpoints: the folder of the checkpoints.
      say: prints a line when a file must be read again.

    Raises:
      RunError: a manifest could not be read.
    """
    found: dict[int, Meta | str] = {}
    for step in steps(checkpoints, say):
        folder = checkpoints / str(step)
        try:
            found[step] = storage.read(folder, partial(read, folder), say)
        except DamagedCheckpointError as damage:
            if os.path.lexists(folder):  # else its run has deleted it meanwhile
                found[step] = str(damage)
    return found


def newest_config(checkpoints: Path, say: Say = None) -> tuple[int, dict[str, Any]] | None:
    """The step and the flat config of the newest undamaged checkpoint with a config, or None."""
    for step in reversed(steps(checkpoints, say)):
        folder = checkpoints / str(step)
        try:
            meta = storage.read(folder, partial(read, folder), say)
        except DamagedCheckpointError:
            continue
        if meta.config is not None:
            return step, meta.config
    return None
