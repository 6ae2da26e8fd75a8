"""The folder of a run: one writer at a time, and one config for all of its starts."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax import models
from xception_jax.data import splits
from xception_jax.data.readers import folder
from xception_jax.data.source import Source
from xception_jax.errors import UsageError
from xception_jax.runtime import cluster
from xception_jax.training.checkpoint import manifest, storage
from xception_jax.utils import retry, seal
from xception_jax.utils.files import write_atomically


def read_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir`, made portable by `config.portable`.

    If `config.json` is missing, the copy in the newest checkpoint is used. Process 0 reads. All
    processes of a run must call this function; they get the same config or raise.

    Raises:
      UsageError: there is no run, or its config was changed; the message names the fields that
        differ from the newest checkpoint's copy.
      RunError: a file could not be read.
    """
    config = _config(workdir, cluster.on_first(lambda: _recorded_fields(workdir)))
    if config is None:
        raise UsageError(f"no run in {workdir}: it has no config.json")
    return config


def name_files(workdir: Path, source: Source) -> tuple[str, ...]:
    """Writes the names of the files for evaluation to `eval_files.txt`, one per line, in order.

    The names are relative to the data's folder. For data that is not a folder of images, nothing
    is written.

    Args:
      workdir: the run's folder, to which process 0 writes.
      source: the split.

    Returns:
      Lines for the user: the split's summary, and a note if its files have changed (else empty).
    """

    def write() -> str:
        if (names := folder.names_of(source)) is None:
            return ""
        path, text = workdir / "eval_files.txt", "".join(f"{name}\n" for name in names)
        there = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
        if there == text:
            return ""
        write_atomically(path, text)
        if there is None:
            return ""
        changed = len(set(there.splitlines()) ^ set(names))
        return (
            f"NOTE: the files for evaluation have changed: {changed:,} were added or removed; "
            f"{path} lists the current ones"
        )

    return source.summary, cluster.on_first(write)


def files_of(given: ConfigDict, split: str, workdir: Path | None) -> list[str]:
    """The names of a split's files relative to the data's folder, in the order of the run.

    Args:
      given: the config as the user gave it.
      split: a split of its data.
      workdir: the run's folder; None, or a folder without a run, uses the config only.

    Raises:
      UsageError: the data is not a folder of images.
    """
    config_lib.check_fields(given)
    begun = existing_config(workdir) if workdir else None
    source = splits.open_split(config_lib.settled(given, begun), split)
    if (names := folder.names_of(source)) is None:
        raise UsageError(f"--list_split needs a folder of images; {source.name} is not one")
    return names


def existing_config(workdir: Path) -> ConfigDict | None:
    """The config of the run in `workdir` if it has a checkpoint, else None; see `read_config`."""
    return _config(workdir, cluster.on_first(lambda: _begun_fields(workdir)))


def _begun_fields(workdir: Path) -> dict[str, Any] | None:
    return _recorded_fields(workdir) if manifest.steps(workdir / "checkpoints") else None


def _config(workdir: Path, flat: dict[str, Any] | None) -> ConfigDict | None:
    """The config of these fields of `config.json`."""
    path = workdir / "config.json"
    if flat is None:
        return None
    _check_known(path, flat)
    try:
        config = config_lib.from_flat(config_lib.portable(flat))
    except UsageError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path} is not a config: {reason}") from None
    config_lib.check_fields(config)
    return config


def _check_known(path: Path, flat: dict[str, Any]) -> None:
    """Raises `UsageError` for names that only Python files of the user can add.

    A `config.json` can come from someone else, so it must not decide what is imported.
    """
    unknown = [f"config.{name}" for name in flat if name not in config_lib.SCHEMA]
    for name, known in {
        "model.name": models.names(),
        "optimizer.name": config_lib.SCHEMA["optimizer.name"].choices,
        "optimizer.schedule": config_lib.SCHEMA["optimizer.schedule"].choices,
    }.items():
        if isinstance(flat.get(name), str) and flat[name] not in known:
            kind = name.removesuffix(".name").rpartition(".")[2]
            unknown.append(f"{kind} {flat[name]!r}")
    if unknown:
        raise UsageError(
            f"{path} has {', '.join(unknown)}, which this package does not have; if the run was "
            f"trained with your own Python files, give them here too: --imports=FILE"
        )


def _recorded_fields(workdir: Path) -> dict[str, Any] | None:
    """The flat config, compared with the newest checkpoint's copy; None if there is none."""
    path = workdir / "config.json"
    kept = manifest.newest_config(workdir / "checkpoints")
    if not os.path.lexists(path):
        return kept and kept[1]
    try:
        fields = storage.read(path, lambda: _parse(path))
        # A config with a sealed copy must have a seal: a flipped bit could have renamed it.
        complaint = seal.complaint(fields) if kept or seal.NAME in fields else None
    except ValueError as error:
        fields, complaint = {}, f"is not JSON: {error}"
    flat = {name: value for name, value in fields.items() if name != seal.NAME}
    if kept is None:
        if complaint:
            raise UsageError(f"{path} {complaint}")
        return flat
    step, then = kept
    changed = _differences(then, flat) if flat else []
    if complaint is None and all(config_lib.may_change(name, flat) for name in changed):
        return flat  # --allow_config_changes allows these
    named = [f"{name} was {then.get(name)!r}, is {flat.get(name)!r}" for name in changed]
    raise UsageError(
        f"{path} was changed since the run wrote it: {', '.join(named) or f'it {complaint}'}; undo "
        f"the change, or delete the file to use the copy in checkpoint {step}"
    )


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The fields that differ; one config can be of an older version with fewer fields."""
    return config_lib.differences(config_lib.complete(then), config_lib.complete(now))


def _parse(path: Path) -> dict[str, Any]:
    """The fields of a file. Raises `ValueError` if it has none, or is not a regular file."""
    if not path.is_file():
        raise ValueError("it is not a regular file")
    try:
        return seal.parse(storage.bytes_of(path))
    except OSError as error:
        if retry.fault(error):
            raise
        raise ValueError(error.strerror) from None


@contextmanager
def lock_workdir(
    workdir: Path, config: ConfigDict, *, allow_changes: bool = False
) -> Iterator[None]:
    """A context in which the folder belongs to this run, with the run's config checked.

    Args:
      workdir: created if missing.
      config: valid. It is written to `config.json` at the run's first start, and compared with it
        at later starts.
      allow_changes: whether fields may change that do not affect the computation.

    Raises:
      UsageError: the folder is a file, is in use, or has a run with another config.
    """
    with contextlib.ExitStack() as stack:
        new = config_lib.portable(config_lib.flatten(config))
        cluster.on_first(lambda: _claim(stack, workdir, new, allow_changes))
        yield


def _claim(
    stack: contextlib.ExitStack, workdir: Path, config: dict[str, Any], allow_changes: bool
) -> None:
    """Implements `lock_workdir`; the lock is released when the stack closes."""
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file; give a folder")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--workdir={workdir} cannot be created: {error.strerror}") from None
    try:
        lock = stack.enter_context((workdir / ".lock").open("w", encoding="utf-8"))
        # The system releases the lock when the process ends, even after a kill.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"another process is training in {workdir}") from None
    except OSError as error:
        raise UsageError(f"--workdir={workdir} cannot be locked: {error.strerror}") from None
    checkpoints = workdir / "checkpoints"
    if os.path.lexists(checkpoints) and not checkpoints.is_dir():
        raise UsageError(f"{checkpoints} is not a folder; move it away, or use another --workdir")
    _settle(workdir / "config.json", config, allow_changes)


def _settle(path: Path, new: dict[str, Any], allow_changes: bool) -> None:
    begun = _config(path.parent, _begun_fields(path.parent))  # on process 0 alone
    if begun is not None:
        old = config_lib.flatten(begun)
        changed = _differences(old, new)
        harmless = all(config_lib.may_change(name, new) for name in changed)
        if changed and not (allow_changes and harmless):
            now = config_lib.complete(new)
            listed = ", ".join(f"{name} was {old[name]!r}, is {now[name]!r}" for name in changed)
            fix = (
                "add --allow_config_changes to allow this"
                if harmless
                else "use another --workdir, or the config of this run"
            )
            raise UsageError(f"{path.parent} has a run with another config: {listed}; {fix}")
    write_atomically(path, json.dumps(seal.sealed(new), indent=1) + "\n")
