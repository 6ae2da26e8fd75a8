"""Sums over a split in double precision, and what registered metrics make of them."""

import json
import runpy
from itertools import pairwise

import jax
import numpy as np
import pytest
import sklearn.metrics

from tests.processes import ROOT
from xception_jax.config import registry
from xception_jax.config.registry import Registry
from xception_jax.data.batches import Host, HostShard, Reader
from xception_jax.data.order import Sampling
from xception_jax.data.render.decode import Images
from xception_jax.errors import UsageError
from xception_jax.training import metrics, preflight, sharding
from xception_jax.training.evaluation import Evaluator


def test_the_reader_is_what_the_config_says(digits, small_config):
    small_config.data.crop_area, small_config.data.crop_aspect = (0.5, 0.9), (0.8, 1.2)
    small_config.data.eval_preset, small_config.data.eval_crop = "timm", 0.7
    small_config.data.threads, small_config.data.in_memory = 3, 5
    small_config.data.decode_parts = False
    small_config.data.balanced, small_config.data.repeats = True, 2
    small_config.data.mix_weights = (1.0, 2.0)
    reader = Reader.from_config(small_config, digits["test"], workers=2)
    assert reader.sampling == Sampling(balanced=True, weights=(1.0, 2.0), repeats=2)
    assert reader.images == Images(8, (0.5, 0.9), (0.8, 1.2), "timm", 0.7, exif=False)
    assert reader.host == Host(threads=3, workers=2, memory=5 * 2**20, decode_parts=False)


@pytest.mark.parametrize("batch_size", [8, 256])
def test_sums_do_not_lose_what_a_float32_would(digits, batch_size):
    """The mean of 360 losses near a million, where float32 keeps no more than a sixteenth."""

    def evaluate_batch(weights, batch):
        mask = np.asarray(batch["mask"])
        loss = np.float32(1e6 + 0.0625) * mask.sum()
        return {"loss": np.float32(loss), "top1": mask.sum(), "examples": mask.sum()}

    reader = Reader(digits["test"], Images(8))
    mesh = sharding.make_mesh(1)
    evaluator = Evaluator(reader, sharding.Layout.replicated(mesh), evaluate_batch, batch_size)
    sums = [min(batch_size, 360 - start) for start in range(0, 360, batch_size)]
    expected = sum(float(np.float32(np.float32(1e6 + 0.0625) * n)) for n in sums) / 360
    assert evaluator({})["loss"] == pytest.approx(expected, abs=1e-9)
    assert evaluator({})["examples"] == 360


@pytest.fixture
def registered(monkeypatch):
    """The registered metrics of a test, which takes them back."""
    monkeypatch.setattr(metrics, "_METRICS", Registry("metric"))
    monkeypatch.setattr(registry, "_OUTSIDE", {})


def evaluated(digits, devices, batch_size, *names):
    """Registered metrics and top-1 of fixed logits, and the logits and labels by themselves."""
    kernel = np.random.default_rng(0).normal(0, 0.002, (192, 10)).astype(np.float32)
    further = metrics.registered(names)

    def logits_of(images):
        return images.reshape(len(images), -1).astype(np.float32) @ kernel

    def evaluate_batch(weights, batch):
        logits = logits_of(batch["image"])
        return metrics.further_sums(further, logits, batch) | metrics.sums(logits, batch)

    mesh = sharding.make_mesh(devices)
    jitted = jax.jit(
        evaluate_batch,
        in_shardings=(sharding.replicated(mesh), sharding.by_example(mesh)),
        out_shardings=sharding.replicated(mesh),
    )
    reader, layout = Reader(digits["test"], Images(8)), sharding.Layout.replicated(mesh)
    found = Evaluator(reader, layout, jitted, batch_size, further)({})
    [batch] = reader.evaluation_batches(batch_size=360, shard=HostShard(0, 1))
    return found, logits_of(batch["image"]), batch["label"]


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 360), (1, 50), (8, 64), (8, 376)])
def test_a_metric_that_is_no_mean_is_exact_over_batches_and_devices(
    registered, digits, devices, batch_size
):
    code = runpy.run_path(str(ROOT / "tests" / "extensions" / "my_evaluator.py"))

    @metrics.register("balanced", figure=lambda s, _: (s["right"] / s["all"])[s["all"] > 0].mean())
    def balanced(logits, batch):
        own = jax.nn.one_hot(batch["label"], 10)
        return {"all": own, "right": own * (logits.argmax(-1) == batch["label"])[:, None]}

    @metrics.register("largest")
    def largest(logits, batch):
        return logits.max(axis=-1)

    found, logits, labels = evaluated(digits, devices, batch_size, "ece", "balanced", "largest")
    guesses = logits.argmax(axis=-1)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence, edges = shares.max(axis=1), np.linspace(0, 1, code["BINS"] + 1)
    ece = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = (guesses == labels)[inside].mean() - confidence[inside].mean()
            ece += inside.mean() * abs(gap)
    assert ece > 0.05
    assert found["ece"] == pytest.approx(ece, rel=1e-5)
    expected = sklearn.metrics.balanced_accuracy_score(labels, guesses)
    assert found["balanced"] == pytest.approx(expected, rel=1e-9)
    assert found["top1"] == pytest.approx((guesses == labels).mean(), rel=1e-9)
    assert abs(found["balanced"] - found["top1"]) > 1e-4, "the classes are of unequal sizes"
    assert found["largest"] == pytest.approx(logits.max(axis=1).mean(), rel=1e-5)
    assert found["examples"] == 360
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("figure", [None, lambda sums, examples: 0.0])
def test_an_array_of_another_shape_is_told_in_one_line(registered, digits, figure):
    @metrics.register("wide", figure=figure)
    def wide(logits, batch):
        return logits if figure is None else logits.sum(axis=0)

    told = r"^metric 'wide' returns an array \[\d+.*\] for a batch of 64; expected a number per"
    with pytest.raises(UsageError, match=told) as caught:
        evaluated(digits, 1, 64, "wide")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "figure", "told"),
    [
        (lambda one: {"a": one}, None, r"returns a dict for a batch of 11; expected a number per"),
        (lambda one: None, None, r"returns a NoneType for a batch of 11"),
        (lambda one: 0.5, None, r"returns an array \[\] for a batch of 11"),
        (lambda one: one[:, None], None, r"returns an array \[11, 1\] for a batch of 11"),
        (lambda one: one, lambda s, n: np.ones(3), r": figure= returns an array \[3\]; expected a"),
        (lambda one: one, lambda s, n: None, r": figure= returns None; expected a number"),
        (lambda one: one, lambda s: 0.0, r": figure= fails: TypeError: .* takes 1 positional"),
    ],
)
def test_what_a_metric_cannot_return_is_refused_before_the_run(
    registered, small_config, returned, figure, told
):
    metrics.register("off", figure=figure)(lambda logits, batch: returned(logits.max(axis=-1)))
    small_config.eval.metrics = ("off",)
    with pytest.raises(UsageError, match=f"^metric 'off'.*{told}") as caught:
        preflight.validate(small_config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "figure",
    [
        lambda s, n: s["a"][s["a"] > 0].mean(),
        lambda s, n: 1 // int(s["a"].sum()),
        lambda s, n: np.flatnonzero(s["a"])[0],
    ],
)
def test_a_figure_of_zeros_need_not_exist(registered, small_config, figure):
    @metrics.register("fine", figure=figure)
    def fine(logits, batch):
        return {"a": logits * (batch["label"] == 0)[:, None] * batch["mask"][:, None]}

    small_config.eval.metrics = ("fine",)
    preflight.validate(small_config)


def test_weights_that_are_cut_are_gathered_once(digits):
    mesh, seen = sharding.make_mesh(8), []

    def evaluate_batch(weights, batch):
        seen.append(weights["kernel"])
        return {"loss": 0.0, "top1": 0.0, "examples": np.asarray(batch["mask"]).sum()}

    reader = Reader(digits["test"], Images(8))
    evaluator = Evaluator(reader, sharding.Layout.replicated(mesh), evaluate_batch, 64)
    kernel = jax.device_put(np.arange(16.0), sharding.by_example(mesh))
    evaluator({"kernel": kernel})
    assert len(seen) == 6
    assert all(weights is seen[0] for weights in seen)
    assert seen[0].is_fully_replicated
    np.testing.assert_array_equal(seen[0], np.arange(16.0))
    evaluator({"kernel": seen[0]})
    assert seen[-1] is seen[0], "arrays that are already in place are not copied"
