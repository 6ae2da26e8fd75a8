"""What is retried, and what is not. The errors are real, except for their wording."""

import errno

import pytest

from xception_jax.errors import ReadError
from xception_jax.training.checkpoint import storage
from xception_jax.utils import retry

# As TensorStore words them; Orbax raises an Exception without a number from them.
STORE = 'UNKNOWN: Error reading local file "/run/params/": Failed to open: "/run/params/d/1": {} [os_error_code=\'{}\']'  # noqa: E501


def test_reading_is_tried_again_whatever_the_kind(monkeypatch):
    monkeypatch.setattr(retry, "SECONDS", 1.0)
    failures = [OSError(errno.EIO, "no answer", "/f"), MemoryError(),
                ValueError(STORE.format("bad", errno.ESTALE))]  # fmt: skip
    said: list[str] = []

    def action() -> str:
        if failures:
            raise failures.pop(0)
        return "text"

    assert storage.read("the file", action, said.append) == "text"
    assert said == [
        "the file cannot be read at present: no answer (/f); trying again for 1 seconds"
    ]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "Permission denied", "/f"),
        ValueError(STORE.format("Operation not permitted", errno.EPERM)),
        ValueError("PERMISSION_DENIED: no token"),
    ],
)
def test_access_that_is_denied_is_told_at_once(error):
    def action() -> None:
        raise error

    with pytest.raises(ReadError, match=r"the file cannot be read: .*; nothing was changed"):
        storage.read("the file", action, pytest.fail)


def test_reading_ends_after_the_time_there_is(monkeypatch):
    monkeypatch.setattr(retry, "SECONDS", 0.2)
    said: list[str] = []

    def action() -> None:
        with open("/proc/self/mem", "rb") as file:  # whose first byte the kernel refuses
            file.read(1)

    with pytest.raises(ReadError, match="the file cannot be read: Input/output error; "):
        storage.read("the file", action, said.append)
    assert said


def test_other_errors_pass_at_once():
    def action() -> None:
        raise ValueError("no JSON")

    with pytest.raises(ValueError, match="no JSON"):
        storage.read("the file", action, pytest.fail)
