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
            {"weight_decay": 0.3, "epsilon": 1e-6, "decay_all": True},
            optax.lamb(RATE, weight_decay=0.3),
        ),
    ],
)
def test_equals_optax_own(name, kwargs, reference):
    assert_close(run(make_optimizer(name, RATE, **kwargs)), run(reference))


def lamb_by_hand(params, decay, rate=0.1, beta1=0.9, beta2=0.999, epsilon=1e-6):
    """arXiv:1904.00962, algorithm 2, with a trust ratio for kernels alone."""
    params = dict(jax.tree_util.tree_leaves_with_path(params))
    tree = jax.tree.structure(PARAMS)
    first = dict.fromkeys(params, 0.0)
    second = dict(first)
    for step, loss in enumerate(LOSSES, start=1):
        grads = jax.grad(loss)(jax.tree.unflatten(tree, list(params.values())))
        for path, grad in jax.tree_util.tree_leaves_with_path(grads):
            first[path] = beta1 * first[path] + (1 - beta1) * np.asarray(grad)
            second[path] = beta2 * second[path] + (1 - beta2) * np.asarray(grad) ** 2
            mean, square = first[path] / (1 - beta1**step), second[path] / (1 - beta2**step)
            move = mean / (np.sqrt(square) + epsilon)
            if path[-1].key == "kernel":
                move = move + decay * params[path]
                move = move * np.linalg.norm(params[path]) / np.linalg.norm(move)
            params[path] = params[path] - rate * move
    return jax.tree.unflatten(tree, list(params.values()))


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lambs_trust_ratio_is_that_of_kernels(decay):
    """Optax' own scales biases and batch norm too: the head's bias would move by 0.02, not 0.1."""
    rate = optax.constant_schedule(0.1)
    ours = run(make_optimizer("lamb", rate, weight_decay=decay, epsilon=1e-6))
    assert_close(ours, lamb_by_hand(PARAMS, decay), rtol=1e-4, atol=1e-5)
    once = run(make_optimizer("lamb", rate, weight_decay=decay), LOSSES[:1])
    moved = abs(once["head"]["bias"] - PARAMS["head"]["bias"])
    np.testing.assert_allclose(moved, 0.1, rtol=1e-3)


@pytest.mark.parametrize("initial", [0.0, 1.0])
def test_rmsprop_is_tensorflows(initial):
    """tf.compat.v1.train.RMSPropOptimizer by hand: epsilon inside the root, momentum of steps."""
    rate, decay, momentum, epsilon = 0.1, 0.9, 0.8, 1e-3
    ours = run(
        make_optimizer("rmsprop", optax.constant_schedule(rate), beta2=decay, momentum=momentum,
                       epsilon=epsilon, initial_squares=initial)
    )  # fmt: skip
    params = jax.tree.map(np.asarray, PARAMS)
    squares = jax.tree.map(lambda x: np.full_like(x, initial), params)
    moves = jax.tree.map(np.zeros_like, params)
    for loss in LOSSES:
        grads = jax.grad(loss)(jax.tree.map(jnp.asarray, params))
        squares = jax.tree.map(lambda s, g: decay * s + (1 - decay) * g**2, squares, grads)
        moves = jax.tree.map(
            lambda m, g, s: momentum * m + rate * g / np.sqrt(s + epsilon), moves, grads, squares
        )
        params = jax.tree.map(lambda p, m: p - m, params, moves)
    assert_close(ours, params)


def against_timm(make, params):
    """The parameters after the losses' gradients, by one of timm's optimizers.

    Args:
      make: of timm's optimizer, from groups of parameters: kernels, and the others.
    """
    torch = pytest.importorskip("torch")
    leaves = jax.tree_util.tree_leaves_with_path(params)
    theirs = [torch.nn.Parameter(torch.tensor(np.asarray(leaf))) for _, leaf in leaves]
    kernels = [path[-1].key == "kernel" for path, _ in leaves]
    optimizer = make(
        [p for p, kernel in zip(theirs, kernels, strict=True) if kernel],
        [p for p, kernel in zip(theirs, kernels, strict=True) if not kernel],
    )
    tree = jax.tree.structure(params)
    for loss in LOSSES:
        here = jax.tree.unflatten(tree, [jnp.asarray(p.detach().numpy()) for p in theirs])
        for p, grad in zip(theirs, jax.tree.leaves(jax.grad(loss)(here)), strict=True):
            p.grad = torch.tensor(np.asarray(grad))
        optimizer.step()
    return jax.tree.unflatten(tree, [p.detach().numpy() for p in theirs])


def timm_optim():
    pytest.importorskip("torch")
    from benchmarks.peers import torchvision_operators

    torchvision_operators.declare()
    return pytest.importorskip("timm.optim")


@pytest.mark.slow
def test_lamb_is_timms():
    optim = timm_optim()
    theirs = against_timm(
        lambda kernels, others: optim.Lamb(
            [{"params": kernels, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}],
            lr=0.1, eps=1e-6, max_grad_norm=None,
        ),
        PARAMS,
    )  # fmt: skip
    rate = optax.constant_schedule(0.1)
    assert_close(run(make_optimizer("lamb", rate, weight_decay=0.3, epsilon=1e-6)), theirs,
                 rtol=1e-4, atol=1e-5)  # fmt: skip


@pytest.mark.slow
def test_rmsprop_is_timms_rmsprop_tf():
    optim = timm_optim()
    theirs = against_timm(
        lambda kernels, others: optim.RMSpropTF(
            [*kernels, *others], lr=0.1, alpha=0.9, eps=1e-3, momentum=0.8
        ),
        PARAMS,
    )
    ours = make_optimizer("rmsprop", optax.constant_schedule(0.1), beta2=0.9, momentum=0.8,
                          epsilon=1e-3, initial_squares=1.0)  # fmt: skip
    assert_close(run(ours), theirs, rtol=1e-4)


def test_lambs_state_is_what_it_was():
    """A run from before the mask goes on: Optax' chain of then has the same state."""
    before = optax.chain(optax.scale_by_adam(), optax.scale_by_trust_ratio(),
                         optax.scale_by_learning_rate(RATE))  # fmt: skip
    now = make_optimizer("lamb", RATE)
    assert jax.tree.structure(before.init(PARAMS)) == jax.tree.structure(now.init(PARAMS))


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
    _, schedule = from_config(small_config, 1000)
    assert float(schedule(0)) == pytest.approx(rate)


def test_decays_are_at_exact_multiples_of_a_period_that_is_no_whole_number_of_steps(small_config):
    """ImageNet's two epochs are 2,502.28 steps of 1024: the 45th decay is at step 112,603."""
    examples, small_config.data.batch_size = 1_281_167, 1024
    small_config.optimizer.update(
        learning_rate=1.0, reference_batch=0, decay_rate=0.94, decay_every="2 epochs"
    )
    small_config.duration = "120 epochs"
    schedule = jax.jit(from_config(small_config, examples)[1])
    for decays in (1, 2, 45, 59):
        step = -(-decays * 2 * examples // 1024)
        for at, expected in ((step - 1, decays - 1), (step, decays)):
            assert float(schedule(at)) == pytest.approx(0.94**expected, rel=1e-5), (decays, at)
    assert -(-45 * 2 * examples // 1024) == 112_603


def test_decays_of_whole_steps_are_optax_own():
    """So a run that has begun goes on with the same rates."""
    ours = make_schedule(
        "staircase", learning_rate=0.045, total_steps=1000, decay_rate=0.94, decay_steps=7
    )
    optaxs = optax.exponential_decay(0.045, 7, 0.94, staircase=True)
    steps = jnp.arange(1000)
    np.testing.assert_array_equal(jax.jit(ours)(steps), jax.jit(optaxs)(steps))
