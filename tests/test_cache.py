"""Folders in which nobody else can plant a program."""

import os
from pathlib import Path

import pytest

from xception_jax import cache
from xception_jax.errors import UsageError


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
    return base / "it", "it is no folder"


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


def test_where_caches_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "xception_jax"
    for ignored in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        monkeypatch.setenv("HOME", "/home/me")
        assert cache.folder() == Path("/home/me/.cache/xception_jax")
