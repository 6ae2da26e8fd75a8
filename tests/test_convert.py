"""The command, and runs that begin with converted weights."""

import json

import numpy as np
import pytest

from tests.processes import finish, result
from tests.weights import builders
from xception_jax import config as config_lib
from xception_jax.weights import sources
from xception_jax.weights.tensors import abstract


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A narrow Xception of three classes, as its `.weights.h5`."""
    folder = tmp_path_factory.mktemp("pretrained")
    model = builders.create("xception", 3, width=0.1, middle_blocks=0)
    return builders.write_keras(model, folder / "a.weights.h5")


@pytest.fixture(scope="module")
def tuned(pretrained, flags, tmp_path_factory):
    """Three steps from these weights, with the first three blocks frozen; and what was said."""
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    process = finish("main", *tuned_flags(flags, workdir, pretrained), "--json")
    assert result(process)["step"] == 3
    return workdir, process.stderr


def tuned_flags(flags, workdir, init_from, **more):
    return flags(
        workdir, init_from=init_from, model__freeze="block3", duration="3 steps",
        checkpoint__every="1 step", model__pool_padding="symmetric", **more,
    )  # fmt: skip


def tensors(path, **options):
    source = sources.open_source(path, **options)
    built = {k: v for k, v in source.overrides("xception").items() if v is not None}
    return source.tensors(abstract("xception", source.num_classes, built), "xception")


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_frozen_blocks_do_not_change_a_bit_and_the_others_do(tuned, pretrained, kind):
    before = sources.open_source(pretrained)
    small = {"width": 0.1, "middle_blocks": 0, "stem_stride": 1}
    before = before.tensors(abstract("xception", 3, small), "xception")
    after = tensors(tuned[0], weights=kind)
    frozen = ("stem.", "entry_flow.0.", "entry_flow.1.")
    for name, array in after.items():
        if name.partition(".")[2].startswith(frozen):
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        elif name.endswith(("kernel", "mean")) and not name.startswith("params.head"):
            assert not np.array_equal(array, before[name]), name


def test_a_run_says_what_it_starts_from(tuned, pretrained):
    said = tuned[1]
    assert f"starts from {pretrained}" in said
    assert "a fresh classifier of 10 classes: that of the weights has 3" in said
    assert "config.model.pool_padding is 'symmetric', and the weights were made with 'same'" in said


def test_a_run_goes_on_without_the_weights(tuned, flags, pretrained, tmp_path):
    aside = pretrained.rename(pretrained.with_name("moved.weights.h5"))
    try:
        process = finish("main", *tuned_flags(flags, tuned[0], pretrained), "--json")
        assert result(process)["step"] == 3
        assert "continues from the checkpoint of step 3" in process.stderr
        assert "starts from" not in process.stderr
        again = finish("main", *tuned_flags(flags, tmp_path / "new", pretrained))
        assert again.returncode == 2
        assert again.stderr == f"error: there are no weights at {pretrained}\n"
        assert not (tmp_path / "new").exists()
    finally:
        aside.rename(pretrained)


def test_a_run_to_keras_timm_and_our_own_and_on(tuned, tmp_path):
    workdir = tuned[0]
    for to, file in (("timm", "timm.safetensors"), ("xception_jax", "ours.safetensors")):
        said = result(finish("convert", "--from=xception_jax", f"--to={to}", f"--input={workdir}",
                             f"--output={tmp_path / file}", "--json"))  # fmt: skip
        assert said["num_classes"] == 10
        assert any("width=0.1" in note for note in said["notes"]) == (to == "timm")
    ours = tmp_path / "ours.safetensors"
    about = sources.open_source(ours).about("xception")
    assert about.class_names == tuple("0123456789")
    assert about.overrides["pool_padding"] == "symmetric"
    assert about.source["of"] == {"format": "xception_jax", "step": 3, "weights": "ema"}
    kept, run = tensors(ours), tensors(workdir)
    assert all(np.array_equal(kept[name], run[name]) for name in run)
    # Overrides that a config leaves open are the weights' own, and stand in the run's config.
    from xception_jax.weights import initial

    config = config_lib.default()
    config.init_from = str(ours)
    resolved = initial.resolve(config)
    assert (resolved.model.width, resolved.model.pool_padding) == (0.1, "symmetric")
    assert initial.resolve(config, resolved).model.width == 0.1


def test_bad_usage_is_one_line_and_nothing_is_written(pretrained, tmp_path):
    out = tmp_path / "out.safetensors"
    for flags, said in (
        ((f"--output={out}", "--model=xception41"), "keras has no xception41; it has: xception"),
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
