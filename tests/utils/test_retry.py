"""Which errors of reading may pass, and for how long they are tried again."""

import errno
import os
import pickle
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from xception_jax.errors import ExampleError, ReadError
from xception_jax.utils import retry

QUICK = {"seconds": 0.05, "first_pause": 0.001}
# For what succeeds in the end: on a busy machine, 50 ms may end before the last attempt.
PATIENT = {"seconds": 60.0, "first_pause": 0.001}
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
    assert retry.reading(action, "it", say=said.append, **PATIENT) == "whole"
    assert action.calls == 4
    assert said == [
        f"it cannot be read at present: {os.strerror(code)}; trying again for 60 seconds"
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
        data = retry.reading((tmp_path / "file").read_bytes, "it", say=more_room, **PATIENT)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert data == b"whole"
    assert said == [
        f"it cannot be read at present: Too many open files ({tmp_path}/file); trying again for "
        f"60 seconds"
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
        assert retry.fault(error) == (str(error) or "Cannot allocate memory")
    assert not retry.transient(RuntimeError("open() failed: No such file or directory; opening x"))


def test_all_attempts_together_take_two_minutes():
    assert retry.SECONDS == 120


# As TensorStore words them; Orbax raises an Exception without a number from them.
STORE = 'UNKNOWN: Error reading local file "/run/params/": Failed to open: "/run/params/d/1": {} [os_error_code=\'{}\']'  # noqa: E501


def raised(error: BaseException, around: Exception | None = None) -> BaseException:
    """The error as it arrives, maybe with another one around it."""
    try:
        try:
            raise error
        except BaseException as inner:
            if around is None:
                raise
            raise around from inner
    except BaseException as outer:
        return outer


STORAGE = [
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EMFILE, errno.ENFILE,
    errno.ENOMEM, errno.EACCES, errno.EPERM, errno.ENOTCONN, errno.ECONNRESET,
]  # fmt: skip
OF_THE_FILE = [errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO]


@pytest.mark.parametrize("number", STORAGE)
def test_errors_of_the_storage(number):
    words = os.strerror(number)
    assert retry.fault(OSError(number, words, "/run/file")) == words
    store = ValueError(STORE.format(words, number))
    assert retry.fault(store) == words
    around = raised(store, Exception("Encountered error while reading array index"))
    assert (retry.fault(around), retry.file_of(around)) == (words, "/run/params/d/1")


@pytest.mark.parametrize("number", OF_THE_FILE)
def test_errors_that_tell_of_the_file(number):
    assert retry.fault(OSError(number, os.strerror(number))) is None
    assert retry.fault(ValueError(STORE.format(os.strerror(number), number))) is None


def test_others():
    assert retry.fault(MemoryError()) == "Cannot allocate memory"
    assert retry.fault(ValueError("UNAVAILABLE: try again")) == "UNAVAILABLE: try again"
    for text in (
        "DATA_LOSS: bad checksum",
        "FAILED_PRECONDITION: no array",
        "it is UNAVAILABLE: x",
    ):
        assert retry.fault(ValueError(text)) is None
    assert retry.fault(raised(KeyError("params"), ValueError("no such item"))) is None


@pytest.mark.parametrize(
    "text",
    [
        "Out of memory while trying to allocate 42949672960 bytes.",
        "XLA:TPU compile permanent error. Ran out of memory in memory space hbm.",
        "Error allocating device buffer: Attempting to allocate 2.00G. That was not possible.",
        "Attempting to reserve 3.2G at the bottom of memory. That was not possible.",
    ],
)
def test_memory_that_a_device_lacks_is_no_fault_of_the_storage(text):
    error = RuntimeError(f"RESOURCE_EXHAUSTED: {text}")
    for one in (error, raised(error, ValueError("Orbax says less"))):
        assert retry.out_of_device_memory(one)
        assert retry.fault(one) is None
        assert not retry.transient(one)
    full = RuntimeError("RESOURCE_EXHAUSTED: open() failed: Too many open files")
    assert retry.transient(full)
    assert retry.transient(ValueError("RESOURCE_EXHAUSTED: quota of requests"))
    assert not retry.out_of_device_memory(full)


def test_an_array_that_no_device_holds_is_told_as_it_is_by_jax():
    def make() -> object:
        return jax.block_until_ready(jax.jit(lambda: jnp.ones((1 << 24, 1 << 22), jnp.float32))())

    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as caught:
        retry.reading(make, "it", say=pytest.fail, **QUICK)
    assert retry.out_of_device_memory(caught.value)
