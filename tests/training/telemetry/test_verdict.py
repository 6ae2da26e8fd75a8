"""What a run says at its end of what its figures show."""

import json

import pytest

from xception_jax.training.results import TrainResult
from xception_jax.training.telemetry import verdict


def train(step, **shares):
    return {"kind": "train", "step": step, "loss": 0.1, **shares}


def test(step, loss, **shares):
    return {"kind": "eval", "step": step, "loss": loss, **shares}


test.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("training", "tested", "said"),
    [
        ({"top1": 0.976}, {"top1": 0.56}, "97.6% correct in training and 56.0% in the test"),
        ({"map": 0.9}, {"map": 0.5}, "90.0% correct in training and 50.0% in the test"),
        ({"top1": 0.9}, {"top1": 0.8}, None),
        ({"top1": 0.5}, {"top1": 0.9}, None),  # augmentation and dropout make training hard
        ({"map": 0.9}, {"top1": 0.5}, None),
    ],
)
def test_training_and_test_that_part_are_told(training, tested, said):
    lines = verdict.of([train(8, **training), test(8, 1.0, **tested), {"kind": "time", "step": 8}])
    assert len(lines) == bool(said)
    assert all(said in line and "overfits" in line for line in lines)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([0.9, 0.6, 0.7, 0.95], "from 0.6000 at step 2 to 0.9500 at step 4"),
        ([0.9, 0.6, 0.65], None),
        ([0.05, 0.01, 0.03], None),
        ([0.9, 0.6, 0.5], None),
        ([0.9], None),
        ([], None),
    ],
)
def test_a_test_loss_that_rises_is_told(losses, said):
    records = [test(step, loss, top1=0.9) for step, loss in enumerate(losses, 1)]
    lines = verdict.of(records)
    assert len(lines) == bool(said)
    assert all(said in line for line in lines)


def test_the_last_line_names_the_best_checkpoint_where_it_is_another_one(tmp_path):
    folder = tmp_path / "a run"
    folder.mkdir()
    result = TrainResult(folder, 12, 12, True, {})
    [same] = verdict.lines(result, 12)
    assert same.startswith(f"done: {folder}/checkpoints/12, the best\n")
    assert same.endswith(f"evaluate --workdir='{folder}'")
    figures = (train(12, top1=0.9), test(12, 1.0, top1=0.5))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in figures))
    note, other = verdict.lines(result, 6)
    assert "overfits" in note
    assert f"{folder}/checkpoints/12; the best is 6, --step=best\n" in other
    assert other.endswith(f"evaluate --workdir='{folder}' --step=best")
    _, none = verdict.lines(result, None, "odd")
    assert none.startswith(f"done: {folder}/checkpoints/12; no checkpoint has a finite odd\n")
