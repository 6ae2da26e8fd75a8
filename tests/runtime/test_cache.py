"""Cache folders that other users cannot write to."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, as_nobody
from xception_jax.errors import UsageError
from xception_jax.runtime import cache


@pytest.fixture
def base(tmp_path) -> Path:
    """A folder of this user in one of the superuser's, as a home is."""
    (tmp_path / "home").mkdir(mode=0o755)
    return tmp_path / "home"


def test_a_folder_of_the_users_own_is_made_for_the_user_alone(base):
    before = os.umask(0)  # the worst
    try:
        made = cache.make_private(base / "a" / "b")
    finally:
        os.umask(before)
    assert made == base / "a" / "b"
    assert [p.stat().st_mode & 0o777 for p in (made, made.parent)] == [0o700, 0o700]
    assert cache.make_private(made) == made, "it may be there already"
    made.chmod(0o755)
    assert cache.make_private(made) == made, "others may read"


def test_a_link_on_the_way_is_followed_and_a_sticky_folder_is_safe(base):
    (base / "disk").mkdir(mode=0o700)
    (base / "cache").symlink_to(base / "disk")
    assert cache.make_private(base / "cache" / "mine") == base / "cache" / "mine"
    (base / "tmp").mkdir()
    (base / "tmp").chmod(0o1777)
    cache.make_private(base / "tmp" / "mine")


def shared(base: Path) -> tuple[Path, str]:
    (base / "it").mkdir()
    (base / "it").chmod(0o770)
    return base / "it", "others can write to .*it; chmod go-w"


def sticky(base: Path) -> tuple[Path, str]:
    (base / "it").mkdir()
    (base / "it").chmod(0o1777)  # anyone may add a file
    return base / "it", "others can write to .*it; "


def in_a_shared_one(base: Path) -> tuple[Path, str]:
    (base / "open").mkdir()
    (base / "open").chmod(0o777)
    return base / "open" / "it", "others can write to .*open; "


def behind_a_link_into_a_shared_one(base: Path) -> tuple[Path, str]:
    (base / "open" / "deep").mkdir(parents=True)
    (base / "open").chmod(0o777)
    (base / "cache").symlink_to(base / "open" / "deep")
    return base / "cache" / "it", "others can write to .*open; "


def link(base: Path) -> tuple[Path, str]:
    (base / "elsewhere").mkdir(mode=0o700)
    (base / "it").symlink_to(base / "elsewhere")
    return base / "it", "it is a link"


def file(base: Path) -> tuple[Path, str]:
    (base / "it").touch()
    return base / "it", "it is not a folder"


def below_a_file(base: Path) -> tuple[Path, str]:
    (base / "file").touch()
    return base / "file" / "it", "cannot be made: Not a directory"


@pytest.mark.parametrize(
    "make",
    [shared, sticky, in_a_shared_one, behind_a_link_into_a_shared_one, link, file, below_a_file],
)
def test_what_others_could_write_to_is_refused(base, make):
    path, complaint = make(base)
    with pytest.raises(UsageError, match=complaint):
        cache.make_private(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only a superuser can give a folder away")
def test_a_folder_of_another_user_is_refused(base):
    (base / "it").mkdir(mode=0o700)
    os.chown(base / "it", 65534, -1)
    with pytest.raises(UsageError, match="it belongs to another user"):
        cache.make_private(base / "it")
    with pytest.raises(UsageError, match="it belongs to another user"):
        cache.make_private(base / "it" / "mine")


MAKE = "import sys; from pathlib import Path"
MAKE += "; from xception_jax.runtime.cache import make_private as make"
MAKE += "; make(Path(sys.argv[1]))"


def unshared(*options: str, make: Path, setup: str = "") -> str:
    """The last line of errors of making a folder in a user namespace, empty if it is made."""
    words = ["unshare", *options, "sh", "-c", f'{setup} exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*words, "true"], check=False).returncode:
        pytest.skip("this machine allows no user namespaces")
    done = subprocess.run(
        [*words, sys.executable, "-c", MAKE, make],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return (done.stderr.splitlines() or [""])[-1]


def test_folders_of_the_hosts_superuser_are_trusted_in_a_user_namespace(base):
    """As in a rootless container: the owner of `/` is shown as the overflow uid."""
    namespace = "--user", "--map-user=1234"
    assert unshared(*namespace, make=base / "it") == ""
    assert (base / "it").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only a superuser can give a folder away")
def test_a_writable_folder_without_an_owner_is_refused_in_a_user_namespace(base):
    (base / "open").mkdir()
    os.chown(base / "open", 4321, -1)
    (base / "open" / "it").mkdir(mode=0o700)
    namespace = "--user", "--map-user=1234"
    assert unshared(*namespace, make=base / "open" / "it") == ""
    (base / "open").chmod(0o777)
    said = unshared(*namespace, make=base / "open" / "it")
    assert said.endswith("open belongs to another user")
    os.chown(base / "open" / "it", 4321, -1)
    (base / "open").chmod(0o755)
    said = unshared(*namespace, make=base / "open" / "it")
    assert said.endswith("it belongs to another user"), "the folder itself has to be the user's"


ME = "root:x:0:0::/root:/bin/sh\n"


@pytest.mark.parametrize(
    ("users", "groups", "mode", "private"),
    [
        (ME, "root:x:0:\n", 0o775, True),
        (ME, "root:x:0:root\n", 0o775, True),
        (ME, "root:x:0:\n", 0o777, False),
        (ME, "root:x:0:root,bob\n", 0o775, False),
        (ME, "users:x:0:\n", 0o775, False),  # whose primary group it is may not be listed
        (ME + "bob:x:7:0::/:/bin/sh\n", "root:x:0:\n", 0o775, False),
        ("root:x:0:7::/root:/bin/sh\n", "root:x:0:\n", 0o775, False),
        ("bob:x:7:0::/:/bin/sh\n", "root:x:0:\n", 0o775, False),
    ],
)
def test_a_group_of_the_user_alone_may_write(base, users, groups, mode, private):
    """In a user namespace with other files of users and groups."""
    (base / "users").write_text(users)
    (base / "groups").write_text(groups)
    (base / "cache").mkdir()
    (base / "cache").chmod(mode)
    mount = f"mount --bind {base}/users /etc/passwd && mount --bind {base}/groups /etc/group &&"
    namespace = "--user", "--map-root-user", "--mount"
    said = unshared(*namespace, make=base / "cache" / "it", setup=mount)
    if private:
        assert said == ""
        (base / "cache" / "it").chmod(0o775)
        said = unshared(*namespace, make=base / "cache" / "it", setup=mount)
        assert "others can write to" in said, "the folder itself is the user's alone"
    else:
        assert f"others can write to {base}/cache; chmod go-w" in said


def test_a_list_of_others_who_may_write_is_noticed(base):
    """An access control list's mask is shown as what the group may."""
    (base / "cache").mkdir()
    # acl(5): the owner, user 4321, the group, the mask, others; each with rwx but the last.
    entries = [(1, 7, 2**32 - 1), (2, 7, 4321), (4, 5, 2**32 - 1), (16, 7, 2**32 - 1),
               (32, 5, 2**32 - 1)]  # fmt: skip
    listed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(base / "cache", "system.posix_acl_access", listed)
    except OSError:
        pytest.skip("no access control lists on this file system")
    assert (base / "cache").stat().st_mode & 0o777 == 0o775
    with pytest.raises(UsageError, match="others can write to"):
        cache.make_private(base / "cache" / "it")


def test_where_caches_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "xception_jax"
    for ignored in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        monkeypatch.setenv("HOME", "/home/me")
        assert cache.folder() == Path("/home/me/.cache/xception_jax")


def program(folder: Path, name: str, used: float, size: int = 100) -> Path:
    """A file as JAX writes it, without blocks on the disk."""
    path = folder / f"jit_{name}-{ord(name[0]):064x}-cache"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)
    os.utime(path, (used, used - 50))
    return path


def test_the_programs_used_longest_ago_go_until_the_rest_fits(tmp_path):
    programs = [program(tmp_path / host, name, used) for host, name, used in (
        ("host-1", "c", 300), ("host-2", "a", 100), ("", "b", 200), ("host-1", "d", 400),
    )]  # fmt: skip
    os.utime(programs[3], (50, 400))  # on a disk that notes no reads, the time of writing counts
    own = tmp_path / "own-cache"
    own.write_text("no program")
    os.utime(own, (1, 1))
    assert cache.remove_old_programs(tmp_path, 400) == 0
    assert cache.remove_old_programs(tmp_path, 399) == 1
    assert [path.exists() for path in programs] == [True, False, True, True]
    assert cache.remove_old_programs(tmp_path, 250) == 1
    assert [path.exists() for path in programs] == [True, False, False, True]
    assert cache.remove_old_programs(tmp_path, 0) == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["own-cache"]
    assert cache.remove_old_programs(tmp_path / "none") == 0


def test_a_program_that_cannot_be_deleted_is_left(shared):
    first, second = program(shared / "kept", "a", 100), program(shared / "mine", "b", 200)
    for folder, mode in ((first.parent, 0o755), (second.parent, 0o777)):
        folder.chmod(mode)
    with as_nobody():
        assert cache.remove_old_programs(shared, 100) == (os.geteuid() == 65534)
    assert first.exists()
