"""The command, and runs that begin with converted weights."""

import json
import re
import signal

import numpy as np
import pytest

from tests.processes import digests, finish, records, result, signal_at
from tests.weights import builders
from xception_jax import config as config_lib
from xception_jax.weights.pretrained import open_pretrained
from xception_jax.weights.tensors import abstract


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A narrow Xception of three classes, as its `.weights.h5`."""
    folder = tmp_path_factory.mktemp("pretrained")
    model = builders.create("xception", 3, width=0.1, middle_blocks=0)
    return builders.write_keras(model, folder / "a.weights.h5")


@pytest.fixture(scope="module")
def tuned(pretrained, flags, tmp_path_factory):
    """Six steps from these weights, with the first three blocks frozen; and what was said."""
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    process = finish("main", *tuned_flags(flags, workdir, pretrained), "--json")
    assert result(process)["step"] == 6
    return workdir, process.stderr


def tuned_flags(flags, workdir, init_from, **more):
    return flags(
        workdir, init_from=init_from, model__freeze="block3", duration="6 steps",
        checkpoint__every="1 step", model__pool_padding="symmetric", **more,
    )  # fmt: skip


def tensors(path, **options):
    source = open_pretrained(path, **options)
    built = {k: v for k, v in source.overrides("xception").items() if v is not None}
    return source.tensors(abstract("xception", source.num_classes, built), "xception")


def check_frozen(workdir, pretrained, kind):
    """Holds the weights of a run against the file that it began with."""
    before = open_pretrained(pretrained)
    small = {"width": 0.1, "middle_blocks": 0, "stem_stride": 1}
    before = before.tensors(abstract("xception", 3, small), "xception")
    frozen = ("stem.", "entry_flow.0.", "entry_flow.1.")
    for name, array in tensors(workdir, weights=kind).items():
        if name.partition(".")[2].startswith(frozen):
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        elif name.endswith(("kernel", "mean")) and not name.startswith("params.head"):
            assert not np.array_equal(array, before[name]), name


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_frozen_blocks_do_not_change_a_bit_and_the_others_do(tuned, pretrained, kind):
    check_frozen(tuned[0], pretrained, kind)


def test_a_run_says_what_it_starts_from(tuned, pretrained):
    said = tuned[1]
    assert f"starts from {pretrained}" in said
    assert "new classifier of 10 classes: the one of the weights has 3" in said
    assert "model.pool_padding is 'symmetric', but the weights expect 'same'" in said


@pytest.mark.slow
def test_a_killed_run_goes_on_without_the_weights(tuned, flags, pretrained, tmp_path):
    """It ends as the one that nothing disturbed, in every bit."""
    workdir = tmp_path / "run"
    again = tuned_flags(flags, workdir, pretrained)
    # A checkpoint is written before the next one is begun: that of step 1 is there.
    code, _ = signal_at(3, signal.SIGKILL, "main", *again)
    assert code == -signal.SIGKILL
    aside = pretrained.rename(pretrained.with_name("moved.weights.h5"))
    try:
        process = finish("main", *again, "--json")
        assert result(process)["step"] == 6
        assert re.search("continues from the checkpoint of step [1-5]\n", process.stderr)
        assert "starts from" not in process.stderr
        again = finish("main", *tuned_flags(flags, tmp_path / "new", pretrained))
        assert again.returncode == 2
        assert again.stderr.startswith(
            f"error: config.init_from: there are no weights at {pretrained}; give a "
        )
        assert again.stderr.count("\n") == 1
        assert not (tmp_path / "new").exists()
    finally:
        aside.rename(pretrained)
    assert digests(workdir, 6) == digests(tuned[0], 6)
    assert records(workdir) == records(tuned[0])
    for kind in ("raw", "ema"):
        check_frozen(workdir, pretrained, kind)


@pytest.mark.slow
@pytest.mark.long  # in the short form, kills of runs that began from a file stand for these
@pytest.mark.parametrize("first", [1, 5])
def test_a_killed_run_that_began_from_a_checkpoint(undisturbed, flags, tmp_path, first):
    """The first kill comes before or after it has a checkpoint of its own."""
    began = undisturbed / "checkpoints" / "6"
    changes = {"init_from": began, "model__freeze": "entry_flow", "duration": "6 steps"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish("main", *flags(whole, **changes)).returncode == 0
    code, _ = signal_at(first, signal.SIGKILL, "main", *flags(killed, **changes))
    assert code == -signal.SIGKILL
    process = finish("main", *flags(killed, **changes), "--json")
    assert result(process)["step"] == 6
    assert ("starts from" in process.stderr) == (first == 1)
    assert digests(killed, 6) == digests(whole, 6)
    assert records(killed) == records(whole)
    before = open_pretrained(undisturbed, step="6", weights="ema").read()
    held = [name for name in before if name.partition(".")[2].startswith(("stem.", "entry_flow."))]
    assert held
    for kind in ("ema", "raw"):
        now = open_pretrained(killed, step="6", weights=kind).read()
        for name in held:
            np.testing.assert_array_equal(now[name], before[name], err_msg=f"{kind} {name}")


def test_a_run_to_keras_timm_and_our_own_and_on(tuned, tmp_path):
    workdir = tuned[0]
    for to, file in (("timm", "timm.safetensors"), ("xception_jax", "ours.safetensors")):
        said = result(finish("convert", "--from=xception_jax", f"--to={to}", f"--input={workdir}",
                             f"--output={tmp_path / file}", "--json"))  # fmt: skip
        assert said["num_classes"] == 10
        assert any("width=0.1" in note for note in said["notes"]) == (to == "timm")
    ours = tmp_path / "ours.safetensors"
    about = open_pretrained(ours).about("xception")
    assert about.class_names == tuple("0123456789")
    assert about.overrides["pool_padding"] == "symmetric"
    assert about.source["of"] == {"format": "xception_jax", "step": 6, "weights": "ema"}
    kept, run = tensors(ours), tensors(workdir)
    assert all(np.array_equal(kept[name], run[name]) for name in run)
    # Overrides that a config leaves open are the weights' own, and stand in the run's config.
    from xception_jax.weights import initial

    config = config_lib.default()
    config.init_from = str(ours)
    resolved = initial.resolve_with_weights(config)
    assert (resolved.model.width, resolved.model.pool_padding) == (0.1, "symmetric")
    assert initial.resolve_with_weights(config, resolved).model.width == 0.1


def test_bad_usage_is_one_line_and_nothing_is_written(pretrained, tmp_path):
    out = tmp_path / "out.safetensors"
    for flags, said in (
        (
            (f"--output={out}", "--model=xception41"),
            "keras has no xception41; it has: inception_v3",
        ),
        (("--output=a.keras", "--to=keras"), "a .keras file needs a config that only Keras makes"),
    ):
        process = finish("convert", "--from=keras", f"--input={pretrained}", *flags)
        assert process.returncode == 2
        [line] = process.stderr.splitlines()
        assert line.startswith("error: ")
        assert said in line
        assert not list(tmp_path.iterdir())


def test_config_json_tells_where_a_run_began(tuned, pretrained):
    config = json.loads((tuned[0] / "config.json").read_text())
    assert config["init_from"] == str(pretrained)
    assert config["model.freeze"] == "block3"
