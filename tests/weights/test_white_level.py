"""The level of white of a run's images goes wherever its weights go."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import make_small_config
from tests.weights import builders
from xception_jax import config as config_lib
from xception_jax import convert, export, serving, train
from xception_jax.errors import RunError
from xception_jax.predict import Classifier
from xception_jax.training.workdir import read_config
from xception_jax.utils import seal
from xception_jax.weights import converted, initial, pretrained

WHITE = 4095


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of a step, which starts from weights whose logits differ from image to image."""
    config, folder = make_small_config(), tmp_path_factory.mktemp("white")
    built = {"middle_blocks": 0, "width": 0.1, "stem_stride": 1}
    model = builders.create("xception", 10, **built)
    model.head.classifier.kernel[...] = 20 * model.head.classifier.kernel[...]
    overrides = pretrained.effective("xception", built)
    about = converted.About("xception", overrides, 10, tuple("0123456789"))
    converted.write(folder / "a.safetensors", about, builders.arrays(model))
    config.init_from, config.data.white_level = str(folder / "a.safetensors"), WHITE
    config.duration, config.optimizer.learning_rate, config.ema.decay = "1 step", 1e-9, 0.0
    train.train(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    """A PNG of 12 bits in 16, which does not declare its level."""
    pixels = np.random.default_rng(0).integers(0, WHITE + 1, (8, 8, 3)).astype(np.uint16)
    path = tmp_path_factory.mktemp("pictures") / "deep.png"
    cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture(scope="module")
def expected(run, picture) -> np.ndarray:
    """The run's probabilities, which are other ones where the picture is read as nearly black."""
    stored = cv2.imread(str(picture), cv2.IMREAD_UNCHANGED)[..., ::-1]
    bright, dark = (np.uint8(stored / level * 255 + 0.5) for level in (WHITE, 65_535))
    seen, black = (each.probabilities for each in Classifier(run).predict([bright, dark]))
    assert np.abs(seen - black).max() > 0.01
    [found] = Classifier(run).predict([picture])
    np.testing.assert_allclose(found.probabilities, seen, atol=1e-5)
    return found.probabilities


def asked(source: Path, picture: Path, **how: object) -> np.ndarray:
    [found] = Classifier(source, **how).predict([picture])
    return found.probabilities


def test_converted_files_have_it(run, picture, expected, tmp_path):
    one, two = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert.convert(run, one, source_format="xception_jax")
    convert.convert(one, two, source_format="xception_jax")
    for path in (one, two):
        assert converted.read_about(path).preprocessing["white_level"] == WHITE
        found = asked(path, picture, activation="softmax")
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("how", [{"resize": "inside"}, {"resize": "outside"}, {"format": "onnx"}],
                         ids=lambda how: next(iter(how.values())))  # fmt: skip
def test_exports_have_it(run, picture, expected, how, tmp_path):
    if "format" in how:
        pytest.importorskip("onnxruntime")
    about = export.export_run(run, tmp_path / "out", platforms=("cpu",), **how).about
    assert about["white_level"] == WHITE
    assert about["preprocessing"].startswith(f"the caller takes {WHITE} of an image of 16 bits")
    np.testing.assert_allclose(asked(tmp_path / "out", picture), expected, atol=1e-5)
    serving.check(tmp_path / "out")
    process = subprocess.run(
        [sys.executable, tmp_path / "out/classify.py", picture],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 1, "Pillow would see it nearly black"
    assert f"it has 16 bits per sample, of which {WHITE} is white" in process.stderr


def test_a_run_from_it_has_it_unless_the_config_has_its_own(run):
    config = config_lib.default()
    config.init_from = str(run)
    assert initial.resolve_with_weights(config).data.white_level == WHITE
    config.data.white_level = 1023
    assert initial.resolve_with_weights(config).data.white_level == 1023
    assert read_config(run).data.white_level == WHITE


def test_files_without_it_are_read_and_have_none(undisturbed, tmp_path):
    assert "white_level" not in pretrained.open_pretrained(undisturbed).preprocessing
    about = export.export_run(undisturbed, tmp_path / "out", platforms=("cpu",)).about
    assert "white_level" not in about
    assert Classifier(tmp_path / "out").images.white == 0


@pytest.mark.parametrize("value", [0, 65_536, 4095.0, "4095", True, None])
def test_a_level_that_cannot_be_is_damage(undisturbed, value, tmp_path):
    about = {"format": 3, "white_level": value}
    export.export_run(undisturbed, tmp_path / "out", platforms=("cpu",))
    path = tmp_path / "out/model.json"
    path.write_text(json.dumps(seal.sealed(json.loads(path.read_text()) | about)))
    with pytest.raises(RunError, match="white_level"):
        serving.load(tmp_path / "out")


@pytest.mark.parametrize("value", [-1, 65_536, "4095", None])
def test_a_level_that_cannot_be_is_refused_in_a_converted_file(value, tmp_path):
    built = {"width": 0.1, "middle_blocks": 0}
    overrides = pretrained.effective("xception", built)
    about = converted.About("xception", overrides, 3, preprocessing={"white_level": value})
    tensors = builders.arrays(builders.create("xception", **built))
    converted.write(tmp_path / "a.safetensors", about, tensors)
    with pytest.raises(ValueError, match="white_level"):
        converted.read_about(tmp_path / "a.safetensors")
