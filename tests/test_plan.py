"""The command that plans a run, in real processes."""

import jax
import pytest

from tests.processes import finish, result
from xception_jax import train
from xception_jax.errors import UsageError
from xception_jax.planning import report
from xception_jax.training.build import DataSpec

IMAGENET = "--config=configs/imagenet.py"


def test_it_plans_for_the_devices_that_are_there(small_config, flags, tmp_path):
    small_config.mesh.data = 8
    config, _, *overrides = flags(tmp_path, mesh__data=8)
    table = tmp_path / "plan.csv"
    process = finish("plan", config, *overrides, f"--csv={table}", "--json")
    [plan] = result(process)["plans"]
    assert "memory, GiB: arguments" in process.stderr
    assert "12 steps, 2 evaluations" in process.stderr

    run = train.build_run(small_config)
    state = jax.eval_shape(run.init, jax.random.key(0))
    of_state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    of_batch = 8 * (8 * 8 * 3 + 4 + 4)  # eight images, labels and masks a device
    assert plan["arguments_gib"] * 2**30 == pytest.approx(of_state + of_batch, rel=0.02)
    assert plan["aliased_gib"] * 2**30 == pytest.approx(of_state, rel=0.02), "it is donated"
    assert plan["total_gib"] > plan["arguments_gib"]
    # One for the number of examples, one for gradients, statistics and metrics.
    assert plan["collectives"] == "2xall-reduce"
    assert plan["collectives_between_layers"] == 0
    assert (plan["devices"], plan["images_a_device"], plan["steps"]) == (8, 8, 12)
    assert (plan["step_ms"], plan["hours"], plan["estimate"]) == (None, None, "none")

    command, date, versions, header, line = table.read_text().splitlines()
    assert date.startswith("# date: 20")
    assert f"jax {jax.__version__}" in versions
    assert command.startswith("# command: python -m xception_jax.plan --config=")
    assert dict(zip(header.split(","), line.split(","), strict=True))["topology"] == "8 x cpu"


@pytest.mark.slow
def test_statistics_over_the_whole_batch_stand_between_layers(small_config):
    from xception_jax.planning import estimate, program, steps

    small_config.mesh.data, small_config.model.bn_virtual_batch = 8, None
    mesh = train.build_run(small_config).layout.mesh
    compiled = steps.lower("train", small_config, mesh, DataSpec(10)).compile()
    figures = {**program.of_compiled(compiled), "compile_s": 0}
    [found] = estimate.of_devices(figures, compiled.as_text(), None).collectives
    assert found.kind == "all-reduce"
    assert found.inside >= 10, "as many as there are normalizations between the first and the last"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config is needed"),
        ([IMAGENET, "--topology=v5e:4x5"], "no TPU slice 'v5e:4x5'; did you mean 'v5e:4x8'?"),
        ([IMAGENET, "--fit"], "--fit needs a slice: --topology=v5e:4x4"),
        ([IMAGENET, "--sweep=v5e:2x2", "--topology=v5e:4x4"], "remove --topology"),
        ([IMAGENET, "--plot=plan.png"], "--plot draws what --sweep"),
        ([IMAGENET, "--batch_per_chip=0"], "batch_per_chip"),
        ([IMAGENET, "--topology=v5e:4x4", "--csv=nowhere/plan.csv"],
         "--csv=nowhere/plan.csv: there is no such folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(flags, message):
    process = finish("plan", *flags)
    assert process.returncode == 2
    assert process.stdout == ""
    [line] = process.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_without_libtpu_it_says_how_to_get_it(tmp_path):
    """In a process that finds a package of that name nowhere."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'libtpu' else find(name, *more)\n"
    )
    process = finish("plan", IMAGENET, "--topology=v5e:4x4", env={"PYTHONPATH": f"{tmp_path}:."})
    assert process.returncode == 2
    [line] = process.stderr.splitlines()
    assert "pip install 'xception_jax[plan]'" in line


ROW = {
    "topology": "v5e:2x2", "images_a_device": 64.0, "total_gib": 5.5, "device_gib": 15.75,
    "step_ms": 58.6, "images_per_s_chip": 1093.0, "images_per_s": 4370.0, "matrix_share": 0.33,
    "memory_share": 0.74, "hours": 9.86, "chip_hours": 39.4, "note": "",
}  # fmt: skip


def test_a_sweep_is_a_table_a_file_and_a_picture(tmp_path):
    rows = [ROW, {"topology": "v5e:1x1", "note": "needs 20 GiB"}]
    from xception_jax.utils.console import make_console

    console = make_console()
    with console.capture() as said:
        console.print(report.of_sweep(rows))
    assert "1,093" in said.get()
    header, *lines = report.to_csv(rows, {"command": "x"}).splitlines()[1:]
    assert header.split(",") == list(ROW)
    assert [line.split(",")[0] for line in lines] == ["v5e:2x2", "v5e:1x1"]


def test_a_picture_needs_matplotlib_and_a_known_suffix(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    report.plot([ROW, ROW], tmp_path / "plan.png")
    picture = (tmp_path / "plan.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="--plot="):
        report.check_plot(tmp_path / "plan.what")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.png"]
