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

from xception_jax import cluster
from xception_jax import config as config_lib
from xception_jax.errors import UsageError


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's text as a whole or not at all."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text)
    os.replace(draft, path)


def read_config(workdir: Path) -> ConfigDict:
    """The config that the run in `workdir` was started with, but for `config.portable`."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UsageError(f"no run in {workdir}: it holds no config.json")
    try:
        config = config_lib.from_flat(config_lib.portable(json.loads(path.read_text())))
    except UsageError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path} is no config: {reason}") from None
    config_lib.check_fields(config)
    return config


def begun_config(workdir: Path) -> ConfigDict | None:
    """The config of the run in `workdir`, if one has saved anything there."""
    checkpoints = workdir / "checkpoints"
    begun = checkpoints.is_dir() and any(p.name.isdigit() for p in checkpoints.iterdir())
    return read_config(workdir) if begun and (workdir / "config.json").is_file() else None


@contextmanager
def claim(workdir: Path, config: ConfigDict, *, allow_changes: bool = False) -> Iterator[None]:
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
    """Does what `claim` says; the folder is free again when the stack closes."""
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file; name a folder")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--workdir={workdir} cannot be made: {error.strerror}") from None
    try:
        lock = stack.enter_context((workdir / ".lock").open("w"))
        # The system drops the lock with the process, however it ends.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"another process is training in {workdir}") from None
    except OSError as error:
        raise UsageError(f"--workdir={workdir} cannot be locked: {error.strerror}") from None
    _settle(workdir / "config.json", config, allow_changes)


def _settle(path: Path, new: dict[str, Any], allow_changes: bool) -> None:
    begun = begun_config(path.parent)
    if begun is not None:
        old = config_lib.flatten(begun)
        changed = config_lib.differences(old, new)
        harmless = all(config_lib.may_change(name, new) for name in changed)
        if changed and not (allow_changes and harmless):
            listed = ", ".join(f"{name} was {old[name]!r}, is {new[name]!r}" for name in changed)
            mend = (
                "--allow_config_changes lets them change"
                if harmless
                else "take another --workdir, or the config of this one"
            )
            raise UsageError(f"{path.parent} holds a run with another config: {listed}; {mend}")
    write_atomically(path, json.dumps(new, indent=1) + "\n")
