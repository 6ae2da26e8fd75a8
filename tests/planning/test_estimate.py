"""Times and bytes of a step, against the same by hand."""

import pytest

from tests.planning.tpu.test_hlo import HLO, LARGE
from xception_jax.planning import estimate
from xception_jax.planning.tpu import chips

FIGURES = {
    "memory": {"arguments": 8, "outputs": 6, "aliased": 5, "temporary": 100, "program": 1},
    "flops": 2e12,
    "bytes_accessed": 5e9,
    "compile_s": 1.0,
}


def test_a_step_takes_for_each_operation_the_larger_of_schedule_and_bytes():
    topology = chips.parse("v5e:2x2")
    # The first product is bound by its schedule, the second, equal one is not written down; the
    # copy of 4 rounds is bound by its bytes.
    cycles = {"fusion.1": 9_000_000, "copy.7": 10}
    step = estimate.of_tpu(FIGURES, HLO, cycles, topology)
    copies = 4 * (4096 + 16 * 4096)
    assert step.bytes == 2 * 2 * LARGE + copies + 4  # of the all-reduce
    memory_s = (copies + 4) / 819e9
    links_s = 4 / (2 * 50e9)
    assert step.seconds == pytest.approx(2 * 9e6 / 1.5e9 + memory_s + links_s)
    assert step.collective_seconds == pytest.approx(links_s)
    assert step.best_seconds == step.seconds, "no asynchronous copies"
    assert step.estimate.startswith("schedule")
    assert step.unscheduled == 0
    assert step.memory.total == 8 + 6 - 5 + 100 + 1


@pytest.mark.parametrize(
    ("flops", "count", "seconds"),
    [(197e12, 1e9, 1.0), (1e12, 819e9 * 2, 2.0)],
)
def test_without_schedules_it_is_the_roofline(flops, count, seconds):
    figures = {**FIGURES, "flops": flops, "bytes_accessed": count}
    step = estimate.of_tpu(figures, HLO, {}, chips.parse("v5e:1x1"))
    assert step.seconds == pytest.approx(seconds)
    assert step.estimate.startswith("roofline")
    assert step.collective_seconds == 0, "one chip has no links"


def test_devices_of_unknown_rates_have_no_time():
    step = estimate.of_devices(FIGURES, HLO, None)
    assert (step.seconds, step.bytes, step.flops) == (None, 5e9, 2e12)
    [collective] = step.collectives
    assert (collective.kind, collective.count, collective.inside) == ("all-reduce", 1, 0)
