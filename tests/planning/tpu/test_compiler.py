"""What is held to be true of the TPU compiler, by the compiler itself; no TPU is needed."""

import re

import pytest

from xception_jax.planning import estimate, planner
from xception_jax.planning.estimate import Memory
from xception_jax.planning.tpu import chips, compiler
from xception_jax.planning.tpu.costs import Program
from xception_jax.training.build import DataSpec

pytest.importorskip("libtpu")
pytestmark = pytest.mark.slow


# What JAX calls a precision, and what XLA does.
JAX_NAMES = {"float32": "highest", "tensorfloat32": "high", "default": "default"}


def ask(topology, module="tests.planning.tpu.product", **request):
    told = {**topology.request, "schedules": False, **request}
    return compiler.compile_program(told, module=module)


@pytest.mark.parametrize("name", ["v4-8", "v5e-4", "v5p-8", "v6e-4", "tpu7x-8"])
def test_schedules_of_a_product_come_near_the_public_peak(name):
    """Also of chips whose two cores are one device: each does half, in half the time."""
    topology = chips.parse(name)
    answer = ask(topology, schedules=True)
    step = estimate.of_tpu(answer.figures, answer.hlo, answer.cycles, topology)
    product = 2 * 8192 * 4096 * 8192
    assert step.flops == pytest.approx(product, rel=0.01)
    assert 0.9 < product / topology.chip.peak_rate / step.seconds < 1.01


def test_float32_takes_as_many_passes_as_its_precision_says():
    """Each pass multiplies bfloat16 parts of the numbers; numbers of bfloat16 take one in any case.

    What is no product takes the same time, so the ratios are below three and six.
    """
    topology = chips.parse("v5e:1x1")

    def cycles(dtype, precision):
        more = {"module": "tests.planning.tpu.separable", "schedules": True}
        answer = ask(topology, dtype=dtype, precision=precision, **more)
        found = set(re.findall(r"operand_precision=\{(\w+),\w+\}", answer.hlo))
        assert found <= {JAX_NAMES[precision]}
        return sum(cost.cycles for cost in Program(answer.hlo, answer.cycles).costs())

    exact, three, one = (cycles("float32", name) for name in JAX_NAMES)
    assert one < three < exact
    assert exact > 2 * one
    assert cycles("bfloat16", "float32") == pytest.approx(cycles("bfloat16", "default"), rel=0.01)


@pytest.mark.parametrize("name", ["v4-8", "v5e:1x1", "v5p-8", "v6e:1x1", "tpu7x-2"])
def test_programs_are_refused_at_the_memory_that_a_chip_is_said_to_have(name):
    topology = chips.parse(name)
    has = topology.chip.usable_gib
    fits = ask(topology, gib=has - 0.02).figures
    assert has - 0.03 < Memory(**fits["memory"]).total / 2**30 < has
    refused = ask(topology, gib=has + 0.02).figures["refused"]
    assert refused["has"] / 2**30 == pytest.approx(has, abs=0.006)
    assert refused["needs"] > refused["has"]


@pytest.fixture
def answers(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.usefixtures("answers")
def test_the_memory_figure_agrees_with_the_verdict_on_both_sides(small_config):
    """Of the real step: the largest batch that fits, and the next, which is refused."""
    small_config.model.dtype = "bfloat16"
    small_config.model.bn_virtual_batch, small_config.mesh.data = 256, -1
    small_config.model.stem_stride, small_config.data.image_size = 2, 128
    topology = chips.parse("v5e:1x1")
    data = DataSpec(10, False, 100_000, 1000)
    fit = planner.fit(small_config, topology, data, remat=False, say=print)
    assert 0 < fit.batch < fit.refused == fit.batch + 256
    assert fit.bytes < fit.device_bytes < fit.refused_bytes
    # Close to the limit: one more batch does not fit.
    assert fit.bytes > 0.8 * fit.device_bytes


@pytest.mark.usefixtures("answers")
def test_from_four_chips_to_a_pod_a_chip_does_the_same(small_config):
    small_config.model.dtype, small_config.mesh.data = "bfloat16", -1
    small_config.model.bn_virtual_batch = 32
    data = DataSpec(10, False, 100_000, 1000)
    plans = []
    for name in ("v5e:2x2", "v5e:16x16"):
        topology = chips.parse(name)
        small_config.data.batch_size = 32 * topology.chips
        plans.append(planner.for_topology(small_config, topology, data, print))
    few, many = plans
    assert many.train.seconds == pytest.approx(few.train.seconds, rel=0.05)
    assert many.train.memory.total == pytest.approx(few.train.memory.total, rel=0.05)
    assert many.train.bytes == pytest.approx(few.train.bytes, rel=0.05)
    for plan in plans:
        assert plan.train.estimate.startswith("schedule")
        assert sum(c.count for c in plan.train.collectives) <= 3
        assert sum(c.inside for c in plan.train.collectives) == 0
