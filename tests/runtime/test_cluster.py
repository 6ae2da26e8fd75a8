"""Runs of several processes on one machine: that they are one run, and how they end."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from tests.conftest import make_small_config
from tests.processes import (
    ROOT,
    Several,
    command,
    digests,
    finish,
    free_port,
    on_devices,
    records,
    several,
    started,
)
from tests.runtime.test_detection import OPEN_MPI, SLURM, metadata_server
from tests.training.checkpoint.test_checkpoints import save_all
from xception_jax import config as config_lib
from xception_jax import models
from xception_jax.errors import RunError, UsageError
from xception_jax.runtime import cluster
from xception_jax.weights import converted, pretrained
from xception_jax.weights.tensors import variables

# A run's twelve steps, by any number of processes on eight devices in all.
EIGHT = {"mesh__data": -1}


def test_flags_that_do_not_fit_are_told():
    for given in ({"coordinator": "127.0.0.1:1", "processes": 2}, {"process": 0, "processes": 2}):
        with pytest.raises(UsageError, match="go together: name all or none"):
            cluster.join(**given)
    with pytest.raises(UsageError, match="--process_id is 2; it takes 0 to 1"):
        cluster.join(coordinator="127.0.0.1:1", processes=2, process=2)
    with pytest.raises(UsageError, match="--coordinator is 'here'; it takes HOST:PORT"):
        cluster.join(coordinator="here", processes=2, process=0)


def test_a_cluster_that_is_asked_for_and_not_there_is_told(flags, tmp_path):
    process = finish("main", *flags(tmp_path / "run"), "--distributed")
    assert process.returncode == 2
    [line] = process.stderr.splitlines()
    assert line.startswith("error: --distributed needs a cluster, but the environment names none")
    assert not (tmp_path / "run").exists()


def test_what_fails_on_the_first_process_fails():
    def refuse() -> None:
        raise RunError("no")

    with pytest.raises(RunError, match="no"):
        cluster.on_first(refuse)
    with pytest.raises(RunError, match=r"^/dev/null/x: Not a directory$"):
        cluster.on_first(lambda: os.mkdir("/dev/null/x"))
    assert cluster.on_first(lambda: ["done"]) == ["done"]


TOGETHER = """
import os, sys, time
from xception_jax.runtime import cluster
from xception_jax.errors import ReadError, RunError, UsageError
address, process = sys.argv[1:]
cluster.join(coordinator=address, processes=2, process=int(process))

def told(what, *arguments):
    try:
        what(*arguments)
    except Exception as error:
        print(type(error).__name__, error)

def usage():
    raise UsageError("no")

def by_one(victim, error):
    if victim == process:
        raise error

assert cluster.on_first(lambda: process) == "0"
cluster._PATIENCE_S, cluster._ATTEMPT_S = 1, 1
time.sleep(3 * int(process))  # longer than process 0 waits in one go
assert cluster.gather([process, 1.5]) == [["0", 1.5], ["1", 1.5]]
told(cluster.on_first, lambda: os.mkdir("/dev/null/x"))
told(cluster.on_first, usage)
told(cluster.together, lambda: by_one("1", OSError(28, "No space left on device", "/f")))
told(cluster.together, lambda: by_one("1", ReadError("away")), (ReadError, RunError))
cluster.check_same('the classes', b'same')
cluster.check_same('the labels', process.encode())
"""


def test_what_fails_in_one_and_data_that_is_not_the_same_are_told_by_all():
    address = f"127.0.0.1:{free_port()}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, address, str(process)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "http_proxy": "http://127.0.0.1:1"},  # which nothing must take
        )
        for process in range(2)
    ]  # fmt: skip
    ended = [process.communicate(timeout=120) for process in running]
    assert "process 0 has waited 1 s for process 1, which" in ended[0][1].replace("\n", " ")
    for said, text in ended:
        assert [line for line in said.splitlines() if "[Gloo]" not in line] == [
            "RunError /dev/null/x: Not a directory (process 0 of 2)",
            "UsageError no (process 0 of 2)",
            "RunError /f: No space left on device (process 1 of 2)",
            "ReadError away (process 1 of 2)",
        ], text
        assert "RunError: the labels are not the same in processes 0 and 1" in text
    assert all(process.returncode for process in running)


ENDING = """
import sys, time
from xception_jax.runtime import cluster
from xception_jax.commands import cli
process, why = int(sys.argv.pop(1)), sys.argv.pop(1)
cli.define_config()

def main():
    cli.settle()
    import jax, jax.numpy as jnp
    from jax.experimental import multihost_utils
    if process == 1 and why == "memory":
        jax.jit(lambda: jnp.ones((1 << 24, 1 << 22), jnp.float32), device=jax.local_devices()[0])()
    if process == 1 and why == "disk":
        with open("/dev/full", "w") as file:
            file.write("x")
    if process == 0 and why == "bug":
        raise KeyError("x")
    if why == "usage":
        from xception_jax.errors import UsageError
        raise UsageError("no")
    multihost_utils.sync_global_devices("here the others wait for ever")

cli.run(sys.modules[__name__])
"""


@pytest.mark.slow
def test_a_process_that_can_say_nothing_ends_too():
    """Nobody reads its standard error any more."""
    port = free_port()
    flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    ours, theirs = os.pipe()
    os.close(ours)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ENDING, str(process), "usage", *flags,
             f"--process_id={process}"],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs,
        )
        for process in range(2)
    ]  # fmt: skip
    os.close(theirs)
    assert [process.wait(timeout=120) for process in running] == [2, 2]


@pytest.mark.parametrize(
    ("why", "code", "line"),
    [
        ("memory", 1, r"error: out of memory on cpu: it wanted [\d,.]+ GiB; lower .* "
         r"--config=configs/digits.py --config.data.batch_size=8 --topology=SLICE --fit finds"),
        pytest.param("disk", 1, "error: No space left on device",
                     marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param("bug", 1, "error: KeyError: 'x'", marks=pytest.mark.slow),
        pytest.param("usage", 2, "error: no", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_what_ends_one_ends_all_with_the_same_line(why, code, line):
    """Also where the others are in a computation, from which Python does not return."""
    port = free_port()
    flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=3"]
    flags += ["--config", "configs/digits.py", "--config.data.batch-size=8"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ENDING, str(process), why, *flags, f"--process_id={process}"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in range(3)
    ]  # fmt: skip
    said = [process.communicate(timeout=60)[1] for process in running]
    assert [process.returncode for process in running] == [code] * 3, said
    victim = {"memory": 1, "disk": 1, "bug": 0}.get(why)
    for process, text in enumerate(said):
        [told] = [one for one in text.splitlines() if one.startswith("error: ")]
        assert re.match(line, told), text
        if victim not in (process, None):
            assert told.endswith(f" (process {victim} of 3)")
        assert ("Traceback" in text) == (why == "bug" and process == 0), text
        assert "stack trace" not in text


NEVER = """
import functools, sys
from xception_jax.runtime import cluster
from xception_jax.commands import cli
cluster.join = functools.partial(cluster.join, timeout_s=2)
main = lambda: cli.settle()
cli.run(sys.modules[__name__])
"""


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_nobody_meets_ends_with_one_line(process):
    task = {**SLURM, "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": str(process),
            "SLURM_JOB_ID": str(free_port())}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", NEVER], env={**os.environ, **task},
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    *before, line = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr
    assert line.startswith("error: process")
    assert "within 2 s" in line
    assert "--nodistributed runs alone" in line
    at_once = "SLURM (SLURM_JOB_ID="
    assert [one.startswith(at_once) for one in before] == ([True] if process == 0 else [])


@pytest.fixture(scope="module")
def alone(tmp_path_factory, flags) -> Path:
    """The run by one process on eight devices."""
    folder = tmp_path_factory.mktemp("alone")
    with several(1, 8, folder, "main", *flags(folder / "run", **EIGHT)) as run:
        assert run.codes() == [0], run.said(0)
    return folder / "run"


def assert_same_bits(workdir: Path, undisturbed: Path) -> None:
    """The same steps, losses and evaluations, and at the end every bit of the state."""
    assert records(workdir) == records(undisturbed)
    assert digests(workdir, 12) == digests(undisturbed, 12)


def assert_same_to_rounding(workdir: Path, undisturbed: Path) -> None:
    """The same steps and evaluations; the sums may have another order."""
    (found, losses), (expected, right) = (
        zip(*[((kind, step), loss) for kind, step, loss in records(folder)], strict=True)
        for folder in (workdir, undisturbed)
    )
    assert found == expected
    np.testing.assert_allclose(losses, right, rtol=1e-5)


def go_on(workdir: Path, flags: list[str], processes: int, devices: int = 8) -> None:
    """The run's end by so many processes of so many devices in all."""
    folder = workdir.parent / f"again-{processes}-{devices}"
    with several(processes, devices // processes, folder, "main", *flags) as run:
        assert run.codes() == [0] * processes, run.said(0)
    assert "continues from the checkpoint of step" in run.said(0)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_compute_what_one_does(alone, flags, tmp_path, processes):
    given = flags(tmp_path / "run", **EIGHT)
    with several(processes, 8 // processes, tmp_path, "main", *given, "--json") as run:
        assert run.codes() == [0] * processes, run.said(0)
    assert_same_bits(tmp_path / "run", alone)
    assert '{"step": 12' in run.said(0)
    assert "step 1/12" not in run.said(1), "the first alone tells"
    evaluation = ("evaluate", f"--workdir={tmp_path / 'run'}", "--json")
    with several(processes, 1, tmp_path / "evaluation", *evaluation) as evaluating:
        assert evaluating.codes() == [0] * processes, evaluating.said(0)
    found = finish(*evaluation).stdout.strip()
    assert found.replace('"examples": 360', "") != found
    for word in ('"top1"', '"loss"', '"examples": 360'):
        assert word in evaluating.said(0)
        assert word not in evaluating.said(1)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "processes"), [(0, 2), (1, 2), (2, 4)])
def test_when_one_is_killed_all_end_and_others_go_on(alone, flags, tmp_path, victim, processes):
    given = flags(tmp_path / "run", **EIGHT)
    with several(processes, 8 // processes, tmp_path, "main", *given) as run:
        run.wait_until("step 5/12")
        run.processes[victim].kill()
        codes = run.codes(timeout=30)
    assert all(codes)
    for process in set(range(processes)) - {victim}:
        assert "another task died" in run.said(process)
    if victim:
        assert f"unhealthy (stopped sending heartbeats):\n{victim}\n" in run.said(0)
    go_on(tmp_path / "run", given, {2: 4, 4: 2}[processes])
    assert_same_bits(tmp_path / "run", alone)


def stop(run: Several, victim: int, number: signal.Signals, text: str) -> float:
    """Signals one process when the first has said something; seconds until all have ended well."""
    run.wait_until(text)
    run.processes[victim].send_signal(number)
    since = time.monotonic()
    assert run.codes() == [0] * len(run.processes), run.said(0)
    return time.monotonic() - since


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "number", "text"),
    [
        (1, signal.SIGTERM, "step 4/12"),
        (0, signal.SIGTERM, "step 6/12"),  # the evaluation is next
        (1, signal.SIGINT, "step 2/12"),
        (1, signal.SIGTERM, "optical_digits"),  # the first compilation
    ],
)
def test_a_signal_to_one_stops_all_at_the_same_step(alone, flags, tmp_path, victim, number, text):
    given = flags(tmp_path / "run", **EIGHT, checkpoint__every="100 steps")
    with several(2, 4, tmp_path, "main", *given) as run:
        stop(run, victim, number, text)
    steps = os.listdir(tmp_path / "run/checkpoints")
    stopped = int(run.said(0).split("stopped at step ")[1].split()[0])
    assert str(stopped) in steps, "both saved there: it is finalized when all have written"
    go_on(tmp_path / "run", given, 1)
    assert_same_bits(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_run_without_a_cluster_is_the_same_to_rounding(alone, flags, tmp_path):
    assert finish("main", *flags(tmp_path / "run", **EIGHT)).returncode == 0
    assert_same_to_rounding(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_sharded_run_goes_on_with_other_devices_and_processes(alone, flags, tmp_path):
    """Eight devices, then two processes of two, then one device that holds all."""
    given = flags(tmp_path / "run", **EIGHT, mesh__shard="all", checkpoint__every="100 steps")
    with several(1, 8, tmp_path, "main", *given) as run:
        stop(run, 0, signal.SIGTERM, "step 2/12")
    assert "data / 8" in run.said(0)
    given += ["--allow_config_changes", "--config.mesh.shard=optimizer"]
    with several(2, 2, tmp_path / "two", "main", *given) as two:
        stop(two, 1, signal.SIGTERM, f"step {last_step(tmp_path / 'run') + 1}/12")
    assert "data / 4" in two.said(0)
    assert "continues from the checkpoint of step" in two.said(0)
    go_on(tmp_path / "run", [*given, "--config.mesh.shard=none"], 1, devices=1)
    assert_same_to_rounding(tmp_path / "run", alone)


def last_step(workdir: Path) -> int:
    """Of the newest checkpoint."""
    return max(int(name) for name in os.listdir(workdir / "checkpoints") if name.isdecimal())


@pytest.mark.slow
def test_a_folder_in_use_is_refused_by_all(flags, tmp_path):
    given = flags(tmp_path / "run", **EIGHT, duration="500 steps")
    with several(2, 1, tmp_path / "first", "main", *given) as first:
        first.wait_until("step 1/500")
        with several(2, 1, tmp_path / "second", "main", *given) as second:
            assert second.codes(timeout=60) == [2, 2]
        for process in (0, 1):
            assert "another process is training in" in second.said(process)


def task_of(cluster_: str, process: int, port: int, metadata: str) -> dict[str, str]:
    """The variables of one of two processes on this machine, as its launcher sets them."""
    number = str(process)
    return {
        "slurm": {**SLURM, "SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost",
                  "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": number,
                  "SLURM_LOCALID": number},
        "open_mpi": {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": f"{port << 12}.0;tcp://127.0.0.1:1",
                     "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": number},
        "tpu": {"JAX_FORCE_TPU_INIT": "1", "TPU_WORKER_HOSTNAMES": "localhost,localhost",
                "TPU_WORKER_ID": number, "GCE_METADATA_IP": metadata,
                "JAX_COORDINATOR_PORT": str(port)},
    }[cluster_]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "cluster_",
    ["slurm", *(pytest.param(name, marks=pytest.mark.long) for name in ("open_mpi", "tpu"))],
)
def test_nothing_beside_a_training_in_the_same_job_disturbs_it(cluster_, flags, tmp_path):
    run = flags(tmp_path / "run", **EIGHT, duration="5000 steps", eval__every="9000 steps")
    other = flags(tmp_path / "other", **EIGHT)
    port = free_port()
    with metadata_server() as metadata:
        env = [task_of(cluster_, process, port, metadata) for process in (0, 1)]
        one_device = on_devices(1)
        tasks = [(command("main", *run), {**variables, **one_device}) for variables in env]
        with started(tmp_path / "first", tasks) as first:
            first.wait_until("step 5/")
            assert "names 2 processes; this is number 0 and waits" in first.said(0)
            workdir = f"--workdir={tmp_path / 'run'}"
            evaluated = finish("evaluate", workdir, "--json", env=env[0])
            assert '"examples": 360' in evaluated.stdout, evaluated.stderr
            assert "names 2 processes; this one runs alone" in evaluated.stderr
            output = f"--output={tmp_path / 'exported'}"
            exported = finish("export", workdir, output, "--platforms=cpu", env=env[1])
            assert exported.returncode == 0, exported.stderr
            with started(tmp_path / "second", [(command("main", *other), one) for one in env]) as (
                second
            ):
                assert second.codes() == [2, 2]
            for process in (0, 1):
                line = second.said(process).splitlines()[-1]
                assert line.startswith("error: another run listens at "), line
            assert not (tmp_path / "other").exists()
            assert [one.poll() for one in first.processes] == [None, None]
            first.processes[1].send_signal(signal.SIGTERM)
            assert first.codes() == [0, 0], first.said(1)
    assert "stopped at step" in first.said(0)


@pytest.mark.slow
def test_a_mesh_that_leaves_out_a_process_is_refused_by_all(flags, tmp_path):
    with several(2, 2, tmp_path, "main", *flags(tmp_path / "run", mesh__data=2)) as run:
        assert run.codes() == [2, 2]
    for process in (0, 1):
        [line] = [one for one in run.said(process).splitlines() if one.startswith("error")]
        assert "config.mesh.data is 2, which uses 2 of the 4 devices of 2 processes" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_log_that_cannot_be_written_ends_all_with_one_line(flags, tmp_path):
    """Only process 0 writes it; the other one waits for it in a step."""
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with several(2, 1, tmp_path, "main", *flags(tmp_path / "run", **EIGHT)) as run:
        assert run.codes(timeout=120) == [1, 1], run.said(1)
    for process in (0, 1):
        [line] = [one for one in run.said(process).splitlines() if one.startswith("error: ")]
        assert "metrics.jsonl: Is a directory" in line
        assert "Traceback" not in run.said(process)
        assert "stack trace" not in run.said(process)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["main", "evaluate"])
def test_weights_that_are_not_the_same_everywhere_ends_all(module, flags, tmp_path):
    """Each process reads the file of its own home."""
    config = make_small_config()
    built = {k: v for k, v in config_lib.model_overrides(config).items() if v is not None}
    where, tasks = f"--coordinator=127.0.0.1:{free_port()}", []
    for process in (0, 1):
        (home := tmp_path / str(process)).mkdir()
        model = models.create("xception", num_classes=10, rngs=nnx.Rngs(process), **built)
        about = converted.About(
            "xception", pretrained.effective("xception", built), 10,
            preprocessing={"image_size": 8, "eval_preset": "area"}, activation="softmax",
        )  # fmt: skip
        tensors = {name: np.asarray(variable[...]) for name, variable in variables(model).items()}
        converted.write(home / "net.safetensors", about, tensors)
        given = ["--input=~/net.safetensors", "--dataset=optical_digits"]
        if module == "main":
            given = flags(tmp_path / "run", mesh__data=2, init_from=given[0].partition("=")[2])
        place = [where, "--num_processes=2", f"--process_id={process}"]
        environment = {"HOME": str(home), **on_devices(1)}
        tasks.append((command(module, *given, *place), environment))
    with started(tmp_path / "said", tasks) as run:
        assert run.codes() == [1, 1], run.said(0)
    for process in (0, 1):
        [line] = [one for one in run.said(process).splitlines() if one.startswith("error")]
        assert re.search(
            r"the weights \S*/net.safetensors are not the same in processes 0 and 1", line
        )


RESTORE = """
import sys
from pathlib import Path
from xception_jax.runtime import cluster
address, process, folder = sys.argv[1:]
cluster.join(coordinator=address, processes=2, process=int(process))
from tests.training.checkpoint.test_checkpoints import Checkpoints, assert_equal, make_state, target
with Checkpoints(Path(folder), keep=10) as checkpoints:
    state, meta, notes = checkpoints.restore_newest(target(devices=2))
assert_equal(state.params, make_state(meta.step, devices=2).params)
print(int(state.step), checkpoints.steps(), notes)
"""


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def gone(path: Path) -> None:
    shutil.rmtree(path.parents[3])  # the whole checkpoint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "damage"),
    [
        (0, truncate),
        (1, gone),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in ((0, flip), (0, gone), (1, truncate), (1, flip))
        ),
    ],
)
def test_all_restore_the_newest_checkpoint_that_all_can_read(tmp_path, victim, damage):
    """Each process has a view of the folder of its own, one of them with damage in it."""
    save_all(tmp_path / "0", [1, 2, 3])
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    files = (tmp_path / str(victim) / "checkpoints/3/params/ocdbt.process_0/d").iterdir()
    damage(max(files, key=lambda path: path.stat().st_size))
    address = f"127.0.0.1:{free_port()}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RESTORE, address, str(process), str(tmp_path / str(process))],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **on_devices(1)},
        )
        for process in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert all("\n2 [1, 2] " in out for out, _ in said), said
    if (damage, victim) != (gone, 0):  # otherwise no process reports it
        assert f"(process {victim} of 2)" in said[0][0]
        assert (tmp_path / "0" / "damaged" / "3").is_dir()
