"""Predictions beside Keras' and timm's own, of fifty pictures with the same weights and preset."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import pictures
from tests.weights.test_against_libraries import import_timm
from xception_jax.predict import Classifier

pytestmark = [
    pytest.mark.slow,
    # Pillow, of palettes that have transparent colours.
    pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning"),
    # Keras 3.15 reads its own variables in a way that NumPy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
os.environ.setdefault("KERAS_BACKEND", "jax")

CLASSES, SIZE = 7, 96


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Files of odd formats, sides and colours, none of which is larger than 400 pixels."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    # Of 16 bits Pillow keeps the lowest 8; from CMYK it converts in its own way.
    odd = {name: content for name, content in pictures.odd().items()
           if name not in ("grey16.png", "cmyk.jpg")}  # fmt: skip
    for name, content in odd.items():
        (folder / name).write_bytes(content)
    for i in range(50 - len(odd)):
        small = rng.integers(0, 256, (*rng.integers(2, 9, 2), 3), np.uint8)
        sides = tuple(rng.integers(20, 400, 2).tolist())
        image = Image.fromarray(small).resize(sides, Image.Resampling.BICUBIC)
        kind = ["png", "jpg", "webp"][i % 3]
        image.convert(["RGB", "L"][i % 2]).save(folder / f"{i:02}.{kind}")
    return sorted(folder.iterdir())


def weight(rng: np.random.Generator, name: str, shape: tuple[int, ...], inputs: int) -> np.ndarray:
    """Random values by which the answers depend on the picture."""
    if "var" in name:
        return rng.uniform(0.7, 1.7, shape).astype(np.float32)
    if len(shape) == 1:
        middle = 1.0 if name.endswith(("gamma", "scale")) else 0.0
        return rng.normal(middle, 0.1, shape).astype(np.float32)
    return rng.normal(0, np.sqrt((1 if inputs == 9 else 2) / inputs), shape).astype(np.float32)


def head(rng: np.random.Generator, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A kernel `[features, classes]` and a bias, by which each class answers some pictures."""
    kernel = rng.normal(size=(features.shape[1], CLASSES))
    logits = features @ kernel
    kernel /= logits.std(0)
    return kernel.astype(np.float32), -(features @ kernel).mean(0).astype(np.float32)


def assert_same_answers(photos: list[Path], found, expected: np.ndarray) -> None:
    assert len(found) == len(expected) == 50
    assert np.std(expected, axis=0).max() > 0.02, "the answers hardly depend on the picture"
    for photo, each, row in zip(photos, found, expected, strict=True):
        assert not each.error, photo
        np.testing.assert_allclose(each.probabilities, row, atol=1e-4, err_msg=photo.name)
        assert each.top(1)[0][0] == str(row.argmax()), photo


def test_predictions_are_those_of_keras(photos, tmp_path):
    keras = pytest.importorskip("keras")
    model = keras.applications.Xception(
        weights=None, classes=CLASSES, input_shape=(SIZE, SIZE, 3), pooling="avg"
    )
    rng = np.random.default_rng(1)
    for variable in model.variables:
        shape = tuple(variable.shape)
        inputs = 9 if "depthwise" in variable.name else int(np.prod(shape[:-1]))
        variable.assign(weight(rng, variable.name, shape, inputs))
    images = np.stack([
        keras.utils.img_to_array(keras.utils.load_img(photo, target_size=(SIZE, SIZE)))
        for photo in photos
    ])  # fmt: skip
    images = keras.applications.xception.preprocess_input(images)
    features = keras.Model(model.inputs, model.layers[-2].output).predict(images, verbose=0)
    model.layers[-1].set_weights(head(rng, features))
    model.save(tmp_path / "net.keras")
    expected = model.predict(images, verbose=0)
    found = Classifier(tmp_path / "net.keras", model="xception").predict(photos)
    assert_same_answers(photos, found, expected)


def test_predictions_are_those_of_timm(photos, tmp_path):
    """As its `inference.py` makes them."""
    timm = import_timm()
    import torch
    from safetensors.torch import save_file

    model = timm.create_model("legacy_xception", num_classes=CLASSES).eval()
    rng = np.random.default_rng(1)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 0:
            tensors[name] = tensor
            continue
        shape = tuple(tensor.shape)
        name_ = f"{name}.scale" if tensor.ndim == 1 and name.endswith("weight") else name
        tensors[name] = torch.from_numpy(weight(rng, name_, shape, int(np.prod(shape[1:]))))
    model.load_state_dict(tensors)
    stated = {"input_size": (3, SIZE, SIZE), "crop_pct": 0.9, "interpolation": "bicubic",
              "mean": (0.5,) * 3, "std": (0.5,) * 3}  # fmt: skip
    about = {"architecture": "legacy_xception", "num_classes": CLASSES, "pretrained_cfg": stated}
    (tmp_path / "config.json").write_text(json.dumps(about))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(stated))
    opened = []
    for photo in photos:
        with Image.open(photo) as image:
            opened.append(transform(image.convert("RGB")))
    images = torch.stack(opened)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images), pre_logits=True).numpy()
        kernel, bias = head(rng, features)
        model.fc.weight.copy_(torch.from_numpy(kernel.T.copy()))
        model.fc.bias.copy_(torch.from_numpy(bias))
        expected = model(images).softmax(1).numpy()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    found = Classifier(tmp_path / "model.safetensors").predict(photos)
    assert_same_answers(photos, found, expected)
