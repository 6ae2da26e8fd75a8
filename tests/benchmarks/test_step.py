"""The command that measures, on a tiny model; the measured values do not matter here."""

import argparse
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from benchmarks import arguments, record
from benchmarks.peers import counts, plain_flax
from xception_jax import models
from xception_jax.models.counts import multiply_adds
from xception_jax.training import sharding
from xception_jax.training import state as state_lib
from xception_jax.training import step as step_lib

ROOT = Path(__file__).parents[2]


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def tiny(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(
        "step", "--platform", "cpu", "--output", output, "--override", "width=0.1",
        "middle_blocks=0", "--rounds", 2, "--seconds", 0, *arguments,
    )  # fmt: skip


@pytest.mark.slow
def test_a_table_of_two_contenders(tmp_path):
    output = tmp_path / "step.csv"
    done = tiny(output, "--work", "forward:75:2", "--allocator", "default")
    assert done.returncode == 0, done.stderr
    notes, rows = record.read(output)
    assert notes["cores"] == "1"
    assert [row["contender"] for row in rows] == ["ours", "ours_plain"]
    for row in rows:
        assert row["model"] == "xception width=0.1 middle_blocks=0"
        assert (row["work"], row["side"], row["batch"]) == ("forward", "75", "2")
        assert (row["dtype"], row["allocator"], row["rounds"]) == ("float32", "default", "2")
        least, median, most = (
            float(row[f"cpu_ms_per_image_{name}"]) for name in ("min", "median", "max")
        )
        assert 0 < least <= median <= most
        assert float(row["wall_ms_per_image_median"]) > 0
        assert float(row["images_per_second"]) > 0
        assert float(row["ratio_cpu_min"]) <= float(row["ratio_cpu"])
        assert float(row["share_of_peak"]) > 0
        assert float(row["share_of_bandwidth"]) > 0
        assert float(row["peak_memory_mib"]) > 100
    assert float(rows[0]["ratio_cpu"]) == float(rows[0]["ratio_wall"]) == 1


@pytest.mark.slow
def test_training_and_a_contender_that_dies(tmp_path):
    output = tmp_path / "step.csv"
    works = ("training:5:2", "training:33:2")  # the first is too small for the model
    done = tiny(output, "--peers", "ours", "--allocator", "kept", "--work", *works)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "ours: stopped with exit code 1: xception_jax.errors.UsageError" in done.stdout
    assert [row["side"] for row in record.read(output)[1]] == ["33"]


def test_a_peer_that_does_not_know_the_model():
    done = run("step", "--peers", "torch", "--override", "width=0.5")
    assert done.returncode == 2
    assert "torch does not know xception with these overrides" in done.stderr


def test_record_writes_what_it_reads(tmp_path):
    path = tmp_path / "results" / "a.csv"
    rows = [{"name": "a, b", "ms": 1.5}, {"name": "#c", "ms": ""}]
    record.write(path, rows, {"machine": "one: two"})
    notes, read = record.read(path)
    assert notes["machine"] == "one: two"
    assert {"command", "date"} < set(notes)
    assert read == [{"name": "a, b", "ms": "1.5"}, {"name": "#c", "ms": ""}]


def test_rows_of_another_machine_are_not_added_to(tmp_path):
    path = tmp_path / "a.csv"
    record.write(path, [{"name": 1}], {"machine": "another"})
    done = run("step", "--append", "--output", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {path} is of another machine (another); give another file\n"


@pytest.fixture
def document(tmp_path) -> Path:
    """A document with two tables, and the result files for them in its folder."""
    work = {"model": "xception", "work": "training", "side": 96, "batch": 8, "dtype": "float32"}
    took = {
        "cpu_ms_per_image_median": 80, "ratio_cpu": 1.257, "ratio_cpu_min": 1.2,
        "ratio_cpu_max": 1.3, "share_of_peak": 0.84, "share_of_bandwidth": "",
    }  # fmt: skip
    rows = [
        {**work, "allocator": "default", "contender": "ours", **took},
        {**work, "allocator": "kept", "contender": "ours", **took},
        {**work, "allocator": "kept", "contender": "torch", **took},
    ]
    record.write(tmp_path / "step_cpu.csv", rows, {"platform": "cpu"})
    record.write(tmp_path / "other.csv", [{"a": 1, "b": 2}], {})
    path = tmp_path / "speed.md"
    path.write_text(
        "# Speed\n<!-- table: step_cpu -->\nold\n<!-- end -->\ntext\n"
        "<!-- table: other -->\n<!-- end -->\n"
    )
    return path


def test_tables_of_a_document(document):
    where = ("--document", document, "--results", document.parent)
    assert run("tables", "--check", *where).returncode == 1
    assert run("tables", *where).returncode == 0
    text = document.read_text()
    heading = "training 96, batch 8"
    assert f"| cpu ms an image (ratio, spread) | {heading}, default | {heading}, kept |\n" in text
    assert "| ours | 80 | 80 |\n| torch |  | 80 (1.26, 1.20 to 1.30) |\n" in text
    assert "| ours: share of peak | 84% | 84% |\n" in text
    assert "share of bandwidth" not in text, "where there is none"
    assert "| a | b |\n|---|---|\n| 1 | 2 |\n" in text
    assert "\nold\n" not in text
    assert "\ntext\n" in text
    assert run("tables", "--check", *where).returncode == 0


def test_counts_of_products_convolutions_and_loops():
    def program(image, kernel, matrix):
        convolved = jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.lax.scan(lambda x, _: (x @ matrix, None), convolved, length=5)[0]

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 6, 6, 3), (3, 3, 3, 7), (7, 7))]
    traced = jax.make_jaxpr(program)(*shapes).jaxpr
    pixels = 2 * 4 * 4
    assert multiply_adds(traced) == pixels * 7 * 27 + 5 * pixels * 7 * 7
    convolution = 2 * 6 * 6 * 3 + 27 * 7 + pixels * 7
    assert counts.bytes_moved(traced) == 4 * (convolution + 5 * (2 * pixels * 7 + 49))


def test_a_value_may_have_spaces_and_signs_but_not_another_name():
    assert arguments.assignment("duration=8 epochs") == ("duration", "8 epochs")
    address = "https://a/b?c=d#sha256=0"
    assert arguments.assignment(f"init_from={address}") == ("init_from", address)
    assert arguments.assignment("crop=(0.5, 1)") == ("crop", (0.5, 1))
    for wrong in ("a=x b=2", "a b=2", "a", "=1"):
        with pytest.raises(argparse.ArgumentTypeError, match="NAME=VALUE"):
            arguments.assignment(wrong)


@pytest.mark.parametrize(
    "name",
    [
        "step",
        "input",
        "startup",
        "loop",
        "trace",
        "tables",
        "tpu_compile",
        "experiments",
        "images",
        "digest",
        "finetune",
        "predict",
    ],
)
def test_every_command_has_help_and_refuses_in_one_line(name):
    done = run(name, "--help")
    assert done.returncode == 0
    assert f"python -m benchmarks.{name}" in done.stdout + done.stderr
    done = run(name, "--nonsense")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_loop_beside_the_bare_step(tmp_path):
    output = tmp_path / "loop.csv"
    small = ("model.width=0.1", "data.batch_size=16", "data.image_size=32")
    done = run("loop", "--change", *small, "--steps", 4, "--rounds", 1, "--output", output)
    assert done.returncode == 0, done.stderr
    (row,) = record.read(output)[1]
    assert float(row["bare_s_per_step"]) > 0
    assert float(row["loop_s_per_step"]) > 0
    assert float(row["python_ms_394_arrays"]) < float(row["python_ms_630_arrays"])


@pytest.mark.slow
def test_a_trace_names_stages_and_kinds(tmp_path):
    done = run("trace", "--side", 75, "--batch", 2, "--override", "width=0.1",
               "--steps", 1, "--folder", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("block2 forward", "block14 backward", "product of matrices", "convolution"):
        assert re.search(rf"^{name} +\d+\.\d{{3}} +\d+\.\d%$", done.stdout, re.MULTILINE)
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.slow
def test_the_plain_form_is_our_model():
    changes = {"width": 0.1, "middle_blocks": 1, "stem_stride": 1, "dropout": 0.0}
    ours = models.create("xception", num_classes=10, rngs=nnx.Rngs(0), **changes)
    graphdef, params, batch_stats = state_lib.split(ours)
    rng = np.random.default_rng(0)
    # Fresh ones are 0 and 1, which would hide their being mixed up.
    params, batch_stats = jax.tree.map(
        lambda a: a + rng.uniform(0, 0.3, a.shape).astype(np.float32) if a.ndim == 1 else a,
        (params, batch_stats),
    )
    plain = plain_flax.copy_weights(params, batch_stats, **changes)
    pixels = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
    images = pixels / np.float32(127.5) - 1
    weights = {"params": params, "batch_stats": batch_stats}
    logits, _ = jax.jit(step_lib.apply, static_argnums=0)(graphdef, weights, pixels)
    np.testing.assert_allclose(logits, nnx.jit(lambda m, x: m(x))(plain, images), rtol=1e-5)

    def loss_of(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean()

    @jax.jit
    @jax.grad
    def our_gradients(params):
        weights = {"params": params, "batch_stats": batch_stats}
        return loss_of(step_lib.apply(graphdef, weights, pixels, train=True)[0])

    @nnx.jit
    def plain_gradients(model):
        return nnx.grad(lambda model: loss_of(model(images, train=True)))(model)

    expected = nnx.to_pure_dict(plain_gradients(plain))
    found = plain_flax.from_ours(our_gradients(params), expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert float(jnp.abs(a - b).max()) <= 1e-4 * float(jnp.abs(b).max())


@pytest.mark.slow
def test_ten_training_steps_equal_those_of_the_plain_form():
    changes = {"width": 0.1, "middle_blocks": 1, "stem_stride": 1, "dropout": 0.0}

    def make(rngs):
        return models.create("xception", num_classes=10, rngs=rngs, **changes)

    sgd = optax.sgd(1e-3, momentum=0.9)
    state = state_lib.initialize(partial(state_lib.create, make, sgd, False), 0, None)
    plain = plain_flax.copy_weights(state.params, state.batch_stats, **changes)
    step_config = step_lib.StepConfig(
        state_lib.graphdef_of(make, 32), sgd, lambda step: 1e-3, frozen=(), matmul_precision=None
    )
    train_step = step_lib.jit_train_step(
        step_config, sharding.Layout.replicated(sharding.make_mesh(1))
    )
    optimizer = nnx.Optimizer(plain, sgd, wrt=nnx.Param)

    @nnx.jit
    def plain_step(model, optimizer, images, labels):
        def loss_of(model):
            logits = model(images, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    rng = np.random.default_rng(0)
    for _ in range(10):
        images = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
        labels = rng.integers(0, 10, 8, np.int32)
        batch = {"image": images, "label": labels, "mask": np.ones(8, np.float32)}
        expected = plain_step(plain, optimizer, images / np.float32(127.5) - 1, labels)
        state, metrics = train_step(state, batch)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    for kind, ours in ((nnx.Param, state.params), (nnx.BatchStat, state.batch_stats)):
        plain_tree = nnx.to_pure_dict(nnx.state(plain, kind))
        difference = jax.tree.map(jnp.subtract, plain_flax.from_ours(ours, plain_tree), plain_tree)
        assert optax.tree.norm(difference) <= 1e-4 * optax.tree.norm(plain_tree)
