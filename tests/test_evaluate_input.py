"""Evaluation of weights without a run: against predictions, by hand and by scikit-learn."""

import csv
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import sklearn.metrics

from tests import tiny_datasets
from tests.processes import finish, result, several
from tests.weights import builders
from xception_jax import evaluate, train
from xception_jax.data import classes, imagenet, readers
from xception_jax.data.batches import Reader
from xception_jax.data.source import Source
from xception_jax.errors import UsageError
from xception_jax.models.published import Result
from xception_jax.predict import Classifier
from xception_jax.serving import inference
from xception_jax.training import evaluation, metrics, sharding, step
from xception_jax.training.class_report import ClassReport
from xception_jax.training.loss import Loss
from xception_jax.weights import converted, pretrained

NAMES = ("ant", "bee", "cat", "dog")
BUILT = {"width": 0.05, "middle_blocks": 0, "stem_stride": 2}


def write(path: Path, names: tuple[str, ...] | None = NAMES, activation: str = "softmax") -> Path:
    """A converted file of a narrow Xception whose logits differ from picture to picture."""
    model = builders.create("xception", len(names or NAMES), **BUILT)
    head = model.head.classifier
    head.kernel[...] = 20 * head.kernel[...]
    overrides = pretrained.effective("xception", BUILT)
    made_for = {"image_size": 32, "eval_preset": "area", "eval_crop": 0.9}
    about = converted.About(
        "xception", overrides, len(names or NAMES), names, made_for, activation=activation
    )
    converted.write(path, about, builders.arrays(model))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("weights") / "a.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two to thirteen noisy pictures of three of the classes, which a folder sorts otherwise."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    rng = np.random.default_rng(0)
    for hue, (name, count) in enumerate((("dog", 13), ("ant", 2), ("cat", 7))):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 60, (40 + i, 50, 3), np.uint8)
            image[..., (hue + i) % 3] += np.uint8(15 * i)
            cv2.imwrite(str(folder / name / f"{i}.png"), image)
    return folder


def asked(file: Path, photos: Path) -> tuple[np.ndarray, np.ndarray]:
    """The logits that `predict` gives, and the labels, of the files in the folder's order."""
    source = readers.open_split(f"folder:{photos}", "test+train")
    names = [source.name_of(i) for i in range(len(source))]
    found = Classifier(file).predict(names)
    labels = [NAMES.index(Path(name).parent.name) for name in names]
    return np.stack([each.logits for each in found]), np.array(labels)


def test_metrics_and_classes_are_those_of_predictions(file, photos):
    logits, labels = asked(file, photos)
    said: list[str] = []
    found = evaluate.evaluate_input(
        file, dataset=f"folder:{photos}", per_class=True, say=said.append
    )
    predicted = logits.argmax(1)
    shares = np.exp(np.float64(logits))
    shares /= shares.sum(1, keepdims=True)
    loss = -np.log(shares[np.arange(22), labels]).mean()
    assert found.metrics["top1"] == pytest.approx(np.mean(predicted == labels))
    assert found.metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert (found.metrics["examples"], found.metrics["skipped"]) == (22, 0)
    assert (found.model, found.split) == ("xception", "test+train")
    assert "3 classes of the data are matched with the model's 4 by name" in said[0]
    report = found.classes
    assert len(set(predicted)) > 1, "it does not always say the same"
    matrix = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(4))
    np.testing.assert_array_equal(report.confusion, matrix)
    precision, recall, _, images = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(4), zero_division=np.nan
    )
    for i, each in enumerate(report.classes()):
        assert (each.name, each.images, each.right) == (NAMES[i], images[i], matrix[i, i])
        for ours, theirs in ((each.precision, precision[i]), (each.recall, recall[i])):
            assert ours == (None if np.isnan(theirs) else pytest.approx(theirs))
        wrong = [*matrix[i]]
        wrong[i] = 0
        assert each.confused == max(wrong)
        assert (each.confused_with is None) == (max(wrong) == 0)


def test_logits_are_those_of_predict_bit_for_bit(file, photos):
    """Of the step and the batch of `evaluate_input`, with its metrics and the counts of classes."""
    logits, _ = asked(file, photos)
    model = inference.of_file(file)
    size = inference.batch_size_of(jax.device_count(), 22)

    def each(logits, batch):  # its sum over a batch is what it was
        rows = jax.nn.one_hot(np.arange(size), size)
        return rows[:, :, None] * logits[:, None, :]

    held = metrics.Metric("each", each, lambda sums, examples: 0.0)
    layout = sharding.Layout.replicated(sharding.make_mesh())
    evaluator = evaluation.Evaluator(
        Reader(readers.open_split(f"folder:{photos}", "test+train"), model.images),
        layout,
        step.jit_evaluate_batch(model.graphdef, Loss("softmax"), layout, (held,), per_class=True),
        size,
    )
    sums = evaluator.sums(jax.device_put(jax.device_get(model.weights), layout.weights))
    np.testing.assert_array_equal(sums["each"][:22].astype(np.float32), logits)


def test_a_run_on_another_set_is_the_same_as_its_weights(undisturbed, tmp_path):
    """And counts its own set as it evaluates it."""
    source = readers.open_split("optical_digits", "test")
    for i in range(30):
        example = source[i]
        (tmp_path / f"digits/{example.label}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"digits/{example.label}/{i}.png").write_bytes(example.encoded)
    flags = [f"--workdir={undisturbed}", f"--dataset=folder:{tmp_path}/digits", "--json"]
    found = result(finish("evaluate", *flags, f"--report={tmp_path}/report"))
    answers = Classifier(undisturbed).predict(sorted((tmp_path / "digits").rglob("*.png")))
    right = sum(each.top(1)[0][0] == Path(each.name).parent.name for each in answers)
    assert found["examples"] == 30
    assert found["top1"] == pytest.approx(right / 30)
    assert found["split"] == "test+train"
    told = json.loads((tmp_path / "report/report.json").read_text())
    assert told["top1"] == found["top1"]
    assert sum(map(sum, told["confusion"])) == sum(each["images"] for each in told["classes"]) == 30
    assert sum(each["right"] for each in told["classes"]) == right
    table = [*csv.DictReader((tmp_path / "report/classes.csv").read_text().splitlines())]
    assert [row["name"] for row in table] == [*"0123456789"]
    assert sum(int(row["right"]) for row in table) == right
    matrix = [*csv.reader((tmp_path / "report/confusion.csv").read_text().splitlines())]
    assert matrix[0] == ["label", *"0123456789"]
    assert [[*map(int, row[1:])] for row in matrix[1:]] == told["confusion"]
    own = evaluate.evaluate(undisturbed, per_class=True)
    assert own.classes.confusion.sum() == 360
    assert own.classes.right.sum() == round(own.metrics["top1"] * 360)
    assert own.metrics == evaluate.evaluate(undisturbed).metrics


def test_several_labels_are_counted_for_each_class(tmp_path):
    names = tuple(map(str, range(tiny_datasets.KINDS)))
    file = write(tmp_path / "a.safetensors", names, "sigmoid")
    tiny_datasets.prepare_multilabel(tmp_path, "tiny_kinds", examples={"validation": 50})
    options = {"dataset": "tiny_kinds", "label": "tags", "data_dir": str(tmp_path)}
    options["per_class"] = True
    found = evaluate.evaluate_input(file, **options)
    labels = tiny_datasets.kinds("validation", 50)
    report = found.classes
    np.testing.assert_array_equal(report.images, labels.sum(0))
    assert report.confusion is None
    assert report.right.sum() / report.predicted.sum() == pytest.approx(found.metrics["precision"])
    assert report.right.sum() / report.images.sum() == pytest.approx(found.metrics["recall"])
    written = report.write(tmp_path / "report", {})
    assert [path.name for path in written] == ["classes.csv", "report.json"]
    with pytest.raises(UsageError, match="has several labels per image, but the model was"):
        evaluate.evaluate_input(file, activation="softmax", **options)


def source_of(*names: str) -> Source:
    records = [{"image": b"", "label": i} for i in range(len(names))]
    return Source("data:test", names, records, "image", "label")


SYNSETS = tuple(imagenet.synsets())
NUMBERS = tuple(map(str, range(1000)))


@pytest.mark.parametrize(
    ("own", "model", "expected"),
    [
        (("dog", "ant"), NAMES, (3, 0)),
        (NAMES, NAMES, (0, 1, 2, 3)),
        (SYNSETS[5:9], imagenet.class_names(), (5, 6, 7, 8)),
        (("tench", "crane (n02012849)"), SYNSETS, (0, 134)),
        (SYNSETS[998:], SYNSETS, (998, 999)),
        (SYNSETS[7:9], NUMBERS, (7, 8)),
        (("10", "2", "0"), imagenet.class_names(), (10, 2, 0)),
        (("a", "b", "c"), ("0", "1", "2"), (0, 1, 2)),
        (("e\u0301", "b"), ("b", "\xe9"), (1, 0)),
    ],
)
def test_classes_are_matched_by_name_else_by_number(own, model, expected):
    said: list[str] = []
    found = classes.matched(source_of(*own), model, said.append)
    assert tuple(int(found[i].label) for i in range(len(own))) == expected
    assert found.class_names == model
    assert len(said) == (own != model)


@pytest.mark.parametrize(
    ("own", "model", "told"),
    [
        (("dog", "elk"), NAMES, "1 of the 2 classes of data:test are none of the model's: 'elk'"),
        (("a", "b"), ("0", "1", "2"), "2 of the 2 classes"),
        (("1", "1000"), imagenet.class_names(), "the model has 1,000: 'tench', "),
        (("1", "01"), NAMES, "2 of the 2"),
    ],
)
def test_other_classes_are_refused(own, model, told):
    with pytest.raises(UsageError) as caught:
        classes.matched(source_of(*own), model, print)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_flat_folder_of_imagenet_with_kaggles_solution(tmp_path):
    """Its labels are the synsets before the boxes."""
    (tmp_path / "val").mkdir()
    rows = ["ImageId,PredictionString"]
    expected = {}
    for i, synset in enumerate((SYNSETS[9], SYNSETS[1], SYNSETS[9])):
        name = f"ILSVRC2012_val_{i + 1:08}"
        (tmp_path / f"val/{name}.JPEG").write_bytes(
            tiny_datasets.jpeg(np.random.default_rng(i), 40, 50, i)
        )
        rows.append(f"{name}," + f"{synset} 10 20 30 40 " * (i + 1))
        expected[f"{name}.JPEG"] = synset
    (tmp_path / "val/LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    source = readers.open_split(f"folder:{tmp_path}/val/LOC_val_solution.csv", "train+test")
    assert source.class_names == (SYNSETS[1], SYNSETS[9])
    found = {
        Path(source.name_of(i)).name: source.class_names[source[i].label]
        for i in range(len(source))
    }
    assert found == expected


def imagenet_of(examples: int = 50_000, names: tuple[str, ...] = SYNSETS) -> Source:
    return Source("data:val", names, range(examples), "image", "label")


def test_published_results_are_those_of_the_weights_name():
    keras, data = {"format": "keras", "name": "keras:xception"}, imagenet_of()
    [found] = evaluate._published("xception", {"of": keras}, data, "validation")
    assert found == Result(79.0, 94.5, "keras Xception")
    timm = {"name": "hf:timm/xception65.ra3_in1k@abc"}
    [found] = evaluate._published("xception65", timm, data, "test+train")  # all of a folder
    assert found.source == "timm xception65.ra3_in1k"
    assert evaluate._published("xception", {"format": "keras"}, data, "val") == ()


@pytest.mark.parametrize(
    ("data", "split"),
    [
        (imagenet_of(names=SYNSETS[:200]), "val"),
        (imagenet_of(names=NUMBERS), "val"),
        (imagenet_of(10_000), "test"),
        (imagenet_of(), "train[:50000]"),
    ],
    ids=["fewer classes", "other classes", "fewer images", "training images"],
)
def test_published_results_are_of_imagenets_validation_set_alone(data, split):
    name = {"name": "keras:xception"}
    assert evaluate._published("xception", name, data, split) == ()


def test_the_runs_own_folder_is_its_data_set_by_any_path(small_config, photos, tmp_path):
    """Another path must not make its training images part of the test."""
    small_config.data.dataset, small_config.duration = f"folder:{photos}", "1 step"
    small_config.data.batch_size = 8
    run = tmp_path / "run"
    train.train(small_config, run)
    expected = evaluate.evaluate(run)
    assert expected.split == "test"
    assert expected.data.startswith(f"folder:{photos}@")
    (tmp_path / "link").symlink_to(photos)
    spellings = f"{photos}/", f"{photos}/../photos", os.path.relpath(photos), tmp_path / "link"
    for path in spellings:
        found = evaluate.evaluate(run, dataset=f"folder:{path}")
        assert found == expected
        assert found.to_json()["data"] == expected.data
    other = shutil.copytree(photos, tmp_path / "copy")
    found = evaluate.evaluate(run, dataset=f"folder:{other}")
    assert (found.split, found.metrics["examples"]) == ("test+train", 22)
    assert found.data.startswith(f"folder:{other}@")
    with pytest.raises(UsageError, match="label is of another data set"):
        evaluate.evaluate(run, label="tags")


def test_a_report_that_cannot_be_written_leaves_the_older_one(tmp_path):
    """And one without a matrix leaves none behind."""
    rng = np.random.default_rng(0)
    names = tuple(f"class {i}" for i in range(100))
    first, second = (
        ClassReport.of(names, {"confusion": rng.integers(0, 9, (100, 100))}) for _ in range(2)
    )
    files = first.write(tmp_path, {"top1": 0.5})
    before = [path.read_bytes() for path in files]
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            second.write(tmp_path, {"top1": 0.6})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.read_bytes() for path in files] == before
    assert sorted(tmp_path.iterdir()) == sorted(files)
    counts = {name: np.ones(100, int) for name in ("images", "predicted", "right")}
    written = ClassReport.of(names, counts).write(tmp_path, {})
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert {path.name for path in written} == {"classes.csv", "report.json"}


def test_the_command_prints_a_table(file, photos, tmp_path):
    done = finish(
        "evaluate", f"--input={file}", f"--dataset=folder:{photos}", f"--report={tmp_path}/r"
    )
    assert done.returncode == 0, done.stderr
    cells = [line.split("│")[1:3] for line in done.stdout.splitlines() if "│" in line]
    table = {name.strip(): value.strip() for name, value in cells}
    assert (table["model"], table["examples"]) == ("xception", "22")
    assert table["top1"].endswith("%")
    assert (tmp_path / "r/classes.csv").exists()


@pytest.mark.slow
def test_several_processes_count_each_example_once(file, photos, tmp_path):
    flags = [f"--input={file}", f"--dataset=folder:{photos}", "--json", f"--report={tmp_path}/r"]
    with several(2, 2, tmp_path / "two", "evaluate", *flags) as processes:
        assert processes.codes() == [0, 0]
    expected = evaluate.evaluate_input(file, dataset=f"folder:{photos}", per_class=True)
    told = json.loads((tmp_path / "r/report.json").read_text())
    assert told["confusion"] == expected.classes.confusion.tolist()
    assert told["examples"] == 22


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--input={file}"], "--dataset is needed with --input"),
        ([], "--workdir is needed, or --input"),
        (["--input={file}", "--workdir=runs/x"], "both name weights"),
        (["--workdir=runs/x", "--label=tags"], "--label is of --dataset"),
        (["--workdir=runs/x", "--calibrate", "--label=tags"], "takes no --label"),
        (["--workdir=runs/x", "--calibrate", "--model=xception"], "takes no --model"),
        (["--workdir=runs/x", "--calibrate", "--activation=sigmoid"], "takes no --activation"),
        (["--workdir=runs/x", "--calibrate", "--report=r"], "takes no --report"),
        (["--input={file}", "--dataset=folder:{photos}", "--step=3"], "are of a run"),
        (["--input={file}", "--dataset=folder:nowhere"], "folder:nowhere cannot be read"),
        (["--input={other}", "--dataset=folder:{photos}"], "are none of the model's: 'ant'"),
        (["--input={file}", "--dataset=folder:{photos}", "--split=val"], "has no split 'val'"),
        (["--input={file}", "--dataset=folder:{photos}", "--report={file}"], "cannot be written"),
    ],
)
def test_bad_usage_is_one_line(flags, told, file, photos, tmp_path):
    other = write(tmp_path / "b.safetensors", ("x", "y", "z", "w"))
    given = [flag.format(file=file, photos=photos, other=other) for flag in flags]
    done = finish("evaluate", *given)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert told in line
