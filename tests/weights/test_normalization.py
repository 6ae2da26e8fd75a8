"""How pixels are scaled is a property of the weights, which goes wherever they go."""

import json
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from tests.conftest import make_small_config
from tests.weights import builders
from xception_jax import config as config_lib
from xception_jax import convert, evaluate, export, train, weights
from xception_jax.data import readers
from xception_jax.errors import UsageError
from xception_jax.predict import Classifier
from xception_jax.training.workdir import read_config
from xception_jax.utils.console import make_console
from xception_jax.weights import converted, pretrained

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def scaled(pixels: np.ndarray) -> np.ndarray:
    """As torchvision: `Normalize(mean, std)(ToTensor()(image))`, in float64."""
    return (pixels / 255 - np.array(MEAN)) / np.array(STD)


def pixels() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A narrow Xception for the ten digits, with timm's description of another mean."""
    folder = tmp_path_factory.mktemp("normalization")
    model = builders.create("xception", 10, middle_blocks=0, width=0.1)
    overrides = pretrained.effective(
        "xception", {"middle_blocks": 0, "width": 0.1, "stem_stride": 1}
    )
    about = converted.About(
        "xception", overrides, 10, tuple("0123456789"),
        {"mean": list(MEAN), "std": list(STD), "image_size": 8, "eval_preset": "area"},
        activation="softmax",
    )  # fmt: skip
    converted.write(folder / "a.safetensors", about, builders.arrays(model))
    return folder / "a.safetensors"


@pytest.fixture(scope="module")
def logits(file) -> np.ndarray:
    """The model's own, of images that NumPy has scaled."""
    model = builders.create("xception", 10, middle_blocks=0, width=0.1)
    return np.asarray(jax.jit(lambda x: model(x))(scaled(np.stack(pixels())).astype(np.float32)))


def test_the_default_is_the_papers_range_and_the_same_program_as_before():
    model = builders.create("xception")
    given = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    found = np.asarray(model.normalize(given))
    assert (found.min(), found.max()) == (-1, 1)
    np.testing.assert_array_equal(found, given.astype(np.float32) / np.float32(127.5) - 1)
    ours = jax.jit(lambda x: model.normalize(x)).lower(given).as_text()
    before = jax.jit(lambda x: x.astype(np.float32) / 127.5 - 1).lower(given).as_text()
    assert ours == before


def test_another_mean_is_torchvisions():
    model = builders.create("xception")
    model.mean, model.std = MEAN, STD
    found = model.normalize(np.stack(pixels()))
    np.testing.assert_allclose(found, scaled(np.stack(pixels())), atol=1e-6)


def test_load_predict_convert_and_export_scale_by_the_weights(file, logits, tmp_path):
    model = builders.create("xception", 10, seed=1, middle_blocks=0, width=0.1)
    weights.load(model, file)
    loaded = jax.jit(lambda x: model(model.normalize(x)))(np.stack(pixels()))
    np.testing.assert_allclose(loaded, logits, atol=1e-4)
    predicted = Classifier(file).predict(pixels())
    np.testing.assert_allclose([each.logits for each in predicted], logits, atol=1e-4)
    again = tmp_path / "again.safetensors"
    convert.convert(file, again, source_format="xception_jax")
    repeated = Classifier(again).predict(pixels())
    for each, other in zip(predicted, repeated, strict=True):
        np.testing.assert_array_equal(each.logits, other.logits)
    for by in ("inside", "outside"):
        result = export.export_file(again, tmp_path / by, platforms=("cpu",), resize=by)
        assert (
            "subtracts the mean [0.485, 0.456, 0.406] and divides by"
            in result.about["preprocessing"]
        )
        found = Classifier(tmp_path / by).predict(pixels())
        np.testing.assert_allclose(
            [each.probabilities for each in found],
            [each.probabilities for each in predicted],
            atol=1e-5,
        )


def test_other_libraries_are_told(file, tmp_path):
    result = convert.convert(
        file, tmp_path / "a.h5", source_format="xception_jax", target_format="keras"
    )
    [note] = [note for note in result.notes if "mean" in note]
    assert "NOTE: these weights are for pixels of mean (0.485, 0.456, 0.406)" in note


def test_a_run_that_starts_from_weights_keeps_their_mean(file, tmp_path):
    """In training, evaluation, export, a continued run, and a run from this one."""
    config, run = make_small_config(), tmp_path / "run"
    config.init_from, config.duration = str(file), "2 steps"
    config.eval.every = config.checkpoint.every = "1 step"
    config.model.dropout = 0.0
    config.optimizer.learning_rate = 1e-9
    config.ema.decay = 0.0
    console = make_console()
    with console.capture() as captured:
        train.train(config, run, console=console)
    said = captured.get().replace("\n", " ")
    assert "mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)" in said
    data = read_config(run).data
    assert (data.mean, data.std) == (MEAN, STD)
    source = readers.open_split("optical_digits", "test")
    digits = [cv2.imdecode(np.frombuffer(source[i].encoded, np.uint8), 1) for i in range(360)]
    answers = Classifier(run).predict(digits)
    right = sum(each.top(1)[0][0] == str(source[i].label) for i, each in enumerate(answers))
    assert right / 360 == pytest.approx(evaluate.evaluate(run).metrics["top1"])
    config.duration = "3 steps"
    assert train.train(config, run, allow_config_changes=True).step == 3
    config.data.mean = (0.5, 0.5, 0.5)
    with pytest.raises(UsageError, match=r"data\.mean"):
        train.train(config, run, allow_config_changes=True)
    held = pretrained.open_pretrained(run)
    assert (held.mean, held.std) == (MEAN, STD)


def test_a_run_of_an_older_version_scales_as_it_did(small_config):
    flat = config_lib.flatten(config_lib.resolve(small_config))
    del flat["data.mean"], flat["data.std"]
    begun = config_lib.from_flat(json.loads(json.dumps(flat)))
    assert begun.data.mean == begun.data.std == (0.5, 0.5, 0.5)
    assert config_lib.resolve(small_config, begun).data.std == (0.5, 0.5, 0.5)


def test_a_mean_of_two_numbers_is_refused(small_config):
    small_config.data.mean = (0.5, 0.5)
    with pytest.raises(UsageError, match=r"data\.mean is \(0\.5, 0\.5\); it takes 3 numbers"):
        config_lib.check_fields(small_config)
