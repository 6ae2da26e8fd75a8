"""The cache folder: files that the package can make again."""

import contextlib
import grp
import os
import pwd
import re
import stat
from pathlib import Path

from xception_jax.errors import UsageError

# Limit on the bytes of compiled programs in a folder; those of one run take some megabytes.
BOUND = 5_000_000_000
# JAX' file name of a compiled program: the function, and a SHA-256.
_PROGRAM = re.compile(r".+-[0-9a-f]{64}-cache")


def folder() -> Path:
    """The package's folder in `XDG_CACHE_HOME`, else in `~/.cache`.

    Raises:
      UsageError: there is no home folder.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # The XDG base directory specification says to ignore a relative path.
        base = named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise UsageError(
            "this user has no home folder; name one for caches with XDG_CACHE_HOME"
        ) from None
    return base / "xception_jax"


def make_private(path: Path) -> Path:
    """Makes a folder for executable code, and checks that only the user can write there.

    Anyone who can write to it, or replace it or a folder above it, could make this user run a
    program.

    Args:
      path: the folder; missing ones, also above it, are made for this user only (mode 0700).

    Returns:
      The absolute path.

    Raises:
      UsageError: it cannot be made, is a link, or another user can write to it or replace it.
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
    """Deletes the least recently used programs until the rest takes at most `bound` bytes.

    JAX's own limit (`jax_compilation_cache_max_size`) needs another package, locks the folder for
    each access, and stops writing to a folder that was filled without the limit.

    Args:
      folder: a folder of JAX' programs, or a folder of such folders. Other files are not touched.
      bound: bytes.

    Returns:
      The number of deleted programs. One that cannot be read or deleted is left.
    """
    found = []
    with contextlib.suppress(OSError):
        for path in (*folder.glob("*-cache"), *folder.glob("*/*-cache")):
            status = path.lstat()
            if _PROGRAM.fullmatch(path.name) and stat.S_ISREG(status.st_mode):
                # Most systems record the time of a read at least once a day, which is enough here.
                used = max(status.st_atime, status.st_mtime)
                found.append((used, status.st_size, path))
    left, deleted = sum(size for _, size, _ in found), 0
    for _, size, path in sorted(found):
        if left <= bound:
            break
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # another process may delete it at the same time
            left, deleted = left - size, deleted + 1
    return deleted


def _complaint(place: Path, *, above: bool) -> str:
    """Why others could write to a folder or replace files in it; empty if they cannot."""
    status = place.lstat()
    trusted = status.st_uid == os.geteuid() or (above and _belongs_to_system(place, status.st_uid))
    if not trusted:
        return f"{place} belongs to another user"
    if stat.S_ISLNK(status.st_mode):
        return "" if above else f"{place} is a link"
    if not stat.S_ISDIR(status.st_mode):
        return f"{place} is not a folder"
    # In a folder with the sticky bit, as /tmp, users cannot replace files of other users.
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if shared and not (above and (status.st_mode & stat.S_ISVTX or _only_mine(place, status))):
        return f"others can write to {place}; chmod go-w prevents that"
    return ""


def _belongs_to_system(place: Path, owner: int) -> bool:
    """Whether the superuser owns it, or an owner without a number in this user namespace.

    In a rootless container the host's superuser has no number: its folders, such as `/`, show the
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
    # Outside such a namespace all uids have a number, and the overflow uid is an ordinary user.
    writable = os.access(place, os.W_OK, effective_ids=True)
    return owner == overflow and mapped < 2**32 - 1 and not writable


def _only_mine(place: Path, status: os.stat_result) -> bool:
    """Whether only the user and the group may write, and the group has no other member.

    Many systems give each user a group of the same name, and umask 002. A group with another name
    is not trusted: a directory service may hide that it is the primary group of other users.
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
