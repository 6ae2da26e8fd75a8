"""Whole runs in real processes: what they tell and leave, and what evaluation makes of it."""

import json
import re
import shutil

import pytest

from tests import tiny_datasets
from tests.processes import finish, on_devices, records, result, run_code
from xception_jax.data.render import turbojpeg
from xception_jax.runtime import cache
from xception_jax.training.checkpoint.checkpoints import Checkpoints
from xception_jax.utils import seal


def test_a_run_tells_what_it_does_and_leaves_its_files(undisturbed, flags):
    found = json.loads((undisturbed / "result.json").read_text())
    said = (undisturbed / "said.txt").read_text()
    assert "optical_digits/1.0.0:train: 1,437 examples, 10 classes; 12 steps of 64" in said
    assert "entry_flow.0" in said, "the parameter table"
    assert "step 12/12" in said
    assert f"done: {undisturbed}/checkpoints/12" in said
    assert f"python -m xception_jax.evaluate --workdir={undisturbed}" in said
    assert found["step"] == 12
    assert found["examples"] == 360
    assert {"config.json", "metrics.jsonl", "checkpoints"} <= {
        p.name for p in undisturbed.iterdir()
    }
    assert list(undisturbed.glob("events.out.tfevents.*"))
    assert [(kind, step) for kind, step, _ in records(undisturbed) if kind == "eval"] == [
        ("eval", 6), ("eval", 12),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("devices", "options"),
    [(1, ()), (3, ("--batch_size=7",)), (8, ("--batch_size=360",)), (8, ("--step=6",))],
)
def test_evaluate_reports_what_the_run_did(undisturbed, flags, options, devices):
    found = json.loads((undisturbed / "result.json").read_text())
    if options == ("--step=6",):
        with Checkpoints(undisturbed, read_only=True) as checkpoints:
            found = {"step": 6, **checkpoints.metrics(6)}
    command = ("evaluate", f"--workdir={undisturbed}", "--json", *options)
    again = result(finish(*command, env=on_devices(devices)))
    exact = ("step", "top1", "examples")
    assert "top5" not in again, "there are ten classes"
    assert [again[name] for name in exact] == [found[name] for name in exact]
    assert again["loss"] == pytest.approx(found["loss"], abs=1e-6)
    assert (again["weights"], again["split"]) == ("ema", "test")


def test_evaluate_raw_weights_of_another_split_as_a_table(undisturbed, flags):
    process = finish("evaluate", f"--workdir={undisturbed}", "--weights=raw", "--split=train[:100]")
    assert process.returncode == 0, process.stderr
    cells = [line.split("│")[1:3] for line in process.stdout.splitlines() if "│" in line]
    table = {name.strip(): value.strip() for name, value in cells}
    assert table["weights"] == "raw"
    assert table["examples"] == "100"
    assert table["top1"].endswith("%")


def test_evaluate_runs_no_program_that_a_foreign_run_brings(undisturbed, tmp_path):
    """The programs are the user's own, wherever `config.json` says that some lie."""
    run, planted = tmp_path / "run", tmp_path / "planted"
    shutil.copytree(undisturbed, run)
    config = json.loads((run / "config.json").read_text())
    config["compilation_cache"] = str(planted)
    (run / "config.json").write_text(json.dumps(seal.sealed(config)))
    (tmp_path / ".compiled").mkdir()  # where it once was
    env = {
        "JAX_COMPILATION_CACHE_DIR": "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    process = finish("evaluate", f"--workdir={run}", "--json", env=env)
    assert result(process)["step"] == 12
    assert not planted.exists()
    assert not list((tmp_path / ".compiled").iterdir())
    [own] = (tmp_path / "cache" / "xception_jax" / "compiled").iterdir()
    kept = list(own.iterdir())
    assert list(own.glob("jit_evaluate_batch-*"))
    assert own.stat().st_mode & 0o777 == 0o700
    assert cache.remove_old_programs(own) == 0
    assert cache.remove_old_programs(own, bound=0) == len(kept), "JAX names them otherwise now"


@pytest.mark.slow
def test_eight_devices_see_the_same_and_end_within_rounding(undisturbed, flags, tmp_path):
    found = result(finish("main", *flags(tmp_path / "run", mesh__data=8), "--json"))
    assert found["examples"] == 360
    one, eight = (
        {(k, s): loss for k, s, loss in records(folder)}
        for folder in (undisturbed, tmp_path / "run")
    )
    assert one.keys() == eight.keys()
    assert eight == pytest.approx(one, rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    flags, tmp_path
):
    workdir = tmp_path / "run"
    wild = flags(workdir, optimizer__learning_rate=1e18, checkpoint__every="1 step")
    process = finish("main", *wild)
    assert process.returncode == 1
    [line] = process.stderr.splitlines()
    # The first step makes the weights enormous; the second sees what comes of it.
    assert re.match(r"error: the (loss|grad_norm) of step 2 is (nan|inf); the run stops", line)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
    assert finish("evaluate", f"--workdir={workdir}", "--step=1").returncode == 0


@pytest.mark.slow
def test_any_data_set_trains_by_name(tmp_path):
    tiny_datasets.prepare(tmp_path, "tiny_photos", examples={"train": 48, "validation": 20})
    process = finish(
        "main", "--config=configs/imagenet.py", f"--workdir={tmp_path / 'run'}", "--json",
        "--config.data.dataset=tiny_photos", f"--config.data.data_dir={tmp_path}",
        "--config.data.batch_size=8", "--config.model.bn_virtual_batch=8", "--config.mesh.data=1",
        "--config.data.image_size=24", "--config.model.width=0.02", "--config.duration=3 steps",
        "--config.model.middle_blocks=1",
    )  # fmt: skip
    assert result(process)["examples"] == 20
    how = (
        "only the random crop of a JPEG is decoded, by"
        if turbojpeg.library()
        else "JPEGs are decoded completely"
    )
    assert how in process.stderr


def test_a_run_and_its_evaluation_outside_the_main_thread(small_config, tmp_path):
    """As an agent of a sweep calls them; signals are the main thread's."""
    code = (
        "import signal\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "handlers = lambda: [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]\n"
        "before = handlers()\n"
        "with ThreadPoolExecutor(1) as pool:\n"
        "    done = pool.submit(train.train, given, folder).result()\n"
        "    found = pool.submit(evaluate.evaluate, folder, say=print).result()\n"
        "assert handlers() == before\n"
        "print(json.dumps([done.to_json(), found.to_json()]))\n"
    )
    small_config.duration = "2 steps"
    process = run_code(code, small_config, tmp_path / "run")
    done, found = json.loads(process.stdout.splitlines()[-1])
    assert done["step"] == found["step"] == 2
    assert found["loss"] == pytest.approx(done["loss"], rel=1e-5)
    assert (process.stdout + process.stderr).count("the run is not in the main thread") == 1
