"""Runs on images with several labels: they learn, tell of MAP, and evaluate as they trained."""

import io
import json
import math
import shutil

import numpy as np
import pytest

from configs import jft, open_images
from tests import tiny_datasets
from tests.processes import digests, finish, on_devices, result
from xception_jax import evaluate, export, train
from xception_jax.data import splits
from xception_jax.errors import UsageError
from xception_jax.predict import Classifier
from xception_jax.serving import calibration
from xception_jax.training import step
from xception_jax.training.checkpoint import digest
from xception_jax.training.checkpoint.checkpoints import Checkpoints
from xception_jax.training.loss import Loss
from xception_jax.training.telemetry import log as telemetry
from xception_jax.training.workdir import read_config


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    splits = {"train": 256, "test": 90}
    tiny_datasets.prepare_multilabel(folder, "tiny_scenes", examples=splits)
    return str(folder)


@pytest.fixture
def config(small_config, data_dir):
    """A run of 32 steps on small scenes, each batch in two parts."""
    small_config.data.dataset, small_config.data.data_dir = "tiny_scenes", data_dir
    small_config.data.label = "objects/label"
    small_config.data.batch_size, small_config.optimizer.microbatch = 32, 16
    small_config.augment.flip = False  # a mirrored scene has other labels
    small_config.augment.shift = 0
    small_config.model.dropout = 0.0
    small_config.model.bn_momentum = 0.8  # so few steps
    small_config.optimizer.name, small_config.optimizer.learning_rate = "adamw", 0.01
    small_config.duration = small_config.eval.every = "32 steps"
    small_config.log.every = "16 steps"
    small_config.checkpoint.every = "32 steps"
    return small_config


@pytest.mark.slow
def test_a_run_learns_and_evaluates(config, tmp_path, monkeypatch):
    compiled, save = [], Checkpoints.save

    def saves(*args):
        compiled.append(digest._digest._cache_size())
        save(*args)
        compiled.append(digest._digest._cache_size())

    monkeypatch.setattr(Checkpoints, "save", saves)
    digest._digest.clear_cache()
    console = telemetry.Console(file=io.StringIO(), width=200)
    found = train.train(config, tmp_path / "run", console=console).to_json()
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    first, last = [line for line in lines if line["kind"] == "train"]
    assert compiled[0] == compiled[1] > 0, "a save that a signal asks for is a quick one"
    assert last["loss"] < first["loss"]
    # Guesses in random order would have about the share of the labels, 0.35, among six classes
    # a little more.
    assert found["map"] > 0.8
    assert min(found["precision"], found["recall"]) > 0.6
    assert found["examples"] == 90
    said = console.file.getvalue()
    assert f"evaluation at step 32  MAP@100 {found['map']:.2%}  precision" in said
    assert f"MAP@100 {last['map']:.1%}  precision {last['precision']:.1%}  recall" in said
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert checkpoints.find("best") == 32
    env = on_devices(1)
    again = result(finish("evaluate", f"--workdir={tmp_path / 'run'}", "--json", env=env))
    assert {name: again.pop(name) for name in found} == pytest.approx(found, rel=1e-5)
    assert again == {"weights": "ema", "data": "tiny_scenes/1.0.0:test", "split": "test"}
    check_thresholds(tmp_path / "run")


def check_thresholds(run):
    """Those of the calibration name the labels of the run's and of its export's predictions."""
    fitted = evaluate.calibrate(run).calibration
    assert len(fitted.thresholds) == 6
    assert fitted.after["f1"] > fitted.before["f1"]
    assert fitted.after["nll"] < fitted.before["nll"]
    source = splits.open_split(read_config(run), "test")
    targets = np.stack([source[i].label for i in range(len(source))])
    export.export_run(run, run / "export", platforms=("cpu",))
    for folder in (run, run / "export"):
        found = list(Classifier(folder).stream_split(source))
        named = np.array([[name in one.labels for name in source.class_names] for one in found])
        assert calibration.mean_f1(named, targets) == pytest.approx(fitted.after["f1"], abs=0.01)


@pytest.mark.slow
def test_a_shared_head_finds_the_same(config, tmp_path):
    """Eight devices, of which each two share the classes and the wide layers, against one."""
    config.model.fc_units, config.optimizer.microbatch = (64, 64), 0
    config.duration = config.eval.every = config.log.every = "3 steps"
    found, lines = {}, {}
    for name, data, model in (("one", 1, 1), ("shared", 4, 2)):
        config.mesh.data, config.mesh.model = data, model
        quiet = telemetry.Console(quiet=True)
        found[name] = train.train(config, tmp_path / name, console=quiet).to_json()
        with (tmp_path / name / "metrics.jsonl").open() as file:
            lines[name] = next(entry for entry in map(json.loads, file) if entry["kind"] == "train")
    assert found["shared"] == pytest.approx(found["one"], rel=1e-3)
    for metric in ("loss", "map", "precision", "recall", "grad_norm"):
        assert lines["shared"][metric] == pytest.approx(lines["one"][metric], rel=1e-3), metric


@pytest.mark.slow
def test_a_frozen_part_that_is_computed_once_finds_the_same(config, tmp_path):
    """In microbatches, with virtual batches after the frozen part."""
    config.model.freeze = "entry_flow"
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.001
    config.duration = config.eval.every = config.log.every = "3 steps"
    found = []
    for config.data.frozen_draws in (0, 1):
        folder = tmp_path / str(config.data.frozen_draws)
        found.append(train.train(config, folder, console=telemetry.Console(quiet=True)).to_json())
    assert found[1] == pytest.approx(found[0], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "multilabel", "expected"),
    [("auto", True, "sigmoid"), ("auto", False, "softmax"), ("sigmoid", False, "sigmoid")],
)
def test_the_step_takes_the_loss_that_the_config_says(small_config, name, multilabel, expected):
    small_config.loss.name, small_config.loss.label_smoothing = name, 0.1
    small_config.loss.class_weights = (1.0, 2.0)
    step_config = step.StepConfig.from_config(
        small_config, None, None, None, 1, multilabel=multilabel
    )
    assert step_config.loss == Loss(expected, 0.1, (1.0, 2.0))


@pytest.mark.slow
@pytest.mark.long  # a recipe does it in the short form
def test_a_run_that_was_stopped_ends_the_same(config, tmp_path):
    train.train(config, tmp_path / "whole")
    config.duration = "16 steps"
    train.train(config, tmp_path / "parts")
    config.duration = "32 steps"
    train.train(config, tmp_path / "parts", allow_config_changes=True)
    assert digests(tmp_path / "parts", 32) == digests(tmp_path / "whole", 32)


# What makes a recipe of 100 million examples one of 2048, and changes nothing else of it.
SHORT = {
    "duration": "32 steps",
    "eval.every": "16 steps",
    "checkpoint.every": "16 steps",
    "log.every": "8 steps",
    "optimizer.warmup": "4 steps",
    "optimizer.decay_every": "1024 examples",
    "optimizer.initial_squares": 0.0,  # from 1 the first 32 steps are small: too few to learn
    "model.bn_momentum": 0.8,
    "model.width": 0.1,
    "model.middle_blocks": 0,
    "model.stem_stride": 1,
    "data.image_size": 8,
    "data.batch_size": 64,  # two of the recipes' microbatches
    "augment.flip": False,  # a mirrored scene has other labels
    "mesh.data": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "label", "layers"),
    [
        pytest.param(jft, "", 3, id="jft"),
        pytest.param(open_images, "objects/label", 1, id="open_images", marks=pytest.mark.long),
    ],
)
def test_a_recipe_learns_and_goes_on_after_a_stop(recipe, label, layers, tmp_path):
    splits = {"train": 256, "validation": 90}
    tiny_datasets.prepare_multilabel(tmp_path, "tiny", examples=splits, objects=bool(label))
    config = recipe.get_config()
    units = tuple(units // 128 for units in config.model.fc_units)
    data = {"data.dataset": "tiny", "data.data_dir": str(tmp_path), "data.label": label}
    config.update_from_flattened_dict(SHORT | data | {"model.fc_units": units})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    found = train.train(config, whole).to_json()

    paper = {"name": "rmsprop", "momentum": 0.9, "learning_rate": 0.001, "schedule": "staircase",
             "decay_rate": 0.9, "weight_decay": 1e-5}  # fmt: skip
    ran = read_config(whole)
    assert {name: ran.optimizer[name] for name in paper} == paper
    assert (ran.loss.name, ran.optimizer.microbatch) == ("sigmoid", 32)
    arrays = digests(whole, 32)
    kinds = {tuple(name.split(".")[:2]) for name in arrays["opt_state"]}
    # After the L2 decay, RMSprop's mean square; after the rate, the momentum, as in TensorFlow.
    assert kinds == {("1", "nu"), ("2", "count"), ("3", "trace")}
    kernels = [name for name in arrays["params"] if name.startswith("head.") and "kernel" in name]
    assert len(kernels) == layers
    assert arrays["ema"].keys() >= {f"params.{name}" for name in kernels}

    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps][-4:] == [8, 16, 24, 32]
    assert steps[-1]["loss"] < 0.6 * steps[0]["loss"]
    assert steps[-1]["learning_rate"] == pytest.approx(0.0009), "one stair down"
    assert all(math.isfinite(value) for value in found.values())
    assert found["map"] > 0.8, "predictions in random order have about 0.5"
    env = on_devices(1)
    again = result(finish("evaluate", f"--workdir={whole}", "--json", env=env))
    assert {name: again[name] for name in found} == pytest.approx(found, rel=1e-4)

    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "32")
    console = telemetry.Console(file=io.StringIO(), width=200)
    assert train.train(config, parts, console=console).to_json() == found
    assert "continues from the checkpoint of step 16" in console.file.getvalue()
    assert digests(parts, 32) == arrays


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("loss.name", "softmax", "config.loss.name is 'softmax', for one label per image, but "
         "tiny_scenes/1.0.0:train has several; use sigmoid"),
        ("loss.class_weights", (1.0, 2.0), "config.loss.class_weights has 2 numbers; give "
         "one for each of the 6 classes of tiny_scenes/1.0.0:train"),
        ("loss.class_weights", (1.0,) * 5 + (0.0,), "config.loss.class_weights is (1.0, 1.0, 1.0, "
         "1.0, 1.0, 0.0); it takes at least 1e-06 and at most 1000000.0"),
        ("data.label", "", "tiny_scenes has labels in objects/label, objects/source, tags; name "
         "one of them in config.data.label"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_data_is_refused(config, tmp_path, field, value, message):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UsageError) as caught:
        train.train(config, tmp_path / "run")
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()
