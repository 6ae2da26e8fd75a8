"""Early stopping: by the best evaluation, with the same decision in a run that continues."""

import json

import pytest

from tests.processes import digests
from xception_jax import train
from xception_jax.training import patience
from xception_jax.training.checkpoint.checkpoints import Checkpoints
from xception_jax.training.hooks import Hook


@pytest.mark.parametrize(
    ("limit", "best", "step", "over"),
    [
        (0, 3, 900, False),
        (2, 6, 9, False),  # one evaluation since: that of step 9
        (2, 6, 11, False),
        (2, 6, 12, True),
        (1, 6, 6, False),
        (1, None, 3, True),  # none could be rated
        (1, None, 2, False),
    ],
)
def test_evaluations_since_the_best_one_are_counted(limit, best, step, over):
    assert patience.is_over(limit, lambda step: step % 3 == 0, best, step) is over


class Kill(Hook):
    """Ends a run before a step, as a kill would: nothing is saved then."""

    def __init__(self, at):
        self.at = at

    def before_step(self, step):
        if step == self.at:
            raise KeyboardInterrupt


def losing(config):
    """A run that gets worse with each step: its rate is far too high."""
    config.duration, config.eval.every, config.checkpoint.every = "12 steps", "1 step", "1 step"
    config.optimizer.learning_rate, config.ema.decay = 3.0, 0.0
    config.checkpoint.keep, config.eval.patience = 2, 3
    config.eval.best = "loss"
    return config


def test_a_run_ends_after_evaluations_without_a_better_one(small_config, tmp_path, capsys):
    config = losing(small_config)
    result = train.train(config, tmp_path / "run")
    said = capsys.readouterr().out
    with Checkpoints(tmp_path / "run", best=None, read_only=True) as checkpoints:
        steps = checkpoints.steps()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [one["loss"] for one in map(json.loads, lines) if one["kind"] == "eval"]
    best = min(range(len(losses)), key=losses.__getitem__) + 1
    assert result.finished
    assert (result.step, result.total_steps) == (best + 3, 12)
    assert best in steps, "the best one is kept"
    assert f"stopped early, after {best + 3} of 12 steps, by config.eval.patience: " in said
    assert f"no evaluation since step {best} was better" in said

    again = train.train(config, tmp_path / "run")
    assert (again.step, again.finished) == (best + 3, True), "nothing is left to do"

    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path / "killed", hooks=[Kill(best + 2)])
    resumed = train.train(config, tmp_path / "killed")
    assert resumed == type(resumed)(**{**vars(result), "workdir": tmp_path / "killed"})
    assert digests(tmp_path / "killed", result.step) == digests(tmp_path / "run", result.step)

    config.eval.patience = 0
    longer = train.train(config, tmp_path / "run", allow_config_changes=True)
    assert longer.step == 12
