"""Optimizers against Optax' own, weight decay against its definition, schedules by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xception_jax.training.optimizer import decayed, from_config, make_optimizer, make_schedule

PARAMS = {
    "conv": {"kernel": jnp.asarray([[0.5, -1.0], [2.0, 0.1]])},
    "bn": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
    "head": {"kernel": jnp.asarray([[1.0], [3.0]]), "bias": jnp.asarray([0.2])},
}
LOSSES = [lambda p, s=s: sum(jnp.sum(jnp.sin(x + s) ** 2) for x in jax.tree.leaves(p))
          for s in range(4)]  # fmt: skip


def run(optimizer, losses=LOSSES):
    params, state = PARAMS, optimizer.init(PARAMS)
    for loss in losses:
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(a, b, **kwargs):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **{"rtol": 1e-5, **kwargs}), a, b)


RATE = make_schedule("staircase", learning_rate=0.1, total_steps=4, decay_rate=0.5, decay_steps=2)


@pytest.mark.parametrize(
    ("name", "kwargs", "reference"),
    [
        ("sgd", {}, optax.sgd(RATE, 0.9)),
        ("sgd", {"nesterov": True, "momentum": 0.8}, optax.sgd(RATE, 0.8, nesterov=True)),
        ("rmsprop", {"beta2": 0.9, "epsilon": 1.0}, optax.rmsprop(RATE, 0.9, 1.0, momentum=0.9)),
        (
            "adamw",
            {"weight_decay": 0.3},
            optax.adamw(RATE, weight_decay=0.3, mask=decayed),
        ),
        (
            "lamb",
            {"weight_decay": 0.3, "epsilon": 1e-6},
            optax.lamb(RATE, weight_decay=0.3, mask=decayed),
        ),
    ],
)
def test_equals_optax_own(name, kwargs, reference):
    assert_close(run(make_optimizer(name, RATE, **kwargs)), run(reference))


def test_l2_is_a_term_of_the_loss_on_kernels_alone():
    def penalized(loss):
        def total(params):
            kernels = (params["conv"]["kernel"], params["head"]["kernel"])
            return loss(params) + 0.2 / 2 * sum(jnp.sum(k**2) for k in kernels)

        return total

    decayed_run = run(make_optimizer("sgd", RATE, weight_decay=0.2, decay_mode="l2"))
    plain = make_optimizer("sgd", RATE)
    assert_close(decayed_run, run(plain, [penalized(loss) for loss in LOSSES]))


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_decoupled_decay_is_a_step_of_its_own(name):
    """Without a gradient, n steps leave (1 - rate * decay)^n of a kernel: no momentum in it."""
    rate = optax.constant_schedule(0.1)
    optimizer = make_optimizer(name, rate, weight_decay=0.2, decay_mode="decoupled", momentum=0.9)
    after = run(optimizer, [lambda p: 0.0 * jnp.sum(p["head"]["bias"])] * 5)
    for layer in ("conv", "head"):
        expected = PARAMS[layer]["kernel"] * (1 - 0.1 * 0.2) ** 5
        np.testing.assert_allclose(after[layer]["kernel"], expected, rtol=1e-5)
    assert_close(after["bn"], PARAMS["bn"])


def test_auto_decay_is_the_optimizers_own_custom():
    for name, mode in (
        ("sgd", "l2"),
        ("rmsprop", "l2"),
        ("adamw", "decoupled"),
        ("lamb", "decoupled"),
    ):
        auto, named = (
            run(make_optimizer(name, RATE, weight_decay=0.2, decay_mode=m)) for m in ("auto", mode)
        )
        assert_close(auto, named, rtol=0)


def test_decay_all_reaches_batch_norm_and_biases():
    only = run(make_optimizer("sgd", RATE, weight_decay=0.2))
    everything = run(make_optimizer("sgd", RATE, weight_decay=0.2, decay_all=True))
    assert not np.allclose(only["bn"]["scale"], everything["bn"]["scale"])


def test_clipping_bounds_the_losss_gradient():
    clipped = make_optimizer("sgd", optax.constant_schedule(1.0), clip_norm=0.5, momentum=0.0)
    moved = jax.tree.map(jnp.subtract, run(clipped, LOSSES[:1]), PARAMS)
    np.testing.assert_allclose(optax.tree.norm(moved), 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", {0: 0.0, 5: 0.5, 10: 1.0, 60: 1.0, 110: 1.0}),
        ("cosine", {5: 0.5, 10: 1.0, 60: 0.5, 110: 0.0}),
        ("staircase", {5: 0.5, 10: 1.0, 29: 1.0, 30: 0.94, 49: 0.94, 50: 0.94**2}),
    ],
)
def test_schedules_after_a_warm_up_of_ten_steps(name, expected):
    schedule = make_schedule(
        name, learning_rate=1.0, total_steps=110, warmup_steps=10, decay_rate=0.94, decay_steps=20
    )
    found = {step: float(schedule(step)) for step in expected}
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("reference", "rate"), [(256, 0.025), (64, 0.1), (0, 0.1)])
def test_the_rate_scales_with_the_batch(small_config, reference, rate):
    small_config.optimizer.learning_rate = 0.1
    small_config.optimizer.reference_batch = reference
    _, schedule = from_config(small_config, lambda duration: int(duration.split()[0]))
    assert float(schedule(0)) == pytest.approx(rate)
