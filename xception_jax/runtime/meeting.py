"""The processes of a run meet here before JAX connects them.

If the others do not appear in time, JAX ends a process from C++, with a stack trace. If another run
listens on the same port, JAX uses the port too, and both runs end. So the processes first meet over
plain TCP on that port. Process 0 waits for the numbers of all others, lets them continue, and frees
the port for JAX's coordination service.

The others send a line, `xception_jax NUMBER PROCESSES`. Process 0 answers `wait`, and then `go` or
the reason for a refusal.
"""

import contextlib
import errno
import socket
import time
from collections.abc import Callable

from xception_jax.errors import RunError, UsageError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_ALONE = "--nodistributed runs alone"
# Seconds: timeout of an answer; pause between two attempts; time until a process says it waits.
_ANSWER, _PAUSE, _PATIENCE = 5.0, 0.2, 5.0


def meet(
    address: str, processes: int, process: int, timeout_s: float, say: Callable[[str], None]
) -> None:
    """Returns in all processes once all have called it.

    Args:
      address: `HOST:PORT` where process 0 waits for the others.
      processes: number of processes, more than one.
      process: the number of this process.
      timeout_s: how long to wait for the others, seconds.
      say: prints a line if the process has to wait.

    Raises:
      UsageError: another program listens there, or the numbers are inconsistent.
      RunError: some processes did not appear in time.
    """
    deadline = time.monotonic() + timeout_s
    if process:
        _report(address, processes, process, deadline, timeout_s, say)
        return
    others: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(address))
        stack.callback(_close, others)
        while missing := [n for n in range(1, processes) if not _there(others.get(n))]:
            left = deadline - time.monotonic()
            if left <= 0:
                named = _numbers(missing)
                reason = (
                    f"{named} of {processes} did not come to {address} within {timeout_s:.3g} s"
                )
                _answer(others, f"{reason}\n")
                raise RunError(f"{reason}; start all {processes} at once; {_ALONE}")
            server.settimeout(min(left, 1.0))
            with contextlib.suppress(TimeoutError):
                _welcome(server.accept()[0], others, processes)
        _answer(others, "go\n")
        for one in others.values():  # the others close first, so that the port is free at once
            with contextlib.suppress(OSError):
                one.settimeout(_ANSWER)
                one.recv(1)


def check_free(address: str) -> None:
    """Raises `UsageError` if another run listens at the address.

    gRPC would share the port with that run and end both.
    """
    _listen(address).close()


def _listen(address: str) -> socket.socket:
    """A socket at the address: on loopback if the address names that, else on all interfaces."""
    host, _, port = address.rpartition(":")
    try:
        if host in LOOPBACK:
            family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
            return socket.create_server((host.strip("[]"), int(port)), family=family)
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", int(port)), family=socket.AF_INET6, dualstack_ipv6=True
            )
        return socket.create_server(("", int(port)))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(_taken(address)) from None
        raise RunError(f"cannot listen at {address} for the others: {error.strerror}") from None


def _taken(address: str) -> str:
    return (
        f"another run listens at {address} already; wait for its end, choose another port with the "
        f"environment variable JAX_COORDINATOR_PORT, the same in all processes, or run alone with "
        f"--nodistributed"
    )


def _welcome(caller: socket.socket, others: dict[int, socket.socket], processes: int) -> None:
    """Registers a process that has connected, or refuses the caller."""
    caller.settimeout(_ANSWER)
    try:
        name, *numbers = _line(caller).split()
        number, count = map(int, numbers)
    except (OSError, ValueError):
        caller.close()  # an unknown program, or a process that has given up
        return
    reason = ""
    if name != "xception_jax" or count != processes or not 0 < number < processes:
        reason = f"process 0 is one of {processes}, this is number {number} of {count}"
    elif _there(others.get(number)):
        reason = f"two processes say that they are number {number} of {processes}"
    with contextlib.suppress(OSError):
        caller.sendall(f"{reason or 'wait'}\n".encode())
    if reason:
        caller.close()
        return
    if number in others:  # it had connected before, and left
        others[number].close()
    others[number] = caller


def _there(other: socket.socket | None) -> bool:
    """Whether a process that has connected still waits."""
    if other is None:
        return False
    other.setblocking(False)
    try:
        return other.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _close(others: dict[int, socket.socket]) -> None:
    for one in others.values():
        one.close()


def _answer(others: dict[int, socket.socket], text: str) -> None:
    for one in others.values():
        with contextlib.suppress(OSError):
            one.settimeout(_ANSWER)
            one.sendall(text.encode())


def _report(
    address: str,
    processes: int,
    process: int,
    deadline: float,
    timeout_s: float,
    say: Callable[[str], None],
) -> None:
    """Reports this process to process 0 and waits for all others."""
    host, _, port = address.rpartition(":")
    patience: float | None = time.monotonic() + _PATIENCE
    why = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        if patience and time.monotonic() > patience:
            say(f"waits for process 0 at {address}: {why}")
            patience = None
        try:
            target = (host.strip("[]"), int(port))
            with socket.create_connection(target, timeout=min(left, _ANSWER)) as server:
                server.sendall(f"xception_jax {process} {processes}\n".encode())
                first = _line(server)
                if first not in ("wait", ""):
                    raise UsageError(first if first.isprintable() else _taken(address))
                server.settimeout(max(0.1, deadline - time.monotonic()) + _ANSWER)
                if (said := _line(server)) == "go":
                    return
                if said:  # the reason why process 0 has given up
                    raise RunError(f"{said}; start all {processes} at once; {_ALONE}")
                why = "it has ended"
        except (OSError, UnicodeDecodeError) as error:
            if isinstance(error, UnicodeDecodeError):
                raise UsageError(_taken(address)) from None
            why = error.strerror or str(error)
        time.sleep(_PAUSE)
    raise RunError(
        f"process {process} of {processes} found no process 0 at {address} within "
        f"{timeout_s:.3g} s ({why}); start all {processes} at once; {_ALONE}"
    )


def _line(connection: socket.socket) -> str:
    """A line of ASCII, at most 500 bytes; "" if the connection has ended."""
    data = b""
    while not data.endswith(b"\n") and len(data) < 500 and (byte := connection.recv(1)):
        data += byte
    return data.decode("ascii").rstrip("\n")


def _numbers(missing: list[int]) -> str:
    """The numbers as `process 1`, or `processes 1, 2 and 5 more`."""
    more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
    listed = ", ".join(map(str, missing[:4]))
    return f"process{'es' if len(missing) > 1 else ''} {listed}{more}"
