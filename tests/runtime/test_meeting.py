"""Where processes meet: over real sockets, with what may be at their other end."""

import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.processes import free_port
from xception_jax.errors import RunError, UsageError
from xception_jax.runtime import meeting


def attempt(address: str, processes: int, process: int, timeout_s: float) -> Callable[[], object]:
    """Begins to meet in a thread; what is returned waits for the end, and gives the error."""
    ended: list[object] = []

    def meet() -> None:
        try:
            ended.append(meeting.meet(address, processes, process, timeout_s, lambda _: None))
        except (UsageError, RunError) as error:
            ended.append(error)

    thread = threading.Thread(target=meet)
    thread.start()

    def wait() -> object:
        thread.join(30)
        [end] = ended
        return end

    return wait


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


def test_all_go_on_once_all_are_there_and_the_port_is_free(address):
    early = [attempt(address, 3, process, 20) for process in (2, 1)]
    late = attempt(address, 3, 0, 20)
    assert [one() for one in (*early, late)] == [None, None, None]
    meeting.check_free(address)


def test_those_who_never_meet_are_told_whom_they_missed(address):
    first, second = attempt(address, 4, 0, 1.5), attempt(address, 4, 2, 20)
    for end in (first(), second()):
        assert isinstance(end, RunError)
        assert str(end).startswith(f"processes 1, 3 of 4 did not come to {address} within 1.5 s")
        assert "--nodistributed" in str(end)
    alone = attempt(address, 4, 1, 0.3)()
    assert isinstance(alone, RunError)
    assert f"process 1 of 4 found no process 0 at {address} within 0.3 s" in str(alone)


def test_one_who_left_is_missed_and_may_come_again(address):
    first = attempt(address, 2, 0, 20)
    host, _, port = address.rpartition(":")
    while True:
        try:
            gone = socket.create_connection((host, int(port)))
            break
        except OSError:
            time.sleep(0.01)
    with gone:
        gone.sendall(b"xception_jax 1 2\n"[:-1])  # killed in the midst of a line
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert attempt(address, 2, 1, 20)() is None
    assert first() is None


def test_numbers_that_do_not_fit_are_refused(address):
    first = attempt(address, 3, 0, 20)
    ends = [attempt(address, 3, 1, 20)]
    time.sleep(0.3)  # else either of the two may be the second
    assert "two processes say that they are number 1" in str(attempt(address, 3, 1, 20)())
    assert "process 0 is one of 3, this is number 1 of 2" in str(attempt(address, 2, 1, 20)())
    ends.append(attempt(address, 3, 2, 20))
    assert [end() for end in (*ends, first)] == [None, None, None]


def test_a_port_that_something_else_listens_on_is_refused(address):
    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port))) as server:

        def answer() -> None:
            caller, _ = server.accept()
            caller.recv(100)
            caller.sendall(b"\x00\x00\x18\x04\x00\x00")  # as the first frame of gRPC
            caller.close()

        threading.Thread(target=answer, daemon=True).start()
        for end in (attempt(address, 2, 1, 20)(), attempt(address, 2, 0, 20)()):
            assert isinstance(end, UsageError)
            assert f"another run listens at {address}" in str(end)
            assert "--nodistributed" in str(end)
        with pytest.raises(UsageError, match="another run listens"):
            meeting.check_free(f"anywhere:{port}")  # all interfaces, one of which is taken
