"""Temperatures: against SciPy's minimum, and what predictions and exports make of them."""

import json
import shutil

import numpy as np
import pytest
import scipy.optimize
from scipy.special import log_softmax, softmax

from tests.processes import finish, result
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
    found = result(finish("evaluate", f"--workdir={run}", "--calibrate", "--json"))
    assert found["before"]["nll"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert found["after"]["nll"] <= found["before"]["nll"]
    assert found["temperature"] != 1
    assert (found["step"], found["split"], found["examples"]) == (12, "test", 360)
    classifier = Classifier(run)
    assert classifier.temperature == found["temperature"]
    after = classifier.predict(names)
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
