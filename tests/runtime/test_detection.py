"""What environments say of a cluster: as srun, mpirun, GKE and Cloud TPU's metadata server do."""

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.processes import ROOT
from xception_jax.errors import UsageError
from xception_jax.runtime import cluster, detection

# As srun sets them for a task of a step.
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[07-09],other1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "4",
}
# As mpirun of Open MPI 4 does; that of 5 leaves out the first.
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "3",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}


@pytest.fixture
def environment(monkeypatch) -> pytest.MonkeyPatch:
    """Without any cluster's variables."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "JAX_COORDINATOR", "KUBERNETES_")):
            monkeypatch.delenv(name)
    return monkeypatch


def setenv(environment: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)


def test_steps_of_a_job_have_ports_of_their_own(environment):
    setenv(environment, SLURM)
    place = detection.find()
    assert place is not None
    assert (place.processes, place.process, place.devices) == (4, 2, [1])
    assert "SLURM_JOB_ID=4711" in place.source
    first = place.coordinator(1)
    assert first == f"node07:{65536 - 2**12 + 4711 % 2**12}"
    ports = set()
    for step in range(50):
        environment.setenv("SLURM_STEP_ID", str(step))
        ports.add(place.coordinator(1))
    assert len(ports) == 50
    environment.setenv("JAX_COORDINATOR_PORT", "1234")
    environment.setenv("JAX_LOCAL_DEVICE_IDS", "0,2")
    again = detection.find()
    assert again is not None
    assert (again.coordinator(1), again.devices) == ("node07:1234", [0, 2])


def test_a_shell_of_an_allocation_is_one_process(environment):
    """`salloc` starts it as a step of one task; the job's four are what srun may start from it."""
    setenv(environment, {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"})
    place = detection.find()
    assert place is not None
    assert place.processes == 1
    cluster.join()
    assert not cluster.connected()


def test_open_mpi_names_all_or_the_run_is_refused(environment):
    setenv(environment, OPEN_MPI)
    place = detection.find()
    assert place is not None
    assert (place.processes, place.process) == (3, 1)
    assert place.coordinator(1).startswith("10.96.0.1:")
    # Under SLURM the daemons of Open MPI 5 have numbers of their own, which all processes inherit.
    environment.delenv("OMPI_MCA_orte_hnp_uri")
    for more in ({}, {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}):
        setenv(environment, more)
        with pytest.raises(UsageError, match=r"Open MPI.*mpi4py|Open MPI started 3 processes"):
            cluster.join()


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        ({}, {"processes": 2}, "--num_processes is 2, but the environment names no cluster"),
        (SLURM, {"processes": 2}, "--num_processes is 2, but SLURM .* names 4 processes"),
        ({}, {"required": True}, "--distributed needs a cluster"),
        ({**SLURM, "SLURM_PROCID": "x"}, {}, "SLURM .* cannot be read: .*--nodistributed"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, {}, r"MPI started 2 processes .*\$PMI_SIZE"),
        (SLURM, {"processes": 4, "required": False}, "remove one of them"),
    ],
)
def test_what_a_run_insists_on_has_to_be_there(environment, variables, arguments, message):
    setenv(environment, variables)
    with pytest.raises(UsageError, match=message):
        cluster.join(**arguments)


def test_what_joins_only_when_asked_says_so_and_waits_for_nobody(environment, capsys):
    setenv(environment, SLURM)
    cluster.join(by_itself=False)
    said = capsys.readouterr().err.replace("\n", " ")
    assert "NOTE: SLURM (SLURM_JOB_ID=4711," in said
    assert "names 4 processes; this one runs alone, --distributed joins the others" in said
    cluster.join(required=False)
    environment.setenv("SLURM_PROCID", "x")
    cluster.join(by_itself=False)
    assert not cluster.connected()


def test_proxies_are_left_out_and_others_stay(environment):
    environment.delenv("no_proxy", raising=False)
    environment.setenv("NO_PROXY", "intranet")
    environment.setenv("no_grpc_proxy", "a,b")
    detection.without_proxy("node07")
    assert os.environ["no_proxy"] == "intranet,node07"
    assert os.environ.get("no_grpc_proxy") == "a,b,node07"  # noqa: SIM112 (gRPC's)


FIND = """
import json, os, sys
import jax
for name in sys.argv[1:]:
    os.environ.pop(name, None)
from xception_jax.runtime import detection
place = detection.find()
print(json.dumps([place.source, place.processes, place.process, place.devices]))
print(place.coordinator(5))
"""


def found_on_tpu(*dropped: str, **variables: str) -> list[object]:
    """What a process of its own finds that believes to be on a TPU VM, as it does with chips."""
    env = {**os.environ, "JAX_FORCE_TPU_INIT": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", FIND, *dropped],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told, address = done.stdout.splitlines()
    return [*json.loads(told), address.partition(":")[0]]


ATTRIBUTES = {
    "agent-worker-number": "1",
    "worker-network-endpoints": "x:0:127.0.0.1,x:1:127.0.0.2",
    "tpu-env": "ACCELERATOR_TYPE: 'v4-16'\nWORKER_ID: '1'\n",
}


class Metadata(http.server.BaseHTTPRequestHandler):
    """The metadata server of a Compute Engine machine, as its documentation describes it."""

    def do_GET(self) -> None:
        key = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
        allowed = self.headers["Metadata-Flavor"] == "Google" and not self.headers["Via"]
        text = ATTRIBUTES.get(key)
        self.send_response(403 if not allowed else 404 if text is None else 200)
        self.send_header("Metadata-Flavor", "Google")
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def metadata_server() -> Iterator[str]:
    """Its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def metadata() -> Iterator[str]:
    with metadata_server() as address:
        yield address


def test_a_slice_of_tpu_vms_by_the_metadata_server_past_a_proxy(metadata):
    found = found_on_tpu(
        "TPU_SKIP_MDS_QUERY",  # JAX sets it where it sees no chip
        GCE_METADATA_IP=metadata,
        http_proxy="http://127.0.0.1:1",
    )
    assert found == ["Cloud TPU's metadata server", 2, 1, None, "127.0.0.1"]


def test_a_slice_on_gke_by_its_variables(metadata):
    """There JAX asks the metadata server too, whether there are several slices."""
    slice_ = {"TPU_WORKER_HOSTNAMES": "localhost,b,c,d", "TPU_WORKER_ID": "3"}
    found = found_on_tpu(**slice_, GCE_METADATA_IP=metadata)
    source = "Cloud TPU (TPU_WORKER_HOSTNAMES=localhost,b,c,d, TPU_WORKER_ID=3)"
    assert found == [source, 4, 3, None, "localhost"]
