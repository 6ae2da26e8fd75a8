"""Which errors of reading may pass, and for how long they are tried again."""

import errno
import os
import pickle
import resource
from pathlib import Path

import pytest

from xception_jax import retry
from xception_jax.errors import ExampleError, ReadError

QUICK = {"seconds": 0.05, "first_pause": 0.001}
PASSING = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EMFILE),
    *(errno.ENFILE, errno.ENOMEM, errno.EBUSY, errno.ENOTCONN, errno.ECONNRESET),
    *(errno.EHOSTUNREACH, errno.ENETDOWN, errno.EREMOTEIO),
)


class Flaky:
    """Fails so many times, then gives `whole`."""

    def __init__(self, error: Exception, times: int):
        self.error, self.left, self.calls = error, times, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "whole"


@pytest.mark.parametrize("code", PASSING, ids=errno.errorcode.get)
def test_a_passing_error_is_tried_again_and_told_once(code):
    said: list[str] = []
    action = Flaky(OSError(code, os.strerror(code)), 3)
    assert retry.reading(action, "it", say=said.append, **QUICK) == "whole"
    assert action.calls == 4
    assert said == [
        f"it cannot be read at present: {os.strerror(code)}; trying again for 0.05 seconds"
    ]


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied"),
        IsADirectoryError(errno.EISDIR, "Is a directory"),
        OSError("it has no code"),
        ValueError("its checksum does not fit"),
        RuntimeError("Corrupted Riegeli/records file: hash mismatch; reading photos"),
        ExampleError("it", "cannot be decoded"),
    ],
)
def test_a_lasting_error_is_raised_at_once(error):
    action = Flaky(error, 1)
    with pytest.raises(type(error)) as caught:
        retry.reading(action, "it", **QUICK)
    assert caught.value is error
    assert action.calls == 1


def test_a_real_directory_and_a_missing_file_are_lasting_and_a_full_table_passes(tmp_path):
    (tmp_path / "file").write_bytes(b"whole")
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError, match=r"\[Errno"):
            retry.reading(path.read_bytes, str(path), **QUICK)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    said: list[str] = []

    def more_room(line: str) -> None:
        said.append(line)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    try:
        data = retry.reading((tmp_path / "file").read_bytes, "it", say=more_room, **QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert data == b"whole"
    assert said == [
        f"it cannot be read at present: Too many open files ({tmp_path}/file); trying again for "
        f"0.05 seconds"
    ]


def test_an_error_that_stays_ends_in_one_line_that_can_cross_processes():
    """A page that no process has mapped: a real EIO, each time."""

    def read() -> bytes:
        with open("/proc/self/mem", "rb", buffering=0) as file:
            return file.read(8)

    if not Path("/proc/self/mem").exists():
        pytest.skip("needs Linux' /proc/self/mem")
    said: list[str] = []
    with pytest.raises(ReadError) as caught:
        retry.reading(read, "the memory", say=said.append, **QUICK)
    line = str(pickle.loads(pickle.dumps(caught.value)))
    assert line.startswith("the memory cannot be read: Input/output error; ")
    assert line.endswith(
        "attempts in 0.05 seconds failed. Nothing is known to be wrong with the data: check the "
        "disk or network, then start the same command again"
    )
    assert len(said) == 1
    outer = Flaky(caught.value, 1)
    with pytest.raises(ReadError):  # one inside another is not tried again by both
        retry.reading(outer, "all", **QUICK)
    assert outer.calls == 1


def test_messages_of_libraries_and_want_of_memory():
    for error in (
        MemoryError(),
        RuntimeError("pread() failed: Input/output error; reading photos; at byte 3372"),
        RuntimeError("open() failed: Too many open files; opening photos"),
        ValueError("UNAVAILABLE: the server is away"),
    ):
        assert retry.transient(error)
        assert retry.reason(error) == (str(error) or "Cannot allocate memory")
    assert not retry.transient(RuntimeError("open() failed: No such file or directory; opening x"))


def test_all_attempts_together_take_two_minutes():
    assert retry.SECONDS == 120
