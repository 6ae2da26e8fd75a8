"""What a run writes, read back by those who read it: JSON lines and TensorBoard itself."""

import io
import json
import math

import jax.numpy as jnp
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.processes import train_metrics
from xception_jax.errors import RunError
from xception_jax.training.telemetry import goodput
from xception_jax.training.telemetry import log as telemetry
from xception_jax.training.telemetry.goodput import Goodput


def metrics(loss, grad_norm=1.0, learning_rate=0.1):
    names = {"loss": loss, "top1": 0.5, "top5": 0.75, "grad_norm": grad_norm,
             "learning_rate": learning_rate}  # fmt: skip
    return {name: jnp.float32(value) for name, value in names.items()}


def log_into(folder, *, start=0, total=100, carried=None):
    folder.mkdir(exist_ok=True)
    console = telemetry.Console(file=io.StringIO(), width=200)
    log = telemetry.Telemetry(
        folder,
        console,
        Goodput(),
        start=start,
        total=total,
        batch_size=10,
        epoch=100,
        carried=carried,
    )
    return log, console.file


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_is_the_mean_over_its_steps(tmp_path):
    log, screen = log_into(tmp_path)
    with log:
        for step, loss in enumerate((4.0, 2.0, 3.0, 1.0), start=1):
            log.step_dispatched(step, metrics(loss), log=step % 2 == 0)
        log.catch_up()
        log.on_evaluation(4, {"top1": 0.25, "top5": 1.0, "loss": 2.5, "examples": 36})
    train = [r for r in records(tmp_path) if r["kind"] == "train"]
    assert [(r["step"], r["loss"], r["top1"]) for r in train] == [(2, 3.0, 0.5), (4, 2.0, 0.5)]
    assert train[0]["images_per_second"] == pytest.approx(10 / train[0]["seconds_per_step"])
    assert train[1]["seconds_left"] == pytest.approx(96 * train[1]["seconds_per_step"])
    text = screen.getvalue()
    assert "step 1/100  loss 4.0000  after" in text, "the first step is told at once"
    assert "step 2/100  epoch 0.2  loss 3.0000  top-1 50.0%  top-5 75.0%" in text
    assert "evaluation at step 4  top-1 25.00%" in text


@pytest.mark.parametrize("stopped", range(1, 7))
def test_a_line_is_the_same_where_the_run_was_stopped_in_between(tmp_path, stopped):
    """To the last bit, by way of JSON; the sums are such that their order matters."""
    losses = [0.1, 1e6, 3e-7, 0.7, 1 / 3, 5e5, 0.2]

    def log_some(folder, first, last, carried):
        log, _ = log_into(folder, start=first, carried=json.loads(json.dumps(carried)))
        with log:
            for step in range(first + 1, last + 1):
                log.step_dispatched(step, metrics(losses[step - 1]), log=step in (3, 7))
            log.catch_up()
            return log.to_carry()

    assert log_some(tmp_path / "whole", 0, 7, None) is None, "a line was the last thing"
    carried = log_some(tmp_path / "parts", 0, stopped, None)
    assert (carried is None) == (stopped == 3)
    log_some(tmp_path / "parts", stopped, 7, carried)
    whole, parts = (train_metrics(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == {3, 7}
    assert parts == whole


def test_a_run_that_began_with_another_metric_goes_on_without_it(tmp_path):
    carried = {"steps": 1, "sums": {"loss": 3.0, "top1": 0.0, "top5": 1.0, "grad_norm": 1.0,
                                    "learning_rate": 0.1}}  # fmt: skip
    log, _ = log_into(tmp_path, start=1, carried=carried)
    with log:
        now = {name: value for name, value in metrics(1.0).items() if name != "top5"}
        log.step_dispatched(2, now, log=True)
        log.catch_up()
    [record] = records(tmp_path)
    assert (record["loss"], record["top1"]) == (2.0, 0.25)
    assert "top5" not in record


def test_the_learning_rate_of_a_line_is_that_of_its_last_step(tmp_path):
    log, screen = log_into(tmp_path)
    rates = (0.5, 0.25, 0.125, 0.0625, 0.03125)
    with log:
        for step, rate in enumerate(rates, start=1):
            log.step_dispatched(step, metrics(1.0, learning_rate=rate), log=step in (1, 5))
        log.catch_up()
    assert [r["learning_rate"] for r in records(tmp_path)] == [0.5, 0.03125]
    assert "lr 0.031" in screen.getvalue()


def test_tensorboard_reads_the_events(tmp_path):
    log, _ = log_into(tmp_path)
    with log:
        for step in (1, 2, 3, 4):
            log.step_dispatched(step, metrics(float(step)), log=step % 2 == 0)
        log.catch_up()
        log.on_evaluation(4, {"top1": 0.25, "top5": 1.0, "loss": 2.5, "examples": 36})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(2, 1.5), (4, 3.5)]
    assert [(e.step, e.value) for e in events.Scalars("eval/top1")] == [(4, 0.25)]


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path):
    log, _ = log_into(tmp_path)
    with log:
        for step in range(1, 7):
            log.step_dispatched(step, metrics(step), log=True)
        log.catch_up()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed while it wrote
    log, _ = log_into(tmp_path, start=4)
    with log:
        for step in (5, 6):
            log.step_dispatched(step, metrics(10 * step), log=True)
        log.catch_up()
    found = [(r["step"], r["loss"]) for r in records(tmp_path)]
    assert found == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 50.0), (6, 60.0)]
    losses = [
        (e.step, e.value) for e in EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    ]
    assert losses == found


@pytest.mark.parametrize(
    "bad", [{"loss": math.nan}, {"loss": math.inf}, {"loss": 1.0, "grad_norm": math.inf}]
)
def test_what_is_not_finite_stops_the_run_and_names_the_step(tmp_path, bad):
    log, _ = log_into(tmp_path)
    with log:
        log.step_dispatched(1, metrics(1.0), log=False)
        log.step_dispatched(2, metrics(**bad), log=False)
        with pytest.raises(RunError, match=r"of step 2 is (nan|inf)"):
            log.catch_up()


def test_an_evaluation_that_is_not_finite_is_not_logged(tmp_path):
    log, _ = log_into(tmp_path)
    with log, pytest.raises(RunError, match="evaluation at step 4 is nan"):
        log.on_evaluation(4, {"top1": 0.25, "top5": 1.0, "loss": math.nan, "examples": 36})
    assert records(tmp_path) == []


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599, "59:59"), (3725, "1:02:05"),
     (100 * 3600, "100:00:00")],
)  # fmt: skip
def test_time_is_told_as_a_clock_does(seconds, shown):
    assert telemetry._clock(seconds) == shown


def test_the_host_is_never_more_than_two_steps_ahead(tmp_path):
    log, screen = log_into(tmp_path)
    with log:
        log.step_dispatched(1, metrics(1.0), log=True)
        log.step_dispatched(2, metrics(1.0), log=True)
        assert "step 1/" not in screen.getvalue()
        log.step_dispatched(3, metrics(1.0), log=True)
        assert "step 1/" in screen.getvalue()
        assert "step 2/" not in screen.getvalue()


def test_a_terminal_gets_a_bar(tmp_path):
    console = telemetry.Console(file=io.StringIO(), force_terminal=True, width=120)
    with telemetry.Telemetry(
        tmp_path, console, Goodput(), start=0, total=3, batch_size=1, epoch=3, writers=()
    ) as log:
        for step in (1, 2, 3):
            log.step_dispatched(step, metrics(1.0), log=False)
        log.catch_up()
    assert "step 3/3" in console.file.getvalue()
    assert not list(tmp_path.glob("events*"))


def test_processes_but_the_first_write_nothing_and_check_all_the_same(tmp_path):
    screen = io.StringIO()
    with telemetry.Telemetry(
        tmp_path, telemetry.Console(file=screen), Goodput(),
        start=0, total=3, batch_size=1, epoch=3, silent=True,
    ) as log:  # fmt: skip
        log.step_dispatched(1, metrics(1.0), log=True)
        log.say("something")
        log.tell_goodput(1)
        log.step_dispatched(2, metrics(math.nan), log=True)
        with pytest.raises(RunError, match="step 2 is nan"):
            log.catch_up()
    assert screen.getvalue() == ""
    assert not list(tmp_path.iterdir())


def test_the_speed_is_that_of_the_steps_since_the_last_line_without_pauses(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: now[0])
    log, screen = log_into(tmp_path)
    with log:
        now[0] += 30  # the first step's compilation
        for step in range(1, 8):
            log.step_dispatched(step, metrics(1.0), log=step in (1, 4, 7))
            log.catch_up()
            with log.pause("evaluation"):
                now[0] += 50
            now[0] += 2 if step < 4 else 4
    first, second, third = records(tmp_path)
    assert "seconds_per_step" not in first
    for record, seconds in ((second, 2.0), (third, 4.0)):
        assert record["seconds_per_step"] == seconds
        assert record["images_per_second"] == 10 / seconds
        assert record["seconds_left"] == (100 - record["step"]) * seconds
    assert "after 30.0 s, compilation included" in screen.getvalue()
    assert "lr 0.1  2 images/s  4 s/step  6:12 left" in screen.getvalue()


def test_time_is_accounted_for(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])
    log, screen = log_into(tmp_path)
    with log:
        for seconds, cause in ((1, "compilation"), (2, "evaluation")):
            with log.pause(cause):
                now[0] += seconds
        now[0] += 5
        with log.goodput.spending("evaluation"):
            now[0] += 2
        log.tell_goodput(7)
    [record] = records(tmp_path)
    assert record.pop("time") > 0
    assert record == {
        "kind": "time", "step": 7, "steps": 0.5, "compilation": 0.1, "evaluation": 0.4,
        "seconds": 10.0,
    }  # fmt: skip
    assert "time since the start: 0:10  steps 50.0%  compilation 10.0%" in screen.getvalue()
