"""Fine-tuning in one command: what is read when, what is kept, and what is refused."""

import csv
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_datasets
from tests.finetuning.pictures import (
    CHANGES,
    CLASSES,
    said_by,
    write_images,
)
from tests.processes import digests, finish, result, signal_at
from xception_jax import evaluate
from xception_jax.data import splits
from xception_jax.errors import RunError, UsageError
from xception_jax.finetune import cross_validate, finetune
from xception_jax.finetuning import decisions, gathering, results
from xception_jax.training.workdir import read_config


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, data, weights):
    """A run, with its result and what it said."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    return said_by(finetune, data, weights=weights, workdir=run, changes=CHANGES)


def test_one_call_chooses_trains_and_measures(tuned, data, weights):
    found, said = tuned
    assert found.finished
    assert (found.split, found.tested) == ("test", True)
    assert found.metrics["examples"] == 30
    assert [one.name for one in found.classes] == sorted(CLASSES)
    assert [one.images for one in found.classes] == [10, 10, 10]
    correct = sum(one.right for one in found.classes)
    assert found.metrics["top1"] == pytest.approx(correct / 30)
    lines = said.splitlines()
    begin = lines.index(f"fine-tuning in {found.workdir}, each can be set, as "
                        f"--config.data.image_size=128:")  # fmt: skip
    chosen = [line for line in lines[begin + 1 : begin + 12] if line.startswith("  ")]
    assert chosen[0] == (
        "  data: 66 training pictures of 3 classes; 6 held out of training select the checkpoint; "
        "the 30 of 'test' are read once, at the end"
    )
    assert f"  weights {weights}: xception; data.eval_preset=area" in chosen[1]
    assert any(
        line.startswith("  model.freeze=block4: trains the blocks after block4") for line in chosen
    )
    assert not any("batch_size" in line for line in chosen), "that was given"
    assert "result on test: top-1 " in said
    assert said.endswith(
        f"ask it: python -m xception_jax.predict --workdir={found.workdir} --step=best PICTURE...\n"
    )
    again = evaluate.evaluate(found.workdir, step="best", split="test", say=str)
    assert again.metrics == found.metrics
    assert again.step == found.step
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (told["top1"], told["split"]) == (found.metrics["top1"], "test")
    assert told["classes"][0] == vars(found.classes[0])
    assert found.classes[0] == again_by_class(found.workdir)[0]


def again_by_class(run: Path):
    """What `evaluate --report` says of each class of the test set."""
    rated = evaluate.evaluate(run, step="best", split="test", per_class=True, say=str)
    return rated.classes.classes()


def test_nothing_of_the_test_set_trains_or_selects(tuned, data):
    config = read_config(tuned[0].workdir)
    assert (config.data.train_split, config.data.eval_split) == ("train", "held_out")
    selecting = (tuned[0].workdir / "eval_files.txt").read_text().splitlines()
    assert len(selecting) == 6
    train = splits.open_training(config)
    names = {train.name_of(i) for i in range(len(train))} | {f"{data}/{name}" for name in selecting}
    assert len(names) == 72
    assert all(name.startswith(f"{data}/train/") for name in names)


def test_a_finished_folder_says_so_and_reads_nothing_again(tuned, data, weights, tmp_path):
    found, _ = tuned
    copy = tmp_path / "run"
    shutil.copytree(found.workdir, copy)
    shutil.rmtree(copy / "checkpoints")
    again, said = said_by(finetune, data, weights=weights, workdir=copy, changes=CHANGES)
    assert f"{copy} is finished; for another fine-tuning use another --workdir" in said
    assert again == results.FinetuneResult(**{**vars(found), "workdir": copy})
    assert "by class" in said


def test_a_metric_that_is_not_finite_is_kept_and_told(tuned, data, weights, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(tuned[0].workdir, copy)
    stored = decisions.read(copy)
    decisions.write(copy, replace(stored, result={**stored.result, "loss": None}))
    found, said = said_by(finetune, data, weights=weights, workdir=copy, changes=CHANGES)
    assert np.isnan(found.metrics["loss"])
    assert "  loss nan  " in said
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["loss"] is None


def test_a_change_that_alters_no_step_does_not_read_the_test_set_again(
    tuned, data, weights, tmp_path, monkeypatch
):
    copy = tmp_path / "run"
    shutil.copytree(tuned[0].workdir, copy)
    before, changes = decisions.read(copy), {**CHANGES, "log.every": "2 steps"}
    assert before.readings == 1

    def fail(*_, **__):
        raise AssertionError("read again")

    monkeypatch.setattr(evaluate, "evaluate", fail)
    for said_is in ("", "is finished"):  # the second time the folder is as it was left
        found, said = said_by(finetune, data, weights=weights, workdir=copy, changes=changes)
        assert found == replace(tuned[0], workdir=copy)
        assert said_is in said
        assert "NOTE: the test set" not in said
    after = decisions.read(copy)
    assert (after.given, after.readings) == (changes, 1)
    assert after.fields == {**before.fields, "log.every": "2 steps"}
    assert read_config(copy).log.every == "2 steps"


def test_each_further_reading_of_the_test_set_is_told_and_counted(data, weights, tmp_path):
    run = tmp_path / "run"
    options = {"weights": weights, "workdir": run}
    changes = {**CHANGES, "checkpoint.keep": 2, "eval.best": "loss:min"}
    first, said = said_by(finetune, data, changes=changes, **options)
    assert "NOTE: the test set" not in said
    changes["eval.best"] = "loss:max"
    second, said = said_by(finetune, data, changes=changes, **options)
    assert {first.step, second.step} == {3, 6}
    assert "NOTE: the test set was read 2 times, for 2 checkpoints; if its results select" in said
    assert decisions.read(run).readings == 2
    # Without a word the settings are those of the last call.
    assert said_by(finetune, data, **options)[0] == second


def test_choices_are_kept_and_not_made_again(tuned, data, weights, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(tuned[0].workdir, copy)

    def fail(*_):
        raise AssertionError("chosen again")

    monkeypatch.setattr(gathering, "machine_facts", fail)
    monkeypatch.setattr(gathering, "weights_facts", fail)
    stored = decisions.read(copy)
    assert stored == decisions.Decisions(**{**vars(stored), "reasons": tuple(stored.reasons)})
    dataset = f"folder:{data}"
    for given in (CHANGES, {}):
        found, before = decisions.settle(copy, dataset, str(weights), 0, given)
        assert before
        assert found.fields == stored.fields
    with pytest.raises(
        UsageError, match=r"has a fine-tuning with another config: seed was 0, is 1; leave that"
    ):
        finetune(data, weights=weights, workdir=copy, changes={"seed": 1})
    with pytest.raises(UsageError, match=r"config\.eval\.also has pictures of the test set"):
        finetune(data, weights=weights, workdir=copy, changes={"eval.also": ("test",)})
    assert decisions.read(copy) == stored
    for changed in (
        (f"{dataset}s", str(weights), 0),
        (dataset, "x", 0),
        (dataset, str(weights), 3),
    ):
        with pytest.raises(
            UsageError, match=f"{copy} has a fine-tuning on {dataset} from .*another"
        ):
            decisions.settle(copy, *changed, {})


def test_damaged_choices_are_one_line(tuned, tmp_path):
    whole = (tuned[0].workdir / "finetune.json").read_text()
    damaged = ("{", "[]", "\0", "", '{"a": 1}', whole[:-20], whole.replace('"seal"', '"seel"'),
               whole.replace("block4", "block5"))  # fmt: skip
    for text in damaged:
        (tmp_path / "finetune.json").write_text(text)
        with pytest.raises(
            UsageError, match=r"finetune.json is damaged: .*; use another --workdir"
        ):
            decisions.read(tmp_path)


def test_without_a_test_set_the_result_is_said_to_be_of_the_selection(
    tmp_path, digits, weights
):  # fmt: skip
    data = write_images(tmp_path / "digits", digits, "train", 24)
    found, said = said_by(
        finetune, data, weights=weights, workdir=tmp_path / "run", changes=CHANGES
    )
    assert (found.split, found.tested) == ("held_out", False)
    assert found.metrics["examples"] == 6
    assert "there is no test set, so they also measure the result" in said
    assert "NOTE: the checkpoint was selected by these images" in said
    with pytest.raises(UsageError, match="has a fine-tuning"):
        cross_validate(data, folds=2, weights=weights, workdir=tmp_path / "run", changes=CHANGES)


@pytest.mark.parametrize(
    ("tree", "changes", "said"),
    [
        ((), {}, r"cannot be read: .*No such file or directory"),
        (("cat",), {}, "holds one class, 'cat'; two are needed"),
        (("train/cat", "test/cat", "test/dog"), {}, "lacks: 'dog'|one class"),
        (
            ("cat", "dog"),
            {"data.eval_split": "test"},
            "selects by this split, and reads a test set",
        ),
        (("cat", "dog"), {"data.val_share": 0.0}, "no validation part to select by"),
        (("cat", "dog"), {"data.folds": 3}, "config.data.folds is set by --folds"),
        (("cat", "dog"), {"data.batchsize": 3}, "no field 'data.batchsize'; did you mean"),
        (("cat", "dog"), {"data.batch_size": 0}, "config.data.batch_size is 0; it takes at least"),
        (("cat", "dog"), {"init_from": "/nowhere.keras"}, "there are no weights at /nowhere.keras"),
        (("cat", "dog"), {"init_from": "keras:vgg16"}, "Keras has no weights keras:vgg16"),
    ],
)
def test_what_cannot_be_is_one_line(tree, changes, said, tmp_path, weights, digits):
    encoded = digits["test"][0].encoded
    for folder in tree:
        (tmp_path / "data" / folder).mkdir(parents=True)
        for i in range(5):
            (tmp_path / "data" / folder / f"{i}.png").write_bytes(encoded)
    with pytest.raises(UsageError, match=said):
        finetune(tmp_path / "data", weights=weights, workdir=tmp_path / "run", changes=changes)
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_the_folder_of_another_run_is_refused(tuned, data, weights, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(tuned[0].workdir, copy)
    (copy / "finetune.json").unlink()
    with pytest.raises(UsageError, match="has a run that finetune did not start; use another"):
        finetune(data, weights=weights, workdir=copy)


def test_without_a_network_it_says_how_to_get_weights(data, tmp_path, monkeypatch):
    """The default weights are downloaded; a proxy on a closed port stands for no network."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    huggingface_hub = pytest.importorskip("huggingface_hub")
    huggingface_hub.close_session()  # which keeps the proxies of its environment
    with pytest.raises(RunError) as error:
        finetune(data, workdir=tmp_path / "run")
    huggingface_hub.close_session()
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(
        ". Without a network, give a Keras or timm file: --input=FILE (docs/weights.md says how to "
        "get one)"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "a folder of images is needed; --help shows an example"),
        (("a", "b"), 2, "one folder is expected, not 2"),
        (("a", "--config.data.batchsize=3"), 2, "did you mean 'data.batch_size'?"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, code, said):
    process = finish("finetune", *arguments)
    assert process.returncode == code
    [line] = process.stderr.splitlines()
    assert said in line


@pytest.mark.slow
def test_a_killed_fine_tuning_continues_by_the_same_command(data, weights, tmp_path):
    flags = [str(data), f"--input={weights}"]
    flags += [f"--config.{name}={value}" for name, value in CHANGES.items()]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = result(finish("finetune", *flags, f"--workdir={whole}", "--json"))
    code, _ = signal_at(5, signal.SIGKILL, "finetune", *flags, f"--workdir={killed}")
    assert code == -signal.SIGKILL
    process = finish("finetune", *flags, f"--workdir={killed}", "--json")
    assert "as decided at its start" in process.stderr
    assert result(process) == {**expected, "workdir": str(killed)}
    assert digests(killed, 6) == digests(whole, 6)


@pytest.mark.slow
def test_several_labels_an_image_are_taken(weights, tmp_path):
    tiny_datasets.prepare_multilabel(
        tmp_path / "data", "tiny_kinds", examples={"train": 60, "test": 20}, objects=False
    )
    changes = CHANGES | {"data.dataset": "tiny_kinds", "data.data_dir": str(tmp_path / "data")}
    run = {"weights": weights, "changes": changes}
    found = finetune(workdir=tmp_path / "run", **run)
    assert (found.split, found.tested) == ("test", True)
    assert sum(one.images for one in found.classes) >= 20, "a picture counts for each label"
    assert {"map", "precision", "recall", "loss"} < found.metrics.keys()
    assert found.metrics["examples"] == 20
    folds = cross_validate(folds=2, workdir=tmp_path / "folds", **run)
    with folds.predictions.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    shown = tiny_datasets.kinds("train", 60)
    labels = sorted(row["label"] for row in rows)
    assert labels == sorted("|".join(map(str, np.flatnonzero(one))) for one in shown)
    assert folds.mean["map"] == pytest.approx(np.mean([fold["map"] for fold in folds.folds]))
