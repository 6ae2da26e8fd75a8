"""Where the package keeps what it can make again."""

import os
import stat
from pathlib import Path

from xception_jax.errors import UsageError


def folder() -> Path:
    """In the folder that `XDG_CACHE_HOME` names, else in `~/.cache`.

    Raises:
      UsageError: there is no home folder.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # A relative path is to be ignored, says the XDG base directory specification.
        base = named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise UsageError(
            "this user has no home folder; name one for caches with XDG_CACHE_HOME"
        ) from None
    return base / "xception_jax"


def make_private(path: Path) -> Path:
    """Makes a folder for what is run as code, and checks that only the user can write there.

    Whoever can write to it, or replace it or a folder above it, could have this user run a program.

    Args:
      path: made, with the folders above it, for this user alone (mode 0700).

    Returns:
      The path, absolute.

    Raises:
      UsageError: it cannot be made, is a link, or someone else can write to it or replace it.
    """
    path = path.absolute()
    try:
        for missing in reversed([p for p in (path, *path.parents) if not p.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        above = {*path.parents, *path.resolve().parents}
        complaint = _complaint(path, above=False)
        complaint = complaint or next(filter(None, (_complaint(p, above=True) for p in above)), "")
    except OSError as error:
        raise UsageError(f"{path} cannot be made: {error.strerror}") from None
    if complaint:
        raise UsageError(f"{path} is not safe to keep programs in: {complaint}")
    return path


def _complaint(place: Path, *, above: bool) -> str:
    """Why others could write to a folder, or replace what is in it; empty if they cannot."""
    status = place.lstat()
    if status.st_uid != os.geteuid() and not (above and status.st_uid == 0):
        return f"{place} belongs to another user"
    if stat.S_ISLNK(status.st_mode):
        return "" if above else f"{place} is a link"
    if not stat.S_ISDIR(status.st_mode):
        return f"{place} is no folder"
    # In a folder with the sticky bit, as /tmp, nobody can replace what belongs to others.
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if shared and not (above and status.st_mode & stat.S_ISVTX):
        return f"others can write to {place}; chmod go-w takes that from them"
    return ""
