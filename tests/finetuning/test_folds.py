"""Cross-validation: out-of-fold predictions, and folds of the same settings, data and weights."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.finetuning.pictures import CHANGES, CLASSES, said_by
from xception_jax.data import splits
from xception_jax.data.readers import folder, folder_layout
from xception_jax.errors import UsageError
from xception_jax.finetune import cross_validate
from xception_jax.finetuning import decisions, gathering
from xception_jax.predict import Classifier
from xception_jax.training.workdir import read_config


@pytest.fixture(scope="module")
def validated(tmp_path_factory, data, weights):
    run = tmp_path_factory.mktemp("validated") / "run"
    changes = CHANGES | {"data.in_memory": 0}  # features are in files
    options = {"folds": 3, "weights": weights, "workdir": run, "changes": changes}
    return said_by(cross_validate, data, **options), options


def test_every_image_is_predicted_by_a_model_that_has_not_seen_it(validated, data):
    (found, said), _ = validated
    assert found.finished
    with found.predictions.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["file"] for row in rows}) == 72
    for fold in range(3):
        run = found.workdir / f"fold{fold}"
        config = read_config(run)
        seen = splits.open_training(config)
        selecting = set((run / "eval_files.txt").read_text().splitlines())
        trained = {seen.name_of(i) for i in range(len(seen))}
        own = [row for row in rows if row["fold"] == str(fold)]
        assert not trained & {f"{data}/{row['file']}" for row in own}
        assert not selecting & {row["file"] for row in own}
        assert len(trained) + len(selecting) + len(own) == 72
        answers = Classifier(run, step="best").predict([data / row["file"] for row in own])
        for row, answer in zip(own, answers, strict=True):
            assert row["label"] == row["file"].split("/")[1]
            assert row["predicted"] == answer.top(1)[0][0]
            told = [float(row[f"probability {name}"]) for name in sorted(CLASSES)]
            np.testing.assert_allclose(told, answer.probabilities, atol=1e-6)
        correct = sum(row["label"] == row["predicted"] for row in own)
        assert found.folds[fold]["top1"] == pytest.approx(correct / len(own))
        assert found.folds[fold]["examples"] == len(own)
    shares = [fold["top1"] for fold in found.folds]
    assert found.mean["top1"] == pytest.approx(np.mean(shares))
    assert found.spread["top1"] == pytest.approx(np.std(shares, ddof=1))
    assert f"top-1 {found.mean['top1']:.2%} ± {found.spread['top1']:.2%}" in said
    assert re.search(r"MiB in .*/fold2/features/train.bin", said)
    assert not list(found.workdir.glob("fold*/features")), "they could fill the disk"
    json.dumps(found.to_json(), allow_nan=False)


def test_a_cross_validation_continues_with_the_fold_that_is_not_finished(validated, data, tmp_path):
    """And what a fold keeps is found again if it is damaged."""
    (found, _), options = validated
    copy = tmp_path / "run"
    shutil.copytree(found.workdir, copy)
    shutil.rmtree(copy / "fold1")
    kept = copy / "fold2" / "fold.json"
    kept.write_text(kept.read_text().replace('"top1": ', '"top1": 1'))
    predictions = copy / "out_of_fold.csv"
    predictions.unlink()
    again, said = said_by(cross_validate, data, **{**options, "workdir": copy})
    assert said.count("compiling the training step") == 1, "of one fold"
    assert again.folds == found.folds
    assert again.predictions == predictions
    assert predictions.read_text() == found.predictions.read_text()
    (copy / "fold0" / "out_of_fold.csv").unlink()
    said_by(cross_validate, data, **{**options, "workdir": copy})
    assert predictions.read_text() == found.predictions.read_text()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"data.split_seed": 1}, {"optimizer.learning_rate": 0.5}]
)
def test_folds_of_different_settings_are_refused(validated, data, tmp_path, changes, finished):
    """Also if the fold that would be trained next has no checkpoint yet."""
    (found, _), options = validated
    copy = tmp_path / "run"
    shutil.copytree(found.workdir, copy)
    if not finished:
        shutil.rmtree(copy / "fold2")
    before = {path: path.read_bytes() for path in sorted(copy.rglob("*")) if path.is_file()}
    [name] = changes
    with pytest.raises(UsageError, match=rf"another config: {re.escape(name)} was .*, is .*; leav"):
        cross_validate(data, **{**options, "workdir": copy, "changes": {**CHANGES, **changes}})
    after = {path: path.read_bytes() for path in sorted(copy.rglob("*")) if path.is_file()}
    assert after == before


def test_folds_that_a_change_selects_otherwise_are_all_selected_so(validated, data, tmp_path):
    """`eval.best` may change in a run that has begun: then it does in the finished folds, too."""
    (found, _), options = validated
    copy = tmp_path / "run"
    shutil.copytree(found.workdir, copy)
    options = options | {"workdir": copy, "changes": {**CHANGES, "eval.best": "loss:max"}}
    again, said = said_by(cross_validate, data, **options)
    assert "compiling the training step" not in said
    assert {read_config(copy / f"fold{i}").eval.best for i in range(3)} == {"loss:max"}
    assert decisions.read(copy).fields["eval.best"] == "loss:max"
    again_by_itself, _ = said_by(cross_validate, data, **{**options, "changes": {}})
    assert again_by_itself.folds == again.folds


@pytest.fixture
def more(data):
    """One picture more; a process lists a folder once."""
    path = data / "train" / "one" / "more.png"
    shutil.copy(next((data / "train" / "two").iterdir()), path)
    cached = (folder._read_split, folder_layout.find_layout, folder_layout._list_classes)
    for each in cached:
        each.cache_clear()
    yield path
    path.unlink()
    for each in cached:
        each.cache_clear()


def test_folds_of_other_data_are_refused(validated, data, more, tmp_path):
    (found, _), options = validated
    copy = tmp_path / "run"
    shutil.copytree(found.workdir, copy)
    shutil.rmtree(copy / "fold2")
    with pytest.raises(UsageError, match=r"the run began on .* examples of .*, but now there are"):
        cross_validate(data, **{**options, "workdir": copy})
    assert not (copy / "fold2").exists()


def test_folds_start_from_the_same_weights(validated, data):
    """Of a run, or of a repository of the Hub, which can go on in the meantime."""
    run = validated[0][0].workdir / "fold0"
    made = decisions.decide(f"folder:{data}", str(run), 3, CHANGES)
    assert made.weights == str(run)
    assert made.config(2).init_from == f"{run}/checkpoints/6"
    assert gathering.pinned(f"{run}/checkpoints/6") == f"{run}/checkpoints/6"


def test_folds_do_not_start_from_a_file_that_was_replaced(validated, data, weights, tmp_path):
    (found, _), options = validated
    copy, own = tmp_path / "run", tmp_path / "own.safetensors"
    shutil.copytree(found.workdir, copy)
    shutil.rmtree(copy / "fold2")
    stored = decisions.read(copy)
    decisions.write(copy, replace(stored, weights=str(own)))
    options = options | {"weights": own, "workdir": copy}
    own.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(UsageError, match=r"own.safetensors has changed since this cross-validatio"):
        cross_validate(data, **options)
    assert not (copy / "fold2").exists()
