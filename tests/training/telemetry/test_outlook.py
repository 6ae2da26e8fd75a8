"""What is said before the first step; estimates against the definition, on this machine."""

import re

import jax
import jax.numpy as jnp

from xception_jax import models
from xception_jax.training.telemetry import outlook


def product(size):
    """A traced product of matrices of that size."""
    square = jax.ShapeDtypeStruct((size, size), jnp.float32)
    return jax.jit(jnp.matmul).trace(square, square)


def test_a_run_of_hours_on_cpu_is_told_with_its_work_and_what_to_lower(monkeypatch):
    monkeypatch.setattr(outlook, "multiply_adds_per_second", lambda: 50e9)
    note = outlook.on_cpu(product(5000), 10_000)  # 2.5 s each
    assert "about 7 hours on this CPU: 10,000 steps of 125.0 billion multiply-adds" in note
    for field in ("config.duration", "config.data.image_size", "config.model.width"):
        assert field in note
    assert outlook.on_cpu(product(5000), 2000) is None, "83 minutes"


def test_a_small_run_is_told_nothing_at_the_real_speed_of_this_machine():
    assert outlook.on_cpu(product(256), 1000) is None
    assert outlook.multiply_adds_per_second() > 1e8
    note = outlook.on_cpu(product(10_000), 10**9)
    assert re.search(r"about [\d]+ days on this CPU", note)


def test_the_time_to_compile_follows_the_layers():
    lines = [outlook.compilation(arrays) for arrays in (20, 156, 700)]
    assert all(line.startswith("compiling the training step: about ") for line in lines)
    assert ["4 seconds" in lines[0], "31 seconds" in lines[1], "2 minutes" in lines[2]] == [
        True
    ] * 3


def test_the_arrays_of_an_xception_are_those_of_the_measured_model():
    from flax import nnx

    model = nnx.eval_shape(lambda: models.create("xception", num_classes=1000, rngs=nnx.Rngs(0)))
    assert len(jax.tree.leaves(nnx.state(model, nnx.Param))) == outlook._XCEPTION_ARRAYS
