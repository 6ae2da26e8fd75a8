"""Temperatures: against SciPy's minimum, and what predictions and exports make of them."""

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize
from PIL import Image
from scipy.special import log_softmax, softmax
from sklearn.metrics import f1_score

from tests.processes import finish, result
from tests.serving.exports import write
from xception_jax import evaluate, export
from xception_jax.data import readers
from xception_jax.errors import RunError
from xception_jax.predict import Classifier
from xception_jax.serving import calibration


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_temperature_is_the_most_likely_one(activation):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (500, 7))
    if activation == "softmax":
        targets = np.array([rng.choice(7, p=row) for row in softmax(logits / 2.5, 1)])
    else:
        targets = (rng.random((500, 7)) < 1 / (1 + np.exp(-logits / 2.5))).astype(np.uint8)

    def nll(temperature):
        scaled = logits / temperature
        if activation == "softmax":
            return -log_softmax(scaled, 1)[np.arange(500), targets].mean()
        return (np.logaddexp(0, scaled) - targets * scaled).sum(1).mean()

    found = calibration.fit(logits.astype(np.float32), targets, activation, "data")
    best = scipy.optimize.minimize_scalar(nll, bounds=(0.1, 20), method="bounded")
    assert found.temperature == pytest.approx(best.x, rel=1e-3)
    assert found.temperature == pytest.approx(2.5, rel=0.2)
    assert found.before["nll"] == pytest.approx(nll(1), rel=1e-5)
    assert found.after["nll"] == pytest.approx(nll(found.temperature), rel=1e-5)
    assert found.after["ece"] < found.before["ece"] / 2
    assert found.examples == 500


def test_the_calibration_error_by_hand():
    confidences = np.array([0.95, 0.97, 0.5, 0.49, 1.0])
    right = np.array([1, 0, 1, 1, 1])
    # Bins of 1/15: (14/15, 1] has three, with two right; (7/15, 8/15] has two, both right.
    expected = abs(0.95 + 0.97 + 1.0 - 2) / 5 + abs(0.5 + 0.49 - 2) / 5
    assert calibration.calibration_error(confidences, right) == pytest.approx(expected)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_there_is_no_temperature_where_all_is_right(activation):
    """The likelihood grows as it goes to 0, and every answer would be sure."""
    targets, said = np.eye(3, dtype=np.uint8), []
    logits = np.where(targets, 1.5, -0.5)
    given = targets if activation == "sigmoid" else targets.argmax(1)
    found = calibration.fit(logits, given, activation, "data", said.append)
    assert found.temperature == 1
    assert said == ["NOTE: the model is right on all 3 examples, so there is no most likely "
                    "temperature; it stays 1"]  # fmt: skip
    assert found.after == found.before
    logits[0] = logits[0, ::-1]
    assert calibration.fit(logits, given, activation, "data", said.append).temperature > 1
    assert len(said) == 1


def test_thresholds_have_the_best_f1_of_each_class():
    """Against all that there are, and scikit-learn's F1; many probabilities are equal."""
    rng = np.random.default_rng(0)
    probabilities = rng.integers(1, 40, (200, 5)) / 40
    targets = (rng.random((200, 5)) < probabilities * [0.05, 0.3, 0.9, 0, 0.5]).astype(np.uint8)
    targets[:, 4] = 1
    found = calibration.best_thresholds(probabilities, targets)
    assert found[3] == 0.5, "no example has this class"
    assert (probabilities[:, 4] >= found[4]).all()
    for label in range(5):
        every = [f1_score(targets[:, label], probabilities[:, label] >= cut, zero_division=0)
                 for cut in np.arange(0, 1.01, 1 / 80)]  # fmt: skip
        own = f1_score(targets[:, label], probabilities[:, label] >= found[label], zero_division=0)
        assert own == pytest.approx(max(every))
    some = [0, 1, 2, 4]
    expected = f1_score(targets[:, some], (probabilities >= found)[:, some], average="macro")
    assert calibration.mean_f1(probabilities >= found, targets) == pytest.approx(expected)


def test_only_sigmoid_has_thresholds():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (300, 4))
    targets = (rng.random((300, 4)) < 1 / (1 + np.exp(2 - logits))).astype(np.uint8)
    found = calibration.fit(logits, targets, "sigmoid", "data")
    assert len(found.thresholds) == 4
    assert found.before["f1"] == pytest.approx(f1_score(targets, logits > 0, average="macro"))
    assert found.after["f1"] > found.before["f1"] + 0.02
    single = calibration.fit(logits, rng.integers(0, 4, 300), "softmax", "data")
    assert single.thresholds == []
    assert "f1" not in single.after


@pytest.mark.parametrize("thresholds", [None, [0.9, 0.1]])
def test_labels_are_named_from_their_thresholds_on(thresholds, tmp_path):
    """By an export of sigmoid; 0.5 where it is not calibrated."""
    fitted = {"temperature": 1.0, "data": "data", "examples": 2, "thresholds": thresholds,
              "before": {"ece": 0, "f1": 0}, "after": {"ece": 0, "f1": 0}}  # fmt: skip
    write(tmp_path / "out", **({"calibration": fitted} if thresholds else {}))
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    pixels[0], pixels[1] = (204, 102, 0), (255, 0, 0)  # 0.8 and 0.4; 1 and 0
    expected = [("b",), ("a",)] if thresholds else [("a",), ("a",)]
    found = Classifier(tmp_path / "out").predict(list(pixels))
    assert [each.labels for each in found] == expected
    Image.fromarray(pixels[0]).save(tmp_path / "0.png")
    flags = f"--exported={tmp_path / 'out'}", str(tmp_path / "0.png")
    assert result(finish("predict", *flags, "--json"))["labels"] == list(expected[0])
    assert finish("predict", *flags).stdout.endswith(
        f": a 80.0%, b 40.0%; labels: {expected[0][0]}\n"
    )
    [row] = csv.DictReader(io.StringIO(finish("predict", *flags, "--csv", "--top=1").stdout))
    assert (json.loads(row["labels"]), row["class1"]) == (list(expected[0]), "a")
    done = subprocess.run(
        [sys.executable, tmp_path / "out" / "classify.py", tmp_path / "0.png"],
        capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path / '0.png'}  a  0.800000  labels: {expected[0][0]}\n"
    parquet = pytest.importorskip("pyarrow.parquet")
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "bad.png").write_text("no picture")
    every = [str(tmp_path / f"{name}.png") for name in ("0", "1", "bad")]
    finish("predict", flags[0], *every, f"--parquet={tmp_path / 'all.parquet'}")
    table = parquet.read_table(tmp_path / "all.parquet")
    assert table["labels"].to_pylist() == [list(expected[0]), [], None]


def test_a_calibrated_run_answers_and_exports_so(undisturbed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    source = readers.open_split("optical_digits", "test")
    names = []
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(source[i].encoded)
        names.append(tmp_path / f"{i}.png")
    before = Classifier(run).predict(names)
    metrics = evaluate.evaluate(run).metrics
    done = finish("evaluate", f"--workdir={run}", "--calibrate", "--json")
    assert "NOTE: 'test' is the test set" in done.stderr
    found = result(done)
    assert found["before"]["nll"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert found["after"]["nll"] <= found["before"]["nll"]
    assert found["temperature"] != 1
    assert (found["step"], found["split"], found["examples"]) == (12, "test", 360)
    classifier = Classifier(run)
    assert classifier.temperature == found["temperature"]
    after = classifier.predict(names)
    assert {each.labels for each in after} == {None}, "softmax gives one label, the first one"
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old.logits, new.logits)
        expected = softmax(np.float64(old.logits) / found["temperature"])
        np.testing.assert_allclose(new.probabilities, expected, atol=1e-6)
    assert evaluate.evaluate(run).metrics == metrics
    done = export.export_run(run, tmp_path / "export", platforms=("cpu",), resize="outside")
    assert done.about["source"]["calibration"]["temperature"] == found["temperature"]
    assert "calibrated (temperature" in (tmp_path / "export/README.md").read_text()
    for old, new in zip(Classifier(tmp_path / "export").predict(names), after, strict=True):
        np.testing.assert_allclose(old.probabilities, new.probabilities, atol=1e-5)
    assert Classifier(run, step="10").temperature == 1, "another checkpoint is not calibrated"
    told = finish("predict", f"--workdir={run}", str(names[0])).stderr
    assert "probabilities are calibrated: temperature" in told
    path = run / "calibration/12-ema.json"
    text = path.read_text()
    path.write_text(text.replace('"examples": 360', '"examples": 361'))
    with pytest.raises(RunError, match="is damaged: is not what was sealed; delete it"):
        Classifier(run)
    path.with_name("10-ema.json").write_text(text)
    with pytest.raises(RunError, match="is of another checkpoint"):
        Classifier(run, step="10")
    assert json.loads(text)["temperature"] == found["temperature"]
