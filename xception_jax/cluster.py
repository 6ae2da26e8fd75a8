"""Several processes as one run: how they find each other, act together and end together.

Every process runs the same program on its own devices. JAX's coordination service, in process 0,
connects them; where a cluster's environment names the processes (Cloud TPU, GKE, SLURM, Open MPI),
nothing has to be said, see `jax.distributed.initialize`.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from xception_jax.errors import RunError, UsageError, of_system

# A process that has not been heard of for so long is dead, and all others end: a step that waits
# for it would wait for ever. JAX's own 100 s are as long again as most steps' work to be redone.
_HEARTBEAT_TIMEOUT_S = 15
# How long a process that is done, or cannot go on, waits for the others to end with it.
_SHUTDOWN_TIMEOUT_S = 15
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

T = TypeVar("T")


def join(
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    required: bool | None = None,
    timeout_s: int = 300,
) -> None:
    """Connects this process with the others of its run; to be called before JAX finds its devices.

    Args:
      coordinator: `HOST:PORT` of process 0.
      processes: how many there are.
      process: which of them this is, from 0 on.
      required: True: there must be others; False: there are none; None: if the environment says so.
      timeout_s: how long it waits for the others to appear.

    Raises:
      UsageError: only some of the three are given, or they do not fit.
      RunError: the others do not appear.
    """
    given = (coordinator, processes, process)
    if any(part is not None for part in given) and None in given:
        raise UsageError(
            "--coordinator, --num_processes and --process_id go together: name all or none"
        )
    if required is False:
        return
    if processes is not None and process is not None and not 0 <= process < processes:
        raise UsageError(f"--process_id is {process}; it takes 0 to {processes - 1}")
    host = coordinator.rpartition(":")[0] if coordinator else ""
    if coordinator and not (host and coordinator.rpartition(":")[2].isdecimal()):
        raise UsageError(f"--coordinator is {coordinator!r}; it takes HOST:PORT")
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_S,
            initialization_timeout=timeout_s,
            # By default it listens on all interfaces, also where all processes are on this machine.
            coordinator_bind_address=coordinator if host in _LOOPBACK else None,
        )
    except ValueError as error:
        if required or coordinator:
            raise UsageError(f"no other processes are named: {error}") from None
    except RuntimeError as error:
        raise RunError(
            f"the {processes or 'other'} processes of this run have not met within {timeout_s} s "
            f"at {coordinator or 'the coordinator'}: {str(error).splitlines()[0]}"
        ) from None


def connected() -> bool:
    """Whether `join` has found a cluster, though it may be of one process."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def together(
    action: Callable[[], T], kinds: tuple[type[Exception], ...] = (RunError, UsageError)
) -> list[T]:
    """What an action gives in each process, as JSON; raises in all where it raises in one.

    Args:
      action: may take other processes up to five minutes longer than this one.
      kinds: of errors to raise in all processes; where several fail, an error of an earlier kind is
        raised. An `OSError` counts as the first kind. Any other error ends this process alone, and
        the others end when they miss it.
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
                raise kind(f"{told[1]} (process {process} of {len(answers)})") from error
    return [value for _, value in answers]


def on_first(action: Callable[[], T]) -> T:
    """Does something on process 0 alone, while the others wait.

    Returns:
      What it gives, as JSON, in all processes; where it raises an error of ours or an `OSError`,
      all of them do.
    """
    return cast(T, together(lambda: action() if is_first() else None)[0])


def gather(value: Any, timeout_s: int = 300) -> list[Any]:
    """The values of all processes in their order, in each of them.

    Args:
      value: what JSON can hold; lists come back for tuples.
      timeout_s: how long one may come later than another. Without the barrier of JAX' coordination
        service those on CPU would wait 30 s, and a file may be tried again for longer.
    """
    text = json.dumps(value)
    if jax.process_count() == 1:
        return [json.loads(text)]
    import orbax.checkpoint as ocp  # here: workers that read data need none of it

    ocp.multihost.get_barrier_sync_fn()(key="gather", timeout_ms=timeout_s * 1000)
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size)).reshape(-1)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def check_same(what: str, data: bytes) -> None:
    """Raises `RunError` in all processes of the run where they do not have the same data."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    others = np.flatnonzero((digests != digests[0]).any(1))
    if others.size:
        raise RunError(
            f"{what} are not the same in processes 0 and {others[0]}; is the data the same there, "
            f"and can all of it be read?"
        )


def compile_together(function: Any, *arguments: Any) -> None:
    """Compiles a jitted function that is about to be called, and waits for all processes to do so.

    They may take their time for it. Once one has called it, those on CPU give up when another does
    not follow within 30 s.
    """
    function.lower(*arguments).compile()  # JAX keeps the program for the call
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("compiled")
