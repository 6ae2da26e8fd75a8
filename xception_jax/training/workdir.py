"""The folder of a run: one writer at a time, and one config for its whole life."""

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
    """The config that the run in `workdir` was started with, but for `config.portable`.

    Where `config.json` is gone, the one that the newest checkpoint keeps takes its place.

    Raises:
      UsageError: there is no run, or its config is not what the run wrote; the fields that differ
        from the one that the newest checkpoint keeps are named.
      RunError: a file could not be read.

    Process 0 reads; all processes of a run have to call it, and get the same or raise.
    """
    config = _config(workdir, cluster.on_first(lambda: _recorded_fields(workdir)))
    if config is None:
        raise UsageError(f"no run in {workdir}: it holds no config.json")
    return config


def name_files(workdir: Path, source: Source) -> tuple[str, ...]:
    """Names the files that evaluation takes in `eval_files.txt`, a line each, in its order.

    Their names start at the data's folder; of data that is no folder, nothing is written.

    Args:
      workdir: the run's folder, which process 0 writes to.
      source: the split.

    Returns:
      What is to be said of the split: its summary, and whether its files have changed.
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
            f"NOTE: evaluation takes other files than before: {changed:,} are new or gone; {path} "
            f"names them as they are now"
        )

    return source.summary, cluster.on_first(write)


def files_of(given: ConfigDict, split: str, workdir: Path | None) -> list[str]:
    """The files of a split by their names in the data's folder, as the run takes them.

    Args:
      given: the config as the user gave it.
      split: of its data.
      workdir: of the run; None, or one that has not begun: the config alone counts.

    Raises:
      UsageError: the data is no folder.
    """
    config_lib.check_fields(given)
    begun = existing_config(workdir) if workdir else None
    source = splits.open_split(config_lib.settled(given, begun), split)
    if (names := folder.names_of(source)) is None:
        raise UsageError(f"--list_split: {source.name} is no folder, so its examples are no files")
    return names


def existing_config(workdir: Path) -> ConfigDict | None:
    """The config of the run in `workdir`, if one has saved anything there; see `read_config`."""
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
        raise UsageError(f"{path} is no config: {reason}") from None
    config_lib.check_fields(config)
    return config


def _check_known(path: Path, flat: dict[str, Any]) -> None:
    """Raises `UsageError` for what files of the user have to add, which no config can name.

    A `config.json` may be a stranger's, so that it must not say what is imported.
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
            f"{path} has {', '.join(unknown)}, which are not of this package; a run that was "
            f"trained with Python files of your own needs them here too: --imports=FILE"
        )


def _recorded_fields(workdir: Path) -> dict[str, Any] | None:
    """The flat config, held against the one that the newest checkpoint keeps; None without any."""
    path = workdir / "config.json"
    kept = manifest.newest_config(workdir / "checkpoints")
    if not os.path.lexists(path):
        return kept and kept[1]
    try:
        fields = storage.read(path, lambda: _parse(path))
        # What was sealed once has to be so: a flip may have renamed the seal.
        complaint = seal.complaint(fields) if kept or seal.NAME in fields else None
    except ValueError as error:
        fields, complaint = {}, f"is no JSON: {error}"
    flat = {name: value for name, value in fields.items() if name != seal.NAME}
    if kept is None:
        if complaint:
            raise UsageError(f"{path} {complaint}")
        return flat
    step, then = kept
    changed = _differences(then, flat) if flat else []
    if complaint is None and all(config_lib.may_change(name, flat) for name in changed):
        return flat  # as --allow_config_changes lets them
    named = [f"{name} was {then.get(name)!r}, is {flat.get(name)!r}" for name in changed]
    raise UsageError(
        f"{path} is not what the run wrote: {', '.join(named) or f'it {complaint}'}; undo that, or "
        f"delete the file, and the config that checkpoint {step} keeps takes its place"
    )


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The fields that differ, though one config may be of a version that had fewer fields."""
    return config_lib.differences(config_lib.complete(then), config_lib.complete(now))


def _parse(path: Path) -> dict[str, Any]:
    """The fields of a file; `ValueError` where it holds none, or is no file."""
    if not path.is_file():
        raise ValueError("it is no regular file")
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
    """Makes the folder this run's own while inside, and settles the run's config.

    Args:
      workdir: made if it is not there.
      config: valid. Written to `config.json` at a run's start, compared with it ever after.
      allow_changes: let fields change that alter nothing that is computed.

    Raises:
      UsageError: the folder is a file, is in use, or holds a run with another config.
    """
    with contextlib.ExitStack() as stack:
        new = config_lib.portable(config_lib.flatten(config))
        cluster.on_first(lambda: _claim(stack, workdir, new, allow_changes))
        yield


def _claim(
    stack: contextlib.ExitStack, workdir: Path, config: dict[str, Any], allow_changes: bool
) -> None:
    """Does what `lock_workdir` says; the folder is free again when the stack closes."""
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file; name a folder")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--workdir={workdir} cannot be made: {error.strerror}") from None
    try:
        lock = stack.enter_context((workdir / ".lock").open("w", encoding="utf-8"))
        # The system drops the lock with the process, however it ends.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"another process is training in {workdir}") from None
    except OSError as error:
        raise UsageError(f"--workdir={workdir} cannot be locked: {error.strerror}") from None
    checkpoints = workdir / "checkpoints"
    if os.path.lexists(checkpoints) and not checkpoints.is_dir():
        raise UsageError(f"{checkpoints} is no folder; move it away, or name another --workdir")
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
            mend = (
                "--allow_config_changes lets them change"
                if harmless
                else "take another --workdir, or the config of this one"
            )
            raise UsageError(f"{path.parent} holds a run with another config: {listed}; {mend}")
    write_atomically(path, json.dumps(seal.sealed(new), indent=1) + "\n")
