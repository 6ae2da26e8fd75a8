"""The search for a batch, and what a run adds up to; nothing is compiled."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xception_jax.config.fields import Duration
from xception_jax.errors import RunError, UsageError
from xception_jax.planning import planner, report
from xception_jax.planning.estimate import NONE, Collective, Memory, Step
from xception_jax.planning.tpu import chips, compiler
from xception_jax.training.build import DataSpec

STEP = Step(Memory(0, 0, 0, 0, 0), 1e12, 1e9, (), NONE, seconds=0.5)


@settings(max_examples=50, deadline=None)
@given(
    fixed=st.floats(0, 50), each=st.floats(0.5, 20), growth=st.floats(0, 0.2), has=st.floats(1, 99)
)
def test_the_search_ends_on_both_sides_of_the_limit(fixed, each, growth, has):
    def compiled(n: int) -> planner.Try:
        takes = fixed + each * n * (1 + growth * n)
        return planner.Try(takes <= has, takes)

    found = planner.search(compiled, has)
    best = max((n for n, tried in found.items() if tried.fits), default=0)
    assert best + 1 in found
    assert not compiled(best + 1).fits
    assert best == 0 or compiled(best).fits
    assert len(found) < 16


def test_memory_that_grows_in_a_line_takes_few_tries():
    found = planner.search(lambda n: planner.Try(n < 7, 300e6 + 2.6e9 * n), 16.9e9)
    assert len(found) <= 5, found
    assert {6, 7} <= set(found)


def plan_of(config, examples, eval_examples=100):
    data = DataSpec(10, False, examples, eval_examples)
    more = {"chips": 2, "devices": 2, "device_bytes": None, "peak_rate": 4e12, "memory_rate": None}
    return planner._plan(config, data, STEP, replace(STEP, seconds=0.1), "here", **more)


@pytest.mark.parametrize(
    ("duration", "every", "examples"),
    [("10 epochs", "1 epoch", 1000), ("12 steps", "5 steps", 999), ("7 epochs", "130 steps", 64),
     ("999 examples", "64 examples", 77)],
)  # fmt: skip
def test_a_run_evaluates_as_often_as_the_loop_does(small_config, duration, every, examples):
    small_config.duration, small_config.eval.every = duration, every
    batch = small_config.data.batch_size
    plan = plan_of(small_config, examples)
    length = Duration.parse(every).examples(batch_size=batch, epoch=examples)
    due = [n * batch // length > (n - 1) * batch // length for n in range(1, plan.steps + 1)]
    assert plan.evaluations == sum(due[:-1]) + 1
    assert plan.eval_steps == 2  # 100 examples in batches of 64
    assert plan.hours == pytest.approx((plan.steps * 0.5 + plan.evaluations * 2 * 0.1) / 3600)
    assert plan.images_per_second == batch / 0.5
    assert plan.matrix_share == 0.5
    assert plan.memory_share is None


def test_evaluations_of_unknown_size_are_left_out_and_that_is_said(small_config):
    plan = plan_of(small_config, 1000, eval_examples=None)
    assert plan.eval_steps is None
    assert plan.hours == pytest.approx(plan.steps * 0.5 / 3600)
    said = report.summary(plan, small_config)
    assert said[-1].startswith("the evaluations are left out of the hours: ")
    assert report.of_evaluations([report.row(plan)]) == said[-1:]
    assert len(report.summary(plan_of(small_config, 1000), small_config)) == len(said) - 1


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (1, "2.50 s, 0.0014 chip-hours"),
        (100, "1.69 minutes, 0.056 chip-hours"),
        (100_000, "27.78 hours, 55.56 chip-hours"),
    ],
)
def test_a_short_run_takes_no_nought_hours(steps, said, small_config):
    small_config.duration, small_config.eval.every = f"{steps} steps", "1000000 steps"
    small_config.data.batch_size = 50
    plan = plan_of(small_config, 1000)
    plan = replace(plan, train=replace(STEP, seconds=1.0), evaluate=replace(STEP, seconds=0.75))
    assert report.summary(plan, small_config)[-1].endswith(f": {said}")
    row = report.row(plan)
    assert row["hours"] == pytest.approx(plan.hours, rel=1e-3)
    assert row["chip_hours"] == pytest.approx(plan.hours * 2, rel=1e-3)
    assert float(report._cell("hours", row["hours"])) == pytest.approx(plan.hours, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"model.bn_virtual_batch": None}, ["the complete batch of 64, of which a device has 32; "
                                            "config.model.bn_virtual_batch=32 avoids this"]),
        ({"model.bn_virtual_batch": 64}, ["virtual batches of 64, of which a device has 32"]),
        ({"model.bn_virtual_batch": 32}, []),
        ({"mesh.model": 2}, ["the devices of config.mesh.model share the head's layers"]),
    ],
)  # fmt: skip
def test_it_says_why_there_are_collectives_between_layers(changes, reasons, small_config):
    small_config.update_from_flattened_dict(changes)
    plan = plan_of(small_config, 1000)
    assert not [line for line in report.summary(plan, small_config) if "between" in line]
    plan = replace(plan, train=replace(STEP, collectives=(Collective("all-reduce", 3, 9, 2),)))
    said = [line for line in report.summary(plan, small_config) if "between layers: " in line]
    assert len(said) == len(reasons)
    assert all(reason in line for reason, line in zip(reasons, said, strict=True))


def test_of_data_of_unknown_size_the_hours_are_not_known(small_config):
    plan = plan_of(small_config, None)
    assert (plan.steps, plan.hours) == (None, None)


@pytest.fixture
def child(monkeypatch):
    """Lets a test say what the compiler's process leaves behind; counts how often it is asked."""
    asked = []

    def make(answer, hlo="", returncode=0, stderr=""):
        def run(command, **kwargs):
            request = json.loads(command[-1])
            asked.append((request, kwargs["env"]["LIBTPU_INIT_ARGS"]))
            folder = Path(request["folder"])
            known = request["known"] and Path(request["known"]) / answer["key"] / "program.json"
            told = {"key": answer["key"], "is_known": True} if known and known.exists() else answer
            if "memory" in told:
                (folder / "program.hlo").write_text(hlo)
            (folder / "program.json").write_text(json.dumps(told))
            return subprocess.CompletedProcess(command, returncode, "", stderr)

        monkeypatch.setattr(compiler.subprocess, "run", run)
        return asked

    return make


def test_answers_are_kept_and_found_again(child, tmp_path):
    answer = {"key": "abc", "memory": {}, "flops": 1.0}
    asked = child(answer, hlo="HloModule")
    request = {"topology": "v5e:2x2", "options": {}, "flags": "", "schedules": True}
    first = compiler.compile_program(request, known=tmp_path / "known")
    again = compiler.compile_program(request, known=tmp_path / "known")
    assert first == again
    assert first.hlo == "HloModule"
    assert "dump_to" in asked[0][1]
    assert [path.name for path in (tmp_path / "known").iterdir()] == ["abc"]


def test_a_compiler_that_fails_is_one_line(child):
    child({"key": "abc"}, returncode=1, stderr="Traceback\nValueError: bad layout\nSee there.\n")
    request = {"topology": "v5e:2x2", "options": {}, "flags": "", "schedules": False}
    with pytest.raises(RunError, match="v5e:2x2 does not compile: ValueError: bad layout"):
        compiler.compile_program(request)
    child({"key": "abc"}, returncode=1, stderr="xception_jax.errors.UsageError: too small: 3\n")
    with pytest.raises(UsageError, match=r"^too small: 3$"):
        compiler.compile_program(request)
    child({"key": "abc"}, returncode=-9)
    with pytest.raises(RunError, match="ended by signal 9"):
        compiler.compile_program(request)


def test_a_program_that_is_refused_says_what_it_needs(child, small_config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    child({"key": "abc", "refused": {"needs": 20 * 2**30, "has": 15.75 * 2**30}})
    said = []
    with pytest.raises(planner.DoesNotFitError, match=r"needs 20.00 GiB, .* has 15.75"):
        planner.compile_step(
            "train", small_config, chips.parse("v5e:1x1"), DataSpec(10), said.append
        )
    assert "the training step of 64 images on v5e:1x1" in said[0]
