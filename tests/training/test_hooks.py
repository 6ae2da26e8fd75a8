"""A run with everything that hangs on its loop, added from outside of the package."""

import csv
import io
import json
import math
import os
import runpy
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xception_jax import evaluate, train
from xception_jax.errors import RunError, UsageError
from xception_jax.training import metrics, preflight, sharding, state
from xception_jax.training.checkpoint.checkpoints import Checkpoints
from xception_jax.training.hooks import Hook
from xception_jax.training.telemetry import records, writers
from xception_jax.training.telemetry.writers import LogWriter


class Calls(Hook):
    """Writes down how it is called."""

    def __init__(self):
        self.seen = []

    def before_step(self, step):
        self.seen.append(("before", step))

    def after_step(self, step, state, metrics):
        assert int(state.step) == step
        self.seen.append(("after", step, float(metrics["loss"])))

    def on_evaluation(self, step, results):
        self.seen.append(("evaluation", step, results))

    def at_end(self, step):
        self.seen.append(("end", step))


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def contributed():
    """What the files of a user add, as CONTRIBUTING.md shows them."""
    found: dict = {}
    for name in ("my_metric.py", "my_evaluator.py", "my_writer.py"):
        code = (ROOT / "tests" / "extensions" / name).read_text()
        assert len(code.splitlines()) < 30
        assert f"```python\n{code}```" in (ROOT / "CONTRIBUTING.md").read_text()
        found |= runpy.run_path(str(ROOT / "tests" / "extensions" / name))
    return found


def test_the_metric_of_contributing(contributed):
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    labels = np.array([0, 2, 1, 1, 0])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = [sum((p - (k == label)) ** 2 for k, p in enumerate(row))
                for row, label in zip(shares, labels, strict=True)]  # fmt: skip
    np.testing.assert_allclose(contributed["brier"](logits, {"label": labels}), expected, rtol=1e-5)


@metrics.register("wrong")
def wrong(logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    return jnp.argmax(logits, axis=-1) != batch["label"]


@writers.register("list")
class Listed(LogWriter):
    seen: list = []  # noqa: RUF012

    def __init__(self, info):
        self.seen.append(info.config["data.batch_size"])
        self.place = "a list"

    def write(self, kind, step, metrics):
        self.seen.append((kind, step, metrics))

    def close(self, failed):
        self.seen.append(failed)


@writers.register("broken")
class Broken(LogWriter):
    def write(self, kind, step, metrics):
        raise OSError("the server is gone")


def test_a_run_with_hooks_sets_metrics_and_writers_of_its_own(
    contributed, small_config, tmp_path, capsys
):
    config, calls, workdir = small_config, Calls(), tmp_path / "run"
    config.duration, config.eval.every, config.checkpoint.every = "6 steps", "3 steps", "2 steps"
    config.checkpoint.keep = 1
    config.eval.also = ("part=train[:100]",)
    config.eval.metrics, config.eval.best = ("part/wrong", "brier"), "part/loss:max"
    config.log.writers = ("list", "broken", "csv")
    result = train.train(config, workdir, hooks=[calls], console=Console(width=200))

    steps = [call[:2] for call in calls.seen]
    expected = [(when, step) for step in range(1, 7) for when in ("before", "after")]
    expected.insert(6, ("evaluation", 3))
    assert steps == [*expected, ("evaluation", 6), ("end", 6)]

    found = calls.seen[-2][2]
    assert (result.workdir, result.step, result.finished) == (workdir, 6, True)
    assert result.metrics == found
    own = {"loss", "top1", "brier", "examples", "skipped"}
    assert found.keys() == own | {f"part/{name}" for name in (*own, "wrong")}
    assert (found["examples"], found["part/examples"]) == (360, 100)
    assert found["part/wrong"] == pytest.approx(1 - found["part/top1"])
    again = evaluate.evaluate(workdir).metrics
    assert {name: again[name] for name in found} == pytest.approx(found)
    alone = evaluate.evaluate(workdir, split="train[:100]").metrics
    assert alone["loss"] == pytest.approx(found["part/loss"])
    assert "part/loss" not in alone

    figures = [record for record in records.read(workdir) if record["kind"] == "eval"]
    assert [record["part/top1"] for record in figures] == [
        results["part/top1"] for _, _, results in (calls.seen[6], calls.seen[-2])
    ]
    events = EventAccumulator(str(workdir)).Reload()
    assert [event.step for event in events.Scalars("eval/part/wrong")] == [3, 6]
    first, *listed, failed = Listed.seen
    assert (first, failed) == (64, False)
    assert [(kind, step) for kind, step, _ in listed] == [
        *(("train", step) for step in (1, 2, 3)), ("eval", 3),
        *(("train", step) for step in (4, 5, 6)), ("eval", 6), ("time", 6),
    ]  # fmt: skip

    with (workdir / "log.csv").open(newline="") as file:
        rows = [(kind, int(step), float(value)) for kind, step, key, value in csv.reader(file)
                if key == "part/brier"]  # fmt: skip
    assert rows == [("eval", r["step"], r["part/brier"]) for r in figures]

    said = capsys.readouterr().out
    assert "evaluation on part at step 6  top-1" in said
    assert f"wrong {found['part/wrong']:.4f}" in said
    assert said.count("the log writer broken failed: the server is gone; the run goes on") == 1
    assert said.count("log: list writes to a list") == 1
    higher = max((calls.seen[6], calls.seen[-2]), key=lambda call: call[2]["part/loss"])[1]
    with Checkpoints.from_config(config, workdir) as checkpoints:
        assert checkpoints.find("best") == higher
        assert checkpoints.steps() == sorted({higher, 6})
    assert f"the best by part/loss{'' if higher == 6 else ' is 3'}" in said


class Signal(Hook):
    """Has the process asked to stop after a step."""

    def after_step(self, step, state, metrics):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_what_the_last_evaluation_lacks_is_made_up_for(small_config, tmp_path):
    """A signal left it out, or the config of a finished run asks for more than before."""
    small_config.duration, small_config.eval.also = "2 steps", ("part=train[:100]",)
    small_config.eval.best = "part/top1"
    console = Console(quiet=True)
    stopped = train.train(small_config, tmp_path, hooks=[Signal()], console=console)
    assert (stopped.step, stopped.finished, stopped.metrics) == (2, False, {})

    def started_again():
        calls = Calls()
        again = train.train(
            small_config, tmp_path, hooks=[calls], console=console, allow_config_changes=True
        )
        assert again.finished
        with Checkpoints.from_config(small_config, tmp_path) as checkpoints:
            assert checkpoints.find("best") == 2
            assert checkpoints.metrics(2) == again.metrics
        return again.metrics, calls.seen

    found, seen = started_again()
    assert seen == [("evaluation", 2, found), ("end", 2)]
    assert found["part/examples"] == 100
    small_config.eval.also = ("part=train[:100]", "more=train[:50]")
    more, seen = started_again()
    assert seen == [("evaluation", 2, more), ("end", 2)]
    assert {name: more[name] for name in found} == found
    assert more["more/examples"] == 50
    small_config.eval.metrics = ("wrong",)
    small_config.eval.best = "more/wrong:min"
    wrong, _ = started_again()
    assert wrong["more/wrong"] == pytest.approx(1 - more["more/top1"])
    small_config.eval.also = ("part=train[:100]",)
    small_config.eval.best = "auto"
    assert started_again() == (wrong, [("end", 2)]), "nothing is lacking"


@metrics.register("undefined")
def undefined(logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    return jnp.log(-jnp.ones(len(logits)))


@metrics.register("unbounded")
def unbounded(logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    return jnp.full(len(logits), jnp.inf)


def strict(text: str) -> dict:
    """JSON as any reader takes it: without NaN and infinity."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_a_metric_that_is_not_finite_stops_nothing_and_is_never_the_best(small_config, tmp_path):
    small_config.duration = "2 steps"
    small_config.eval.metrics = ("undefined", "unbounded")
    small_config.eval.best = "unbounded"
    console = Console(file=io.StringIO(), width=200)
    done = train.train(small_config, tmp_path, console=console)
    assert done.finished
    assert math.isnan(done.metrics["undefined"])
    assert done.metrics["unbounded"] == math.inf
    lines = map(strict, (tmp_path / "metrics.jsonl").read_text().splitlines())
    [record] = [line for line in lines if line["kind"] == "eval"]
    assert (record["undefined"], record["unbounded"]) == (None, None)
    manifest = strict((tmp_path / "checkpoints/2/meta/metadata").read_text())
    assert (manifest["metrics"]["undefined"], manifest["metrics"]["unbounded"]) == (None, None)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert math.isnan(events.Scalars("eval/undefined")[0].value)
    said = console.file.getvalue()
    assert "unbounded inf  undefined nan" in said
    assert f"done: {tmp_path}/checkpoints/2; no checkpoint has a finite unbounded" in said
    with pytest.raises(UsageError, match="was evaluated by a finite unbounded"):
        evaluate.evaluate(tmp_path, step="best")
    found = evaluate.evaluate(tmp_path).to_json()
    assert (found["undefined"], found["unbounded"]) == (None, None)
    assert strict(json.dumps(found))["top1"] == done.metrics["top1"]
    calls = Calls()
    again = train.train(small_config, tmp_path, hooks=[calls], console=console)
    assert (again.finished, calls.seen) == (True, [("end", 2)])


@writers.register("at_the_end")
class AtTheEnd(LogWriter):
    screen, said = io.StringIO(), ""

    def write(self, kind, step, metrics):
        pass

    def close(self, failed):
        AtTheEnd.said = AtTheEnd.screen.getvalue()


class Fails(Hook):
    """Ends the run, after a checkpoint was begun."""

    def before_step(self, step):
        if step == 2:
            raise RunError("the first error")


def test_a_checkpoint_that_fails_after_another_error_is_told_before_the_log_closes(
    small_config, small_disk, tmp_path
):
    (tmp_path / "checkpoints").symlink_to(small_disk)
    small_config.duration, small_config.checkpoint.every = "4 steps", "1 step"
    small_config.log.writers = ("at_the_end",)
    console = Console(file=AtTheEnd.screen, width=400)
    with pytest.raises(RunError, match="the first error"):
        train.train(small_config, tmp_path, hooks=[Fails()], console=console)
    assert "also: a checkpoint could not be written: No space left on device" in AtTheEnd.said


def test_sets_are_evaluated_until_a_signal_comes(small_config):
    small_config.eval.also = ("part=train[:100]",)
    run = train.build_run(small_config)
    asked = []

    def stop_requested():
        asked.append(None)
        return len(asked) == 7  # 360 images are six batches of 64, of one device

    begun = state.initialize(run.init, 0, sharding.replicated(run.layout.mesh))
    assert run.evaluate(begun.weights(), None, stop_requested) is None
    assert len(asked) == 7


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eval.best": "top-1"}, "'top-1', which is not a metric of this run; did you mean 'top1'"),
        ({"eval.best": "part/top1"}, "There are: loss, top1"),
        ({"eval.best": "top5"}, "did you mean"),
        ({"eval.also": ("part=trian",)}, "trian"),
        (
            {"eval.metrics": ("wron",)},
            r"^config.eval.metrics: no metric 'wron'; did you mean 'wrong'\? There are: .*--",
        ),
        (
            {"log.writers": ("wandbb",)},
            r"^config.log.writers: no log writer 'wandbb'; did you mean 'wandb'\? There are: ",
        ),
        ({"log.writers": ("gone",)}, "'gone', which needs: pip install 'xception_jax.gone.'"),
    ],
)
def test_what_is_not_there_is_refused_before_the_run(small_config, changes, said):
    writers.register("gone", needs="no_such_package", install="xception_jax[gone]")(Listed)
    small_config.update_from_flattened_dict(changes)
    with pytest.raises(UsageError, match=said) as caught:
        preflight.validate(small_config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["top1", "examples", "step", "time", "split", "a/b"])
def test_a_metric_takes_no_name_that_means_something_else(name):
    with pytest.raises(ValueError, match="is already used, or has a slash"):
        metrics.register(name)(wrong)
