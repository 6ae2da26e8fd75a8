"""Fine-tuning in one command: what is read when, what is kept, and what is refused."""

import csv
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_datasets
from tests.processes import digests, finish, result, signal_at
from tests.weights import builders
from xception_jax import config as config_lib
from xception_jax import evaluate
from xception_jax.data import splits
from xception_jax.errors import RunError, UsageError
from xception_jax.finetune import cross_validate, finetune
from xception_jax.finetuning import decisions, gathering, results
from xception_jax.predict import Classifier
from xception_jax.training.workdir import read_config
from xception_jax.utils.console import make_console
from xception_jax.weights import converted

SMALL = {"width": 0.1, "middle_blocks": 0, "stem_stride": 1}
MADE_FOR = {"image_size": 8, "eval_preset": "area", "eval_crop": 1.0, "exif": True}
# Durations in steps, so that runs on any number of images share a program.
CHANGES = {
    "duration": "6 steps", "optimizer.warmup": "1 step", "eval.every": "3 steps",
    "checkpoint.every": "3 steps", "data.batch_size": 16, "mesh.data": 1, "log.every": "1 step",
}  # fmt: skip
CLASSES = ("one", "two", "three")


def write_images(folder: Path, digits, split: str, each: int) -> Path:
    """Images of three classes of the digits."""
    source, left = digits[split], dict.fromkeys(range(1, 4), each)
    for i in range(len(source)):
        encoded, label, _ = source[i]
        if left.get(label, 0):
            left[label] -= 1
            place = folder / CLASSES[label - 1]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:04}.png").write_bytes(encoded)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    about = converted.About("xception", SMALL, 3, None, MADE_FOR, {"format": "timm"})
    converted.write(path, about, builders.arrays(builders.create("xception", **SMALL)))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory, digits) -> Path:
    """`train` of 24 images a class and `test` of 10."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_images(folder / "train", digits, "train", 24)
    write_images(folder / "test", digits, "test", 10)
    return folder


def said_by(call, *args, **options):
    """The result of a call, and what it printed."""
    console = make_console()
    with console.capture() as captured:
        found = call(*args, console=console, **options)
    return found, captured.get()


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
    assert sum(one.predicted for one in found.classes) == 30
    correct = sum(one.right for one in found.classes)
    assert found.metrics["top1"] == pytest.approx(correct / 30)
    lines = said.splitlines()
    begin = lines.index(f"fine-tuning in {found.workdir}, each can be set, as "
                        f"--config.data.image_size=128:")  # fmt: skip
    chosen = [line for line in lines[begin + 1 : begin + 12] if line.startswith("  ")]
    assert chosen[0] == (
        "  data: 57 training pictures of 3 classes; 15 held out of training select the checkpoint; "
        "the 30 of 'test' are read once, at the end"
    )
    assert f"  weights {weights}: xception; data.eval_preset=area" in chosen[1]
    assert any(
        line.startswith("  model.freeze=exit_flow: trains the classifier") for line in chosen
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
    assert told["classes"][0] == {
        "name": "one", "images": 10, **{name: getattr(found.classes[0], name)
                                        for name in ("right", "predicted")},
    }  # fmt: skip


def test_nothing_of_the_test_set_trains_or_selects(tuned, data):
    config = read_config(tuned[0].workdir)
    assert (config.data.train_split, config.data.eval_split) == ("train", "held_out")
    selecting = (tuned[0].workdir / "eval_files.txt").read_text().splitlines()
    assert len(selecting) == 15
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
    other, _ = decisions.settle(copy, dataset, str(weights), 0, {"seed": 1})
    assert (other.fields["seed"], other.result) == (1, None)
    with pytest.raises(
        UsageError, match=r"has a run with another config: seed was 0, is 1; use an"
    ):
        finetune(data, weights=weights, workdir=copy, changes={"seed": 1})
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
               whole.replace("exit_flow", "exit_flaw"))  # fmt: skip
    for text in damaged:
        (tmp_path / "finetune.json").write_text(text)
        with pytest.raises(
            UsageError, match=r"finetune.json is damaged: .*; use another --workdir"
        ):
            decisions.read(tmp_path)


@pytest.mark.parametrize(
    ("tree", "train", "select", "test"),
    [
        (("train", "val", "test"), "train", "val", "test"),
        (("Training", "Validation"), "Training", "Validation", ""),
        (("train", "test"), "train", "held_out", "test"),
        (("train",), "train", "held_out", ""),
        (("",), "train+test", "held_out", ""),
    ],
)
def test_every_layout_has_a_part_that_selects(tree, train, select, test, tmp_path, digits):
    for name in tree:
        write_images(tmp_path / "data" / name, digits, "test", 4)
    config = config_lib.default()
    config.data.dataset = f"folder:{tmp_path / 'data'}"
    found = gathering.find_splits(config, {})
    assert (found.fields["data.train_split"], found.fields["data.eval_split"]) == (train, select)
    assert found.test == test
    config.update_from_flattened_dict(dict(found.fields))
    held = splits.open_split(config, select)
    assert len(splits.open_training(config)) == 12 - (len(held) if select == "held_out" else 0)
    assert len(held) == (3 if select == "held_out" else 12)


def test_a_data_set_of_tfds_selects_by_a_part_and_keeps_its_test_set():
    config = config_lib.default()
    found = gathering.find_splits(config, {})
    assert found.fields["data.eval_split"] == "held_out"
    assert found.test == "test"


def test_without_a_test_set_the_result_is_said_to_be_of_the_selection(
    tmp_path, digits, weights
):  # fmt: skip
    data = write_images(tmp_path / "digits", digits, "train", 24)
    found, said = said_by(
        finetune, data, weights=weights, workdir=tmp_path / "run", changes=CHANGES
    )
    assert (found.split, found.tested) == ("held_out", False)
    assert found.metrics["examples"] == 15
    assert "there is no test set, so they also measure the result" in said
    assert "NOTE: the checkpoint was selected by these images" in said
    with pytest.raises(UsageError, match="has a fine-tuning"):
        cross_validate(data, folds=2, weights=weights, workdir=tmp_path / "run", changes=CHANGES)


@pytest.fixture(scope="module")
def validated(tmp_path_factory, data, weights):
    run = tmp_path_factory.mktemp("validated") / "run"
    options = {"folds": 3, "weights": weights, "workdir": run, "changes": CHANGES}
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
    json.dumps(found.to_json(), allow_nan=False)


def test_a_cross_validation_continues_with_the_fold_that_is_not_finished(validated, data, tmp_path):
    (found, _), options = validated
    copy = tmp_path / "run"
    shutil.copytree(found.workdir, copy)
    shutil.rmtree(copy / "fold1")
    found.predictions.rename(found.predictions)  # it stays
    (copy / "out_of_fold.csv").unlink()
    again, said = said_by(cross_validate, data, **{**options, "workdir": copy})
    assert said.count("compiling the training step") == 1, "of one fold"
    assert again.folds == found.folds
    assert again.predictions.read_text() == found.predictions.read_text()


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
    with pytest.raises(RunError) as error:
        finetune(data, workdir=tmp_path / "run")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(
        ". Without a network, give a Keras or timm file: --input=FILE (docs/weights.md says how to "
        "get one)"
    )
    assert not (tmp_path / "run").exists()


def test_the_folder_of_a_run_has_the_name_of_the_data():
    assert gathering.default_workdir("folder:photos/pets/") == Path("runs/pets")
    assert gathering.default_workdir("folder:pets/labels.csv") == Path("runs/labels")
    assert gathering.default_workdir("optical_digits") == Path("runs/optical_digits")


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
    assert (found.split, found.tested, found.classes) == ("test", True, ())
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
