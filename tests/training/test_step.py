"""The step on real digits: what it computes, and that the layout of the devices does not matter."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xception_jax import config as config_lib
from xception_jax import train
from xception_jax.augment import pipeline
from xception_jax.data.batches import Reader
from xception_jax.training import sharding, state, step


def start(config):
    """A run, its first state and its first batches (on the host)."""
    run = train.build_run(config)
    first = state.initialize(run.init, config.seed, sharding.replicated(run.layout.mesh))
    batches = Reader.from_config(config, run.train_source).training_batches(
        batch_size=config.data.batch_size, seed=config.seed
    )
    return run, first, list(itertools.islice(batches, 4))


def steps(config, count=1):
    run, current, batches = start(config)
    metrics = []
    for batch in batches[:count]:
        current, found = run.train_step(current, batch)
        metrics.append(jax.device_get(found))
    return jax.device_get(current), metrics


def program(lowered):
    """Its text when XLA has optimized it; LLVM, which comes after that, is spared the work."""
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text()


def distance(a, b):
    """Relative L2 distance of two trees."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    difference = sum(np.sum(np.square(np.float64(x) - y)) for x, y in pairs)
    return np.sqrt(difference / sum(np.sum(np.square(np.float64(x))) for x, _ in pairs))


@pytest.fixture
def without_dropout(small_config):
    small_config.model.dropout = 0.0
    return small_config


@pytest.mark.slow
@pytest.mark.long  # else tests/test_train.py shows it in a whole run
def test_eight_devices_compute_what_one_does(small_config):
    one, found_by_one = steps(small_config, 3)
    small_config.mesh.data = 8
    eight, found_by_eight = steps(small_config, 3)
    assert distance(one.params, eight.params) < 1e-4
    assert distance(one.batch_stats, eight.batch_stats) < 1e-5
    for a, b in zip(found_by_one, found_by_eight, strict=True):
        assert {k: float(v) for k, v in a.items()} == pytest.approx(
            {k: float(v) for k, v in b.items()}, rel=1e-3
        )


@pytest.mark.parametrize("virtual_batch", [8, pytest.param(None, marks=pytest.mark.slow)])
def test_virtual_batches_that_fit_a_device_need_no_communication(small_config, virtual_batch):
    small_config.mesh.data, small_config.model.bn_virtual_batch = 8, virtual_batch
    run, first, batches = start(small_config)
    text = program(run.train_step.lower(first, batches[0]))
    found = re.findall(r" (all-reduce|all-gather|all-to-all|collective-permute)\(", text)
    if virtual_batch:
        # One for the number of examples, one for all gradients, statistics and metrics together.
        assert found == ["all-reduce"] * 2
    else:
        assert len(found) > 20, "as many as there are normalizations, and more"


@pytest.mark.slow
def test_microbatches_stay_where_they_are(small_config):
    """Each device cuts up its own share: no example is moved or computed twice."""
    small_config.mesh.data, small_config.model.bn_virtual_batch = 8, 4
    small_config.optimizer.microbatch = 4
    run, first, batches = start(small_config)
    text = program(run.train_step.lower(first, batches[0]))
    assert not re.findall(r" (all-gather|all-to-all|collective-permute)\(", text)
    assert "[4,6,6,8]" in text, "the stem's output for the four examples of a device"
    assert "[32,6,6,8]" not in text


@pytest.mark.slow
def test_accumulation_computes_what_the_whole_batch_does(without_dropout):
    whole, found_by_whole = steps(without_dropout)
    without_dropout.optimizer.microbatch = 16
    parts, found_by_parts = steps(without_dropout)
    assert distance(whole.params, parts.params) < 1e-5
    assert distance(whole.batch_stats, parts.batch_stats) < 1e-6
    for name, value in found_by_whole[0].items():
        assert float(value) == pytest.approx(float(found_by_parts[0][name]), rel=1e-4), name


def test_microbatches_hold_whole_virtual_batches():
    batch = {"x": jnp.arange(24)}
    parts = step.split_microbatches(batch, parts=3, virtual_batch=2)["x"]
    runs = np.asarray(parts).reshape(3, 4, 2)
    assert (runs[..., 0] % 2 == 0).all()
    assert (runs[..., 1] == runs[..., 0] + 1).all()
    assert sorted(np.asarray(parts).ravel()) == list(range(24))
    with pytest.raises(ValueError, match="needs virtual batches"):
        step.split_microbatches(batch, parts=3, virtual_batch=None)


def test_the_average_follows_the_weights(small_config):
    run, first, batches = start(small_config)
    before = jax.device_get(first)
    after, _ = run.train_step(first, batches[0])
    after = jax.device_get(after)
    decay = min(0.9, 1 / 10)
    expected = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new,
        before.ema,
        {"params": after.params, "batch_stats": after.batch_stats},
    )
    assert distance(expected, after.ema) < 1e-6
    assert after.weights() is after.ema


def test_nothing_random_without_the_step(small_config):
    """Two equal states and batches give equal results; another step, other dropout and shifts."""
    run, first, batches = start(small_config)
    _, second, _ = start(small_config)
    a, found_a = run.train_step(first, batches[0])
    b, found_b = run.train_step(second, batches[0])
    assert distance(jax.device_get(a.params), jax.device_get(b.params)) == 0
    _, third, _ = start(small_config)
    seventh = jax.device_put(np.int32(7), third.step.sharding)  # elsewhere it is another program
    later = state.TrainState(seventh, third.params, third.batch_stats, third.opt_state, third.ema)
    _, found_later = run.train_step(later, batches[0])
    assert float(found_a["loss"]) == float(found_b["loss"]) != float(found_later["loss"])


@pytest.mark.slow
def test_mixed_precision_keeps_weights_and_statistics_in_float32(without_dropout):
    exact, found_by_exact = steps(without_dropout)
    without_dropout.model.dtype = "bfloat16"
    mixed, found_by_mixed = steps(without_dropout)
    assert {leaf.dtype for leaf in jax.tree.leaves(mixed.params)} == {np.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(mixed.batch_stats)} == {np.dtype("float32")}
    assert 0 < distance(exact.batch_stats, mixed.batch_stats) < 1e-2
    loss, mixed_loss = (float(found[0]["loss"]) for found in (found_by_exact, found_by_mixed))
    assert mixed_loss == pytest.approx(loss, rel=0.05)


def test_the_state_is_donated(small_config):
    run, first, batches = start(small_config)
    run.train_step(first, batches[0])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.params))


def test_masked_examples_do_not_count(without_dropout):
    run, first, batches = start(without_dropout)
    batch = dict(batches[0])
    weights = first.weights()
    whole = jax.device_get(run.evaluate_batch(weights, batch))
    assert whole["examples"] == 64
    halves = []
    for mask in (np.arange(64) < 32, np.arange(64) >= 32):
        part = {**batch, "mask": mask.astype(np.float32)}
        halves.append(jax.device_get(run.evaluate_batch(weights, part)))
    for name, value in whole.items():
        assert halves[0][name] + halves[1][name] == pytest.approx(value, rel=1e-6)


def test_parameter_counts_are_of_every_parameter(small_config):
    _, first, _ = start(small_config)
    table = state.parameter_counts(first.params)
    assert sum(table.values()) == sum(x.size for x in jax.tree.leaves(first.params))
    assert {"stem", "entry_flow.0", "exit_flow.1", "head"} <= table.keys()


@pytest.mark.parametrize(("freeze", "held"), [(None, []), ("entry_flow", ["stem", "entry_flow"])])
def test_the_table_tells_what_is_frozen_and_what_is_trained(small_config, freeze, held):
    small_config.model.freeze = freeze
    run = train.build_run(config_lib.resolve(small_config))
    table = state.parameter_table("xception", run.shapes.params, run.frozen)
    columns = {column.header: list(column.cells) for column in table.columns}
    counts = {
        part: sum(leaf.size for leaf in jax.tree.leaves(params))
        for part, params in run.shapes.params.items()
    }
    assert columns["parameters"][-1] == f"{sum(counts.values()):,}"
    assert ("trained" in columns) == bool(held)
    if not held:
        return
    trained = sum(count for part, count in counts.items() if part not in held)
    assert columns["trained"][-1] == f"{trained:,}"
    rows = zip(columns["part"], columns["trained"], strict=True)
    frozen = {part.partition(".")[0] for part, cell in rows if cell == "frozen"}
    assert frozen == set(held)


def test_mixed_examples_are_trained_with_mixed_targets(without_dropout):
    """On eight devices, in microbatches, against numpy's cross entropy of the model's logits."""
    config = without_dropout
    config.mesh.data, config.model.bn_virtual_batch, config.optimizer.microbatch = 8, 4, 4
    config.augment.mixup, config.augment.cutmix, config.loss.label_smoothing = 0.4, 1.0, 0.1
    run, first, batches = start(config)
    settings = pipeline.Augmentation.from_config(config.augment)
    graphdef = state.graphdef_of(state.model_maker(config, 10), config.data.image_size)
    quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

    @quick
    def forward(weights, images, labels):
        keys = pipeline.example_keys(config.seed, jnp.asarray(0), len(images))
        images = pipeline.augment(settings, keys, images)
        images, targets = pipeline.mix(settings, keys, images, jax.nn.one_hot(labels, 10))
        return step.apply(graphdef, weights, images, train=True)[0], targets

    weights = jax.device_get({"params": first.params, "batch_stats": first.batch_stats})
    label = batches[0]["label"]
    logits, targets = jax.device_get(forward(weights, batches[0]["image"], label))
    assert 20 < ((targets > 0).sum(1) == 2).sum() < 64, "most pairs are of two classes"
    log_shares = logits - np.log(np.exp(np.float64(logits)).sum(1, keepdims=True))
    expected = -((0.9 * targets + 0.1 / 10) * log_shares).sum(1).mean()
    # The step's metrics alone: without its gradients it compiles in a fraction of the time.
    metrics_of = quick(
        lambda *args: {name: run.train_step(*args)[1][name] for name in ("loss", "top1")}
    )
    metrics = metrics_of(first, jax.device_put(batches[0], sharding.by_example(run.layout.mesh)))
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["top1"]) == pytest.approx(np.mean(logits.argmax(1) == label))
