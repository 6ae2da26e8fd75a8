"""Several processes as one run: how they connect, act together and end together.

Every process runs the same program on its own devices. JAX's coordination service, in process 0,
connects them. No flags are needed if the environment names the processes (Cloud TPU, GKE, SLURM,
Open MPI), see `detection`. A single process starts no service.
"""

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

from xception_jax.errors import RunError, UsageError, of_system
from xception_jax.runtime import detection, ending, meeting
from xception_jax.utils.console import make_console

# A process without a heartbeat for this time is dead, and all others end: a step would wait for it
# forever. JAX's default of 100 s would double the time lost in most failures.
_HEARTBEAT_TIMEOUT_S = 15
# How long a process that is done, or has failed, waits for the others to end.
_SHUTDOWN_TIMEOUT_S = 15
# Longest time for JAX to connect processes that have met.
_CONNECTION_TIMEOUT_S = 60
# Time after which a process says that it waits for another one, and the time of one attempt.
_PATIENCE_S, _ATTEMPT_S = 60.0, 5

T = TypeVar("T")


def join(
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    required: bool | None = None,
    by_itself: bool = True,
    timeout_s: float = 300,
) -> None:
    """Connects this process with the others of its run. Call it before JAX finds its devices.

    Args:
      coordinator: `HOST:PORT` of process 0.
      processes: number of processes. Without `coordinator`, the environment must name the same
        number.
      process: the number of this process, from 0 on.
      required: True: there must be a cluster, possibly of one process. False: ignore any cluster.
        None: join a cluster if the environment names several processes.
      by_itself: with `required` None: join a cluster that only the environment names. If False, one
        line says that there is one.
      timeout_s: how long to wait for the others, seconds.

    Raises:
      UsageError: the arguments contradict each other or the environment, or another run uses the
        address.
      RunError: the others do not appear.
    """
    say = make_console(stderr=True).print
    _check_arguments(coordinator, processes, process, required)
    if required is False:
        return
    if coordinator is not None:
        assert processes is not None
        assert process is not None
        _connect(coordinator, processes, process, None, timeout_s, say)
        return
    place = _place(processes, required, by_itself, say)
    if place is None:
        return
    if place.processes > 1 and place.process == 0:
        say(
            f"{_named(place)}; this is number 0 and waits for the others, up to {timeout_s:g} s; "
            f"--nodistributed runs alone"
        )
    until = time.monotonic() + timeout_s
    address = place.coordinator(timeout_s)
    left = max(1.0, until - time.monotonic())
    _connect(address, place.processes, place.process, place.devices, left, say)


def _place(
    processes: int | None, required: bool | None, by_itself: bool, say: Callable[[str], None]
) -> detection.Place | None:
    """The place in the cluster to join; None: run alone. See `join`."""
    asked = required or processes is not None
    try:
        place = detection.find()
    except UsageError:
        if asked or by_itself:
            raise
        return None
    if processes is not None and processes != (place.processes if place else 1):
        found = _named(place) if place else "the environment names no cluster"
        raise UsageError(f"--num_processes is {processes}, but {found}; --nodistributed runs alone")
    if place is None:
        if required:
            raise UsageError(
                "--distributed needs a cluster, but the environment names none; --coordinator, "
                "--num_processes and --process_id name it"
            )
        return None
    if required or (place.processes > 1 and (asked or by_itself)):
        return place
    if place.processes > 1:
        say(f"NOTE: {_named(place)}; this one runs alone, --distributed joins the others")
    return None


def _named(place: detection.Place) -> str:
    return f"{place.source} names {place.processes} process{'es' if place.processes > 1 else ''}"


def _check_arguments(
    coordinator: str | None, processes: int | None, process: int | None, required: bool | None
) -> None:
    if (coordinator is None) != (process is None) or (coordinator and processes is None):
        raise UsageError(
            "--coordinator, --num_processes and --process_id go together: name all or none; "
            "--num_processes alone says how many the environment must name"
        )
    if processes is not None and processes < 1:
        raise UsageError(f"--num_processes is {processes}; it takes at least 1")
    if required is False and (processes or 1) > 1:
        raise UsageError(
            f"--nodistributed runs alone, and --num_processes is {processes}; remove one of them"
        )
    if processes is not None and process is not None and not 0 <= process < processes:
        raise UsageError(f"--process_id is {process}; it takes 0 to {processes - 1}")
    host, _, port = (coordinator or "x:1").rpartition(":")
    if not (host and port.isdecimal()):
        raise UsageError(f"--coordinator is {coordinator!r}; it takes HOST:PORT")


def _connect(
    address: str,
    processes: int,
    process: int,
    devices: list[int] | None,
    timeout_s: float,
    say: Callable[[str], None],
) -> None:
    """Meets the others, then connects all with JAX."""
    host = address.rpartition(":")[0]
    if processes > 1:
        meeting.meet(address, processes, process, timeout_s, say)
    else:
        meeting.check_free(address)
    detection.without_proxy(host.strip("[]"))
    with contextlib.suppress(AttributeError):  # JAX would warn about proxies, which are bypassed
        jax.config.update("jax_check_proxy_envs", False)
    try:
        jax.distributed.initialize(
            address,
            processes,
            process,
            local_device_ids=devices,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_S,
            initialization_timeout=_CONNECTION_TIMEOUT_S,
            # By default it listens on all interfaces, even if all processes are on this machine.
            coordinator_bind_address=address if host in meeting.LOOPBACK else None,
        )
    except RuntimeError as error:
        raise RunError(
            f"the {processes} processes of this run cannot be connected at {address}: "
            f"{str(error).splitlines()[0]}"
        ) from None
    if processes > 1:
        ending.watch(process, processes)


def connected() -> bool:
    """Whether `join` has joined a cluster, possibly of one process."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this is the process that writes shared files and output."""
    return jax.process_index() == 0


def together(
    action: Callable[[], T], kinds: tuple[type[Exception], ...] = (RunError, UsageError)
) -> list[T]:
    """The results of an action in each process, as JSON; raises in all if it raises in one.

    Args:
      action: its duration may differ between processes.
      kinds: kinds of errors to raise in all processes. If several processes fail, an error of the
        earliest kind is raised. An `OSError` counts as the first kind. Any other error ends this
        process, and the others end with its line, see `ending`.
    """
    error: Exception | None = None
    complaint, value = None, None
    try:
        value = action()
    except OSError as failure:
        error = kinds[0](of_system(failure))
        complaint = [0, str(error)]
    except kinds as failure:
        error = failure
        complaint = [next(i for i, kind in enumerate(kinds) if isinstance(error, kind)), str(error)]
    answers = gather([complaint, value])
    for number, kind in enumerate(kinds):
        for process, (told, _) in enumerate(answers):
            if told and told[0] == number:
                if len(answers) == 1 and error:
                    raise error
                named = kind(f"{told[1]} (process {process} of {len(answers)})")
                raise _told(named) from error
    return [value for _, value in answers]


def _told(error: Exception) -> Exception:
    """Marks an error that all processes raise at this point, so that none informs the others."""
    error.raised_by_all = True  # type: ignore[attr-defined]
    return error


def on_first(action: Callable[[], T]) -> T:
    """Runs an action on process 0 only, while the others wait.

    Returns:
      Its result, as JSON, in all processes. If it raises an error of ours or an `OSError`, all
      processes raise it.
    """
    return cast(T, together(lambda: action() if is_first() else None)[0])


_rounds = itertools.count()


def gather(value: Any) -> list[Any]:
    """The values of all processes in their order, returned in each process.

    There is no timeout: a process that waits for over a minute says so and keeps waiting, since JAX
    ends all processes when one dies. The values go through JAX's coordination service, because its
    collectives on CPU wait only 30 s.

    Args:
      value: a JSON value; tuples come back as lists.
    """
    text = json.dumps(value)
    count = jax.process_count()
    if count == 1:
        return [json.loads(text)]
    number = next(_rounds)  # all processes call it equally often
    key = f"xception_jax/gather/{number}/"
    if not is_first():
        _store().key_value_set(f"{key}{jax.process_index()}", text)
        return cast(list[Any], json.loads(_awaited(f"{key}all", "process 0 and others")))
    others = [_awaited(f"{key}{one}", f"process {one}") for one in range(1, count)]
    answer = f"[{', '.join([text, *others])}]"
    _store().key_value_set(f"{key}all", answer)
    if number:  # all others have read the answer before, or they would not be here
        _store().key_value_delete(f"xception_jax/gather/{number - 1}/")
    return cast(list[Any], json.loads(answer))


def _store() -> Any:
    """The key-value store of JAX's coordination service, shared by all processes."""
    from jax._src import distributed

    return distributed.global_state.client


def _awaited(key: str, whom: str) -> str:
    """Waits for a value and returns it."""
    begun, told = time.monotonic(), False
    while True:
        try:
            return str(_store().blocking_key_value_get(key, _ATTEMPT_S * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if not told and time.monotonic() - begun > _PATIENCE_S:
            told = True
            make_console(stderr=True).print(
                f"process {jax.process_index()} has waited {_PATIENCE_S:.0f} s for {whom}, which "
                f"may be reading or restoring; it continues to wait"
            )


def check_same(what: str, data: bytes) -> None:
    """Raises `RunError` in all processes of the run if their data differs."""
    first, *others = gather(hashlib.sha256(data).hexdigest())
    other = next((n for n, digest in enumerate(others, 1) if digest != first), None)
    if other is not None:
        raise _told(
            RunError(
                f"{what} are not the same in processes 0 and {other}; is the data the same there, "
                f"and can all of it be read?"
            )
        )


def compile_together(function: Any, *arguments: Any) -> None:
    """Compiles a jitted function before its call, and waits until all processes have done so.

    Compilation may take any time. But on CPU, once one process calls the function, it fails if
    another one does not follow within 30 s.
    """
    function.lower(*arguments).compile()  # JAX keeps the program for the call
    if jax.process_count() > 1:
        gather(None)
