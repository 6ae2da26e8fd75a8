"""Runs whose frozen part is computed once: the same results, killed and continued too."""

import io
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from rich.console import Console

from tests.conftest import make_small_config
from tests.processes import digests, finish, result, signal_at, train_metrics
from xception_jax import train
from xception_jax.config import registry
from xception_jax.config.registry import Registry
from xception_jax.errors import UsageError
from xception_jax.planning import plans
from xception_jax.training import metrics, preflight
from xception_jax.training.checkpoint.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A run that has learnt a little, so that its features differ from image to image."""
    folder, config = tmp_path_factory.mktemp("learnt") / "run", make_small_config()
    config.model.bn_momentum, config.optimizer.learning_rate = 0.5, 0.05
    config.duration = config.eval.every = config.checkpoint.every = "40 steps"
    train.train(config, folder, console=Console(quiet=True))
    return folder


@pytest.fixture
def config(small_config, learnt):
    """The head of this network, without crops or augmentation."""
    small_config.init_from = str(learnt)
    small_config.model.freeze = "exit_flow"
    small_config.augment.flip, small_config.augment.shift = False, 0
    small_config.optimizer.learning_rate = 0.05
    return small_config


def trained(config, folder, **changes):
    """What a run with some changes said, its result, its metrics of each step and its params."""
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    said = io.StringIO()
    console = Console(file=said, width=200)
    done = train.train(config, folder, console=console, allow_config_changes=True)
    run = train.build_run(config)
    with Checkpoints(folder, read_only=True) as checkpoints:
        target = {"params": train.sharding.place(run.shapes.params, run.layout.weights["params"])
                  if run.layout.update is not None else run.shapes.params}  # fmt: skip
        params = checkpoints.restore(done.step, target)[0]["params"]
    return said.getvalue(), done.metrics, train_metrics(folder), jax.device_get(params)


def assert_alike(one, other) -> None:
    """The same results to 1e-5, as metrics and as weights."""
    (_, evaluated, steps, params), (_, evaluated_1, steps_1, params_1) = one, other
    assert evaluated_1 == pytest.approx(evaluated, abs=1e-5)
    assert steps_1.keys() == steps.keys()
    for step, found in steps.items():
        assert steps_1[step] == pytest.approx(found, rel=1e-5, abs=1e-5), step
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, params_1)


def test_a_head_learns_as_if_the_frozen_part_were_computed_in_each_step(config, tmp_path):
    each = trained(config, tmp_path / "each")
    once = trained(config, tmp_path / "once", data__frozen_draws=1)
    assert_alike(each, once)
    losses = [found["loss"] for found in each[2].values()]
    assert losses[-1] < losses[0] - 0.1, "it learns"
    assert "computed once for 1,437 images in" in once[0]
    assert "MiB in memory" in once[0]
    assert "frozen part " in once[0].splitlines()[-3], "among the shares of the time"
    assert not (tmp_path / "once" / "features").exists()


@pytest.mark.slow
def test_blocks_after_a_frozen_flow_over_eight_devices_and_from_a_file(config, tmp_path):
    config.model.freeze = "entry_flow"
    config.mesh.data, config.mesh.model, config.mesh.shard = 4, 2, "all"
    config.optimizer.learning_rate = 0.001  # at a higher rate a ReLU flips somewhere by rounding
    each = trained(config, tmp_path / "each")
    once = trained(config, tmp_path / "once", data__frozen_draws=1, data__in_memory=0)
    assert_alike(each, once)
    folder = tmp_path / "once" / "features"
    assert f"MiB in {folder / 'train.bin'}" in once[0]
    names = {"train.bin", "train.json", "eval0.bin", "eval0.json"}
    assert {path.name for path in folder.iterdir()} == names


@pytest.mark.slow
def test_epochs_have_the_crops_and_the_augmentation_of_their_draw(config, tmp_path):
    """So the first epochs are those of a run that computes the frozen part in each step."""
    config.data.train_split, config.duration = "train[:128]", "3 epochs"
    config.data.crop_area, config.data.crop_aspect = (0.4, 1.0), (0.7, 1.4)
    config.augment.shift, config.augment.erase, config.augment.brightness = 1, 0.5, 0.3
    each = trained(config, tmp_path / "each")
    once = trained(config, tmp_path / "once", data__frozen_draws=10)
    assert_alike(each, once)
    assert "computed once for 384 images" in once[0], "later draws are not needed"
    same = trained(config, tmp_path / "same", data__frozen_draws=1)
    assert same[2][2] == once[2][2]
    assert same[2][4]["loss"] != once[2][4]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("in_memory", [256, 0])
def test_a_killed_run_goes_on_to_the_same_bits(flags, tmp_path, in_memory):
    given = {
        "model__freeze": "exit_flow", "data__train_split": "train[:128]", "duration": "8 steps",
        "data__frozen_draws": 2, "data__in_memory": in_memory,
    }  # fmt: skip
    steady, killed = tmp_path / "steady", tmp_path / "killed"
    done = result(finish("main", *flags(steady, **given), "--json"))
    code, _ = signal_at(5, signal.SIGKILL, "main", *flags(killed, **given))
    assert code == -signal.SIGKILL
    process = finish("main", *flags(killed, **given), "--json")
    assert result(process) == done
    assert digests(killed, 8) == digests(steady, 8)
    assert train_metrics(killed) == train_metrics(steady)
    found = f"its features are in {killed / 'features' / 'train.bin'}" in process.stderr
    assert found == (in_memory == 0)
    # A finished run needs none.
    assert "frozen part on" not in finish("main", *flags(killed, **given)).stdout


def test_damaged_features_are_made_again(config, tmp_path):
    config.data.frozen_draws, config.data.in_memory, config.duration = 1, 0, "2 steps"
    trained(config, tmp_path)
    features = tmp_path / "features"
    content = bytearray((features / "train.bin").read_bytes())
    content[1000] ^= 4
    (features / "train.bin").write_bytes(content)
    (features / "eval0.json").unlink()
    said, *_ = trained(config, tmp_path, duration="4 steps")
    assert f"{features / 'train.bin'} is damaged; it is made again" in said
    assert f"{features / 'eval0.bin'} is incomplete; it is made again" in said
    assert said.count("computed once for") == 2


def test_features_of_another_normalization_or_of_a_replaced_image_are_not_used(
    config, digits, tmp_path
):
    """A run that is killed before its first checkpoint may start again with another config."""
    for split in ("train", "test"):
        for i in range(128):
            encoded, label, _ = digits[split][i]
            path = tmp_path / "data" / split / str(label) / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded)
    config.data.dataset, config.duration = f"folder:{tmp_path / 'data'}", "2 steps"
    config.data.frozen_draws, config.data.in_memory = 1, 0
    run = tmp_path / "run"

    def said(**changes) -> str:
        if run.exists():
            shutil.rmtree(run / "checkpoints")
        return trained(config, run, **changes)[0]

    assert said().count("computed once for") == 2
    assert said().count("its features are in") == 2
    again = said(data__mean=(0.4, 0.4, 0.4))
    assert again.count("is of other weights, data or settings; it is made again") == 2
    assert said().count("its features are in") == 2
    path = next((tmp_path / "data" / "train").rglob("*.png"))
    path.write_bytes(digits["train"][200].encoded)
    again = said()
    assert again.count("is of other weights, data or settings; it is made again") == 1
    assert again.count("its features are in") == 1


class Stopping(Console):
    """Sends the run a signal once a part of the features is computed."""

    def print(self, *objects, **options):
        if "computed once for" in str(objects[0]):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_while_it_is_computed_stops_the_run(config, tmp_path):
    config.data.frozen_draws, config.duration = 1, "2 steps"
    done = train.train(config, tmp_path, console=Stopping(file=io.StringIO()))
    assert (done.step, done.finished) == (0, False)
    assert not (tmp_path / "checkpoints").exists() or not any((tmp_path / "checkpoints").iterdir())
    assert trained(config, tmp_path)[1]["examples"] == 360


def test_an_unusable_example_is_replaced_and_named_as_in_each_step(config, digits, tmp_path):
    for split, count in (("train", 128), ("test", 40)):
        for i in range(count):
            encoded, label, _ = digits[split][i]
            path = tmp_path / "data" / split / str(label) / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded[: 40 if i in (7, 31) else None])
    config.data.dataset, config.data.max_skipped = f"folder:{tmp_path / 'data'}", 0.1
    config.duration = "4 steps"
    each = trained(config, tmp_path / "each")
    once = trained(config, tmp_path / "once", data__frozen_draws=1)
    assert_alike(each, once)
    assert once[1]["skipped"] == 2
    logs = [(tmp_path / run / "skipped.jsonl").read_text() for run in ("each", "once")]
    assert sorted(logs[0].splitlines()) == sorted(logs[1].splitlines())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.freeze": None}, "but nothing is frozen; set config.model.freeze, or"),
        ({"augment.mixup": 0.2}, "config.augment.mixup and cutmix mix other pairs in each epoch"),
        ({"augment.cutmix": 1.0}, "config.augment.mixup and cutmix mix other pairs in each epoch"),
        ({"data.repeats": 2}, "so a batch with config.data.repeats 2 would have equal images"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_a_line(small_config, changes, message):
    small_config.model.freeze, small_config.data.frozen_draws = "exit_flow", 2
    preflight.validate(small_config)
    small_config.update_from_flattened_dict(changes)
    with pytest.raises(UsageError, match=r"^config\.data\.frozen_draws is 2, ") as error:
        preflight.validate(small_config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_several_processes_a_plan_and_a_metric_of_images_are_refused(small_config, monkeypatch):
    small_config.model.freeze, small_config.data.frozen_draws = "exit_flow", 2
    small_config.mesh.data = -1
    with pytest.raises(UsageError, match=r"for one process, but this run has 2; set it to 0$"):
        preflight._check_processes(small_config, 8, 2)
    with pytest.raises(UsageError, match="plan the run that computes the frozen part in each step"):
        plans.resolved([small_config], Console(quiet=True))
    monkeypatch.setattr(metrics, "_METRICS", Registry("metric"))
    monkeypatch.setattr(registry, "_OUTSIDE", {})
    metrics.register("bright")(lambda logits, batch: batch["image"].mean((1, 2, 3)))
    small_config.eval.metrics = ("bright",)
    with pytest.raises(UsageError, match=r"^metric 'bright' takes images, but with "):
        preflight.validate(small_config)
