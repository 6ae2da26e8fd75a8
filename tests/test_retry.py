"""What is tried again, and what is not. The errors are real ones, but for their texts' wording."""

import errno
import os

import pytest

from xception_jax import retry
from xception_jax.errors import RunError

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
    assert retry.storage_error(OSError(number, words, "/run/file")) == words
    store = ValueError(STORE.format(words, number))
    assert retry.storage_error(store) == words
    around = raised(store, Exception("Encountered error while reading array index"))
    assert (retry.storage_error(around), retry.file_of(around)) == (words, "/run/params/d/1")


@pytest.mark.parametrize("number", OF_THE_FILE)
def test_errors_that_tell_of_the_file(number):
    assert retry.storage_error(OSError(number, os.strerror(number))) is None
    assert retry.storage_error(ValueError(STORE.format(os.strerror(number), number))) is None


def test_others():
    assert retry.storage_error(MemoryError()) == "out of memory"
    assert retry.storage_error(ValueError("UNAVAILABLE: try again")) == "UNAVAILABLE: try again"
    for text in (
        "DATA_LOSS: bad checksum",
        "FAILED_PRECONDITION: no array",
        "it is UNAVAILABLE: x",
    ):
        assert retry.storage_error(ValueError(text)) is None
    assert retry.storage_error(raised(KeyError("params"), ValueError("no such item"))) is None


def test_reading_is_tried_again_and_every_pause_told(monkeypatch):
    pauses, said, results = [], [], iter([OSError(errno.EIO, "bad", "/f"), MemoryError(), "text"])
    monkeypatch.setattr(retry.time, "sleep", pauses.append)

    def action() -> str:
        result = next(results)
        if isinstance(result, BaseException):
            raise result
        return result

    assert retry.read("the file", action, said.append) == "text"
    assert pauses == [0.5, 1.0]
    first, second = said
    assert first.startswith("/f cannot be read: bad; next try in 0.5 s, for ")
    assert second.startswith("the file cannot be read: out of memory; next try in 1.0 s, for ")


def test_reading_ends_after_the_time_there_is(monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE_S", 0.2)
    said: list[str] = []

    def action() -> None:
        with open("/proc/self/mem", "rb") as file:  # whose first byte the kernel refuses
            file.read(1)

    with pytest.raises(RunError, match="the file cannot be read: Input/output error; tried for"):
        retry.read("the file", action, said.append)
    assert said


def test_other_errors_pass_at_once():
    def action() -> None:
        raise ValueError("no JSON")

    with pytest.raises(ValueError, match="no JSON"):
        retry.read("the file", action, pytest.fail)
