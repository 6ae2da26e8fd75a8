"""Where the package keeps what it can make again."""

import contextlib
import grp
import os
import pwd
import re
import stat
from pathlib import Path

from xception_jax.errors import UsageError

# Bytes of compiled programs that a folder keeps; those of one run take some megabytes.
BOUND = 5_000_000_000
# How JAX names a compiled program: the function, and a SHA-256.
_PROGRAM = re.compile(r".+-[0-9a-f]{64}-cache")


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


def remove_old_programs(folder: Path, bound: int = BOUND) -> int:
    """Deletes the programs that were used longest ago, until the rest takes at most `bound` bytes.

    JAX's own bound (`jax_compilation_cache_max_size`) needs another package, locks the folder for
    each access, and stops writing to a folder that was filled without it.

    Args:
      folder: where JAX keeps programs, or a folder of such folders. Other files are left alone.
      bound: bytes.

    Returns:
      The number of programs deleted. One that cannot be read or deleted is left.
    """
    found = []
    with contextlib.suppress(OSError):
        for path in (*folder.glob("*-cache"), *folder.glob("*/*-cache")):
            status = path.lstat()
            if _PROGRAM.fullmatch(path.name) and stat.S_ISREG(status.st_mode):
                # Most systems note the time of a read once a day at least, which is enough here.
                used = max(status.st_atime, status.st_mtime)
                found.append((used, status.st_size, path))
    left, deleted = sum(size for _, size, _ in found), 0
    for _, size, path in sorted(found):
        if left <= bound:
            break
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # another process may be at it
            left, deleted = left - size, deleted + 1
    return deleted


def _complaint(place: Path, *, above: bool) -> str:
    """Why others could write to a folder, or replace what is in it; empty if they cannot."""
    status = place.lstat()
    trusted = status.st_uid == os.geteuid() or (above and _belongs_to_system(place, status.st_uid))
    if not trusted:
        return f"{place} belongs to another user"
    if stat.S_ISLNK(status.st_mode):
        return "" if above else f"{place} is a link"
    if not stat.S_ISDIR(status.st_mode):
        return f"{place} is no folder"
    # In a folder with the sticky bit, as /tmp, nobody can replace what belongs to others.
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if shared and not (above and (status.st_mode & stat.S_ISVTX or _only_mine(place, status))):
        return f"others can write to {place}; chmod go-w takes that from them"
    return ""


def _belongs_to_system(place: Path, owner: int) -> bool:
    """Whether the superuser owns it, or an owner that this user namespace has no number for.

    In a rootless container the host's superuser has none: its folders, `/` first, show the
    overflow uid (user_namespaces(7)).
    """
    if owner == 0:
        return True
    try:
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="utf-8"))
        ranges = Path("/proc/self/uid_map").read_text(encoding="utf-8").splitlines()
        mapped = sum(int(line.split()[2]) for line in ranges)
    except (OSError, ValueError, IndexError):
        return False
    # Outside of any such namespace, where all uids have a number, it is a user like others.
    writable = os.access(place, os.W_OK, effective_ids=True)
    return owner == overflow and mapped < 2**32 - 1 and not writable


def _only_mine(place: Path, status: os.stat_result) -> bool:
    """Whether only the group may write besides the user, and the user is alone in it.

    Many systems give each user a group of the same name, and umask 002. A group of another name is
    not trusted: a directory service need not list whose primary group it is.
    """
    if status.st_mode & stat.S_IWOTH:
        return False
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(status.st_gid)
        acl = "system.posix_acl_access" in os.listxattr(place)  # its mask is shown as the group's
    except (KeyError, OSError):
        return False
    own = group.gr_gid == user.pw_gid and group.gr_name == user.pw_name
    if acl or not own or set(group.gr_mem) - {user.pw_name}:
        return False
    return all(other.pw_uid == user.pw_uid for other in pwd.getpwall()
               if other.pw_gid == group.gr_gid)  # fmt: skip
