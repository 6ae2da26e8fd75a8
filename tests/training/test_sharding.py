"""Shardings, and that a run's result does not depend on them."""

import math
import re
from functools import partial

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from tests.training.test_step import distance, start
from xception_jax import config as config_lib
from xception_jax import train
from xception_jax.errors import UsageError
from xception_jax.planning import steps as planned
from xception_jax.training import optimizer, sharding, sharding_rules, state
from xception_jax.training.build import DataSpec
from xception_jax.training.checkpoint.checkpoints import Checkpoints, Meta
from xception_jax.training.checkpoint.digest import digests
from xception_jax.weights.tensors import flatten

SIXTEEN = sharding.axes_of(32, 2, "all")


def test_the_mesh_is_one_axis_unless_something_is_cut():
    assert sharding.axes_of(8, 1, "none") == {"data": 8}
    assert sharding.axes_of(8, 4, "none") == {"data": 2, "model": 4}
    assert sharding.axes_of(12, 1, "all") == {"data0": 2, "data1": 2, "data2": 3}
    assert sharding.axes_of(2, 2, "all") == {"data": 1, "model": 2}


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("head.fc.0.kernel", (2048, 4096), (("data0", "data1", "data2", "data3"), "model")),
        ("0.trace.head.fc.1.kernel", (4096, 96), ("model", ("data0", "data1", "data2", "data3"))),
        ("params.head.classifier.bias", (17000,), ("model",)),
        ("head.classifier.kernel", (2048, 1001), (("data0", "data1", "data2", "data3"),)),
        # 16 devices do not divide 728; 8 do, and the other dimension takes the factor left.
        ("middle_flow.0.kernel", (728, 728), (("data0", "data1", "data2"), "data3")),
        ("stem.conv1.kernel", (3, 3, 1, 728), (None, None, None, ("data0", "data1", "data2"))),
        ("stem.bn1.scale", (728,), ()),  # below SMALLEST
        ("stem.bn1.scale", (1008,), ()),  # the largest multiple of 16 below it
        ("stem.bn1.scale", (1024,), (("data0", "data1", "data2", "data3"),)),
        ("ahead.fc.0.kernel", (3, 4097), ()),  # nothing divides it, and no rule means it
    ],
)
def test_how_an_array_is_cut(path, shape, expected):
    assert sharding_rules.spec(path, shape, SIXTEEN, True) == PartitionSpec(*expected)
    rule = tuple(entry if entry == "model" else None for entry in expected)
    assert [e for e in sharding_rules.spec(path, shape, SIXTEEN, False) if e] == [
        e for e in rule if e
    ]


def bytes_of(part, held):
    return sum(
        (math.prod(x.sharding.shard_shape(x.shape)) if held else x.size) * x.dtype.itemsize
        for x in jax.tree.leaves(part)
    )


def paper_state(config):
    adam = optimizer.make_optimizer("adamw", lambda step: 1e-3)
    return state.shapes_of(
        partial(state.create, state.model_maker(config, 1000), adam, config.ema.decay > 0)
    )


def test_eight_devices_hold_an_eighth_each_of_the_papers_network():
    config = config_lib.default()
    config.ema.decay = 0.9
    shapes = paper_state(config)
    for devices, most in ((8, 1 / 7), (64, 1 / 45)):
        layout = sharding.Layout.of(shapes, sharding.without_devices(devices, 1, "all"), "all")
        placed = sharding.place(shapes, layout.state)
        for part in (placed.opt_state, placed.ema, placed.params):
            assert bytes_of(part, held=True) < most * bytes_of(part, held=False), devices
    layout = sharding.Layout.of(shapes, sharding.without_devices(8, 1, "optimizer"), "optimizer")
    placed = sharding.place(shapes, layout.state)
    assert bytes_of(placed.params, held=True) == bytes_of(placed.params, held=False)


def after(config, count=3):
    """The run, its state after some steps, their losses, and its first state."""
    run, first, batches = start(config)
    current = state.initialize(run.init, config.seed, run.layout.state)
    losses = []
    for batch in batches[:count]:
        current, found = run.train_step(current, batch)
        losses.append(float(found["loss"]))
    return run, current, losses, first


@pytest.mark.parametrize(
    ("shard", "freeze", "frozen"),
    [
        ("all", "block2", ("stem.", "entry_flow.0.")),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("all", None, ()),
                ("all", "exit_flow", ("stem.", "entry_flow.", "exit_flow.")),
                ("optimizer", "block2", ("stem.", "entry_flow.0.")),
            )
        ),
    ],
)
@pytest.mark.slow
def test_a_cut_state_trains_as_the_whole_one(small_config, shard, freeze, frozen):
    small_config.mesh.data, small_config.model.freeze = 8, freeze
    _, whole, losses, _ = after(small_config)
    small_config.mesh.shard = shard
    _, cut, found, first = after(small_config)
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-7)
    for part in sharding_rules.SHARDED[shard]:
        kernels = [
            x for x in jax.tree.leaves(getattr(cut, part)) if x.size >= sharding_rules.SMALLEST
        ]
        assert kernels
        assert all(x.addressable_shards[0].data.size * 8 == x.size for x in kernels)
    check_frozen(first, cut, frozen)


def check_frozen(first, after, frozen):
    """Holds a state against the first one: what is frozen has every bit, and no optimizer state."""
    for one, other in (
        (first.params, after.params),
        (first.batch_stats, after.batch_stats),
        (first.ema["params"], after.ema["params"]),
        (first.ema["batch_stats"], after.ema["batch_stats"]),
    ):
        now = flatten(other)
        for name, array in flatten(one).items():
            if name.startswith(frozen):
                np.testing.assert_array_equal(array, now[name], err_msg=name)
            elif name.endswith(("kernel", "mean")):
                assert not np.array_equal(array, now[name]), name
    [momentum] = [part.trace for part in after.opt_state if hasattr(part, "trace")]
    trained = {name for name in flatten(after.params) if not name.startswith(frozen)}
    assert flatten(momentum).keys() == trained


def synthetic_state():
    """Of a few arrays: cut by a rule, by size, and left whole."""
    key = jax.random.key(0)
    kernels = {"kernel": jax.random.normal(key, (64, 96)), "bias": jax.random.normal(key, (96,))}
    params = {"head": {"fc": {0: kernels}}, "stem": {"kernel": jax.random.normal(key, (3, 728))}}
    stats = {"mean": jax.numpy.ones(5)}
    ema = {"params": params, "batch_stats": stats}
    moments = optax.adam(1e-3).init(params)
    return state.TrainState(jax.numpy.asarray(3), params, stats, moments, ema)


def sums(current):
    return {name: digests(getattr(current, name))[0] for name in ("params", "opt_state", "ema")}


def test_a_checkpoint_goes_on_wherever_it_is_to_lie(tmp_path):
    """Its digests do not depend on where it lay, and each array comes to where it belongs."""
    shapes = jax.eval_shape(synthetic_state)

    def laid(data, model, shard):
        return sharding.Layout.of(shapes, sharding.make_mesh(data, model, shard), shard).state

    first = jax.jit(synthetic_state, out_shardings=laid(8, 1, "all"))()
    assert sums(first) == sums(jax.device_put(first, laid(1, 1, "none")))
    meta = Meta(3, "set/1.0.0:train", 100, ("a", "b"))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(first, meta)
        checkpoints.wait()
        for other in ((1, 1, "none"), (4, 2, "optimizer"), (3, 1, "all"), (2, 4, "none")):
            target = sharding.place(shapes, laid(*other))
            restored, _, notes = checkpoints.restore_newest(target)
            assert not notes
            for was, now, wanted in zip(
                *map(jax.tree.leaves, (first, restored, target)), strict=True
            ):
                np.testing.assert_array_equal(was, now)
                assert now.sharding.is_equivalent_to(wanted.sharding, now.ndim)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"shard": "optimizer"},
        {"model": 2, "data": 4},
        {"model": 2, "data": 4, "shard": "all"},
        {"model": 5, "data": 1},  # divides the classes alone
    ],
)
@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_every_layout_trains_alike(small_config, changes, clip):
    small_config.model.fc_units, small_config.optimizer.clip_norm = (64, 64), clip
    small_config.data.batch_size, small_config.model.bn_virtual_batch = 80, 8
    small_config.augment.mixup = 0.2
    _, whole, losses, _ = after(small_config)
    small_config.mesh.data = 8
    small_config.mesh.update(changes)
    if changes.get("data") == 1:
        small_config.model.bn_virtual_batch = 16
        small_config.mesh.model = 1
        _, whole, losses, _ = after(small_config)
        small_config.mesh.model = 5
    run, cut, found, _ = after(small_config)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    assert distance(whole.params, cut.params) < 1e-5
    assert run.evaluate(cut.weights())["loss"] == pytest.approx(
        run.evaluate(jax.device_put(whole.weights(), run.layout.weights))["loss"], rel=1e-5
    )


@pytest.mark.slow
def test_sigmoid_loss_and_microbatches_with_a_shared_head(small_config):
    """The head's devices see each other's examples; the trunk's virtual batches stay apart."""
    config = small_config
    config.model.fc_units, config.loss.name = (64, 64), "sigmoid"
    config.model.bn_virtual_batch, config.optimizer.microbatch = 4, 4
    config.model.dropout, config.mesh.data = 0.0, 8
    _, whole, losses, _ = after(config)
    config.mesh.data, config.mesh.model = 4, 2
    _, cut, found, _ = after(config)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    assert distance(whole.params, cut.params) < 1e-5


def test_a_shared_head_gathers_no_weights(small_config):
    """Of the wide layers only activations travel."""
    small_config.model.fc_units, small_config.model.middle_blocks = (512, 512), 0
    small_config.mesh.data, small_config.mesh.model = 4, 2
    run = train.build_run(small_config)
    mesh, data = run.layout.mesh, DataSpec(10)
    text = (
        planned.lower("evaluate", small_config, mesh, data)
        .compile({"xla_backend_optimization_level": 0})
        .as_text()
    )
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    sizes = [math.prod(int(n) for n in shape.split(",") if n) for shape in gathered]
    assert max(sizes) <= 16 * 208, "the features of the examples of two devices"


def test_an_axis_that_cuts_nothing_is_refused(small_config):
    small_config.mesh.data, small_config.mesh.model = 2, 4
    with pytest.raises(UsageError, match=r"config\.mesh\.model is 4, but no layer of the"):
        train.build_run(small_config)
