"""Finds the cluster that this process belongs to, from the environment.

JAX reads the environment (SLURM, Open MPI, Cloud TPU, Kubernetes), but detects and connects in one
step. Detection is separate here, so that its result is printed before anything waits. The readers
are JAX's own, `jax._src.clusters`, as in JAX 0.8 to 0.12.
"""

import inspect
import os
from dataclasses import dataclass
from typing import Any

from xception_jax.errors import RunError, UsageError

# By the name of JAX's reader: the cluster whose environment it reads, and its variables.
_KNOWN = {
    "ompi": ("Open MPI", ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")),
    "slurm": ("SLURM", ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_PROCID")),
    "gketpu": ("Cloud TPU", ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID")),
    "gcetpu": ("Cloud TPU's metadata server", ()),
}
_KUBERNETES = ("Kubernetes", ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"))
# Launchers that number their processes but give no address that JAX can read.
_NUMBERED = {
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "MPI": ("PMI_SIZE", "PMI_RANK"),
}
# The first port that JAX uses under SLURM, and the number of ports.
_FIRST_PORT, _PORTS = 65536 - 2**12, 2**12
_METADATA = "metadata.google.internal"


@dataclass(frozen=True)
class Place:
    """A process's place in a cluster.

    Attributes:
      source: the cluster's name and its environment variables, for messages.
      processes: number of processes.
      process: the number of this process, from 0 on.
      devices: numbers of the local GPUs that it uses; None: all.
      reader: JAX's reader of the environment.
    """

    source: str
    processes: int
    process: int
    devices: list[int] | None
    reader: Any

    def coordinator(self, timeout_s: float) -> str:
        """`HOST:PORT` of process 0, the same in all processes; may wait for the host's name.

        Raises:
          RunError: the name is still unknown after `timeout_s`.
        """
        known = {"timeout_secs": timeout_s, "override_coordinator_port": _port(self.reader.name)}
        takes = inspect.signature(self.reader.get_coordinator_address).parameters
        try:
            address = self.reader.get_coordinator_address(**{name: known[name] for name in takes})
        except Exception as error:  # an HTTP client's, Kubernetes', a RuntimeError
            raise RunError(
                f"{self.source} does not give the address of process 0: {_first_line(error)}; "
                f"--nodistributed runs alone"
            ) from None
        port = known["override_coordinator_port"]
        return f"{address.rpartition(':')[0]}:{port}" if port else str(address)


def find() -> Place | None:
    """This process's place in a cluster; None if the environment names none.

    Raises:
      UsageError: the environment names a cluster, but not everything that is needed to join it.
    """
    reader, source = None, "the environment"
    try:
        without_proxy(os.environ.get("GCE_METADATA_IP", _METADATA).partition(":")[0])
        reader = next((one for one in _readers() if one.is_env_present()), None)
        # srun numbers the processes itself; under mpirun SLURM's numbers are those of its daemons.
        if reader is None or reader.name == "slurm":
            _check_numbered(*(_NUMBERED if reader is None else ["Open MPI"]))
        if reader is None:
            return None
        source = _source(reader)
        local = reader.get_local_process_id()
        asked = os.environ.get("JAX_LOCAL_DEVICE_IDS")
        devices = [int(number) for number in asked.split(",")] if asked else None
        if devices is None and local is not None and not _on_tpu():
            devices = [local]
        count = int(_step_tasks(reader) or reader.get_process_count())
        return Place(source, count, int(reader.get_process_id()), devices, reader)
    except UsageError:
        raise
    except Exception as error:  # of a reader: a variable is missing, a server does not answer
        raise UsageError(
            f"{source} names a cluster that cannot be read: {_first_line(error)}; --nodistributed "
            f"runs alone, --coordinator, --num_processes and --process_id name it"
        ) from None


def _readers() -> list[Any]:
    from jax._src import clusters

    return [one for one in clusters.ClusterEnv._cluster_types if not one.opt_in_only_method]


def _on_tpu() -> bool:
    from jax._src import cloud_tpu_init

    return cloud_tpu_init.running_in_cloud_tpu_vm


def _step_tasks(reader: Any) -> str | None:
    """Under SLURM, the number of tasks of this step. In a shell of an allocation that is 1.

    There `SLURM_NTASKS` is the number that the job may start, but only this process runs.
    """
    return os.environ.get("SLURM_STEP_NUM_TASKS") if reader.name == "slurm" else None


def _port(name: str) -> str | None:
    """The coordinator's port, where JAX's own choice does not work.

    Under SLURM JAX derives it from the job only, so a second step would meet the run of the first.
    All processes of a step know the step's number.
    """
    if given := os.environ.get("JAX_COORDINATOR_PORT"):
        return given
    if name != "slurm":
        return None
    job, step = (int(os.environ.get(f"SLURM_{part}_ID") or 0) for part in ("JOB", "STEP"))
    return str(_FIRST_PORT + (job + 997 * step) % _PORTS)


def _check_numbered(*launchers: str) -> None:
    """Prevents that each of several processes of a launcher trains alone."""
    for launcher in launchers:
        size, rank = _NUMBERED[launcher]
        if int(os.environ.get(size) or 1) > 1:
            raise UsageError(
                f"{launcher} started {os.environ[size]} processes ({size}), but JAX finds no "
                f"address of the first; name it: --coordinator=HOST:PORT --num_processes=${size} "
                f"--process_id=${rank}, or --nodistributed to run alone"
            )


def _source(reader: Any) -> str:
    """The cluster and its environment variables, as `SLURM (SLURM_JOB_ID=7, ...)`."""
    name, variables = _KNOWN.get(reader.name) or (
        _KUBERNETES if reader.__name__.startswith("K8s") else (reader.__name__, ())
    )
    if _step_tasks(reader):
        variables = tuple(one.replace("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS") for one in variables)
    found = [f"{one}={os.environ[one]:.60}" for one in variables if one in os.environ]
    return f"{name} ({', '.join(found)})" if found else name


def without_proxy(host: str) -> None:
    """Makes connections to a host bypass the proxy of `http_proxy` and similar variables.

    If `no_grpc_proxy` is set, gRPC uses it in place of `no_proxy`. If `no_proxy` is not set,
    `NO_PROXY` applies.
    """
    for name in ("no_proxy", "no_grpc_proxy"):
        known = os.environ.get(name, os.environ.get("NO_PROXY") if name == "no_proxy" else None)
        if name == "no_proxy" or known is not None:
            os.environ[name] = ",".join([*filter(None, (known or "").split(",")), host])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
