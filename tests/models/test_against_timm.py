"""Every model that timm has too, against timm's own with the same weights."""

import numpy as np
import pytest
from PIL import Image

from tests.models import agreement
from xception_jax import weights
from xception_jax.predict import Classifier

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
# timm imports beside a torchvision of another build than torch's, too.
pytest.importorskip("benchmarks.peers.torchvision_operators").declare()
timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("legacy_xception", {}),
        ("inception_v3", {"bn_scale": True, "count_padding": True}),
        ("xception41p", {}),
        *(
            pytest.param(name, {}, marks=pytest.mark.long)
            for name in ("xception41", "xception65", "xception71", "xception65p")
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_features_and_logits_are_timms(name, overrides, tmp_path):
    theirs = drawn(name)
    model = agreement.create(name, **overrides)
    safetensors.save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    weights.load(model, tmp_path / "theirs.safetensors")

    def reference(images):
        with torch.inference_mode():
            features = theirs.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2)))
            return features.numpy().transpose(0, 2, 3, 1), theirs.forward_head(features).numpy()

    agreement.assert_agrees(model, reference)


def drawn(name):
    """The model of timm, with the weights of `agreement`."""
    theirs = timm.create_model(name, pretrained=False, num_classes=1000).eval()
    rng = np.random.default_rng(0)
    for module in theirs.modules():
        if isinstance(module, torch.nn.Conv2d):
            shape = module.weight.shape
            drawn = agreement.kernel(rng, shape, int(np.prod(shape[1:])), name)
            module.weight.data = torch.from_numpy(drawn)
        elif isinstance(module, torch.nn.BatchNorm2d):
            drawn = agreement.batch_statistics(rng, module.num_features)
            for field, kind in zip(
                ("weight", "bias", "running_mean", "running_var"), drawn.values(), strict=True
            ):
                getattr(module, field).data = torch.from_numpy(kind)
    return theirs


@pytest.mark.parametrize("tag", ["gluon_in1k", "tf_in1k"])
def test_answers_are_timms_with_the_mean_of_the_weights(tag, tmp_path):
    """From the pictures on, by timm's transform; its `config.json` is beside the weights."""
    name = f"inception_v3.{tag}"
    theirs = drawn(name)
    data = timm.data.resolve_model_data_config(theirs)
    assert (data["mean"] == (0.485, 0.456, 0.406)) == (tag == "gluon_in1k")
    safetensors.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    timm.models._hub.save_config_for_hf(theirs, tmp_path / "config.json")
    transform = timm.data.create_transform(**data, is_training=False)
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (4, 6, 8, 3), np.uint8)
    pictures = [Image.fromarray(each).resize((400, 320), Image.BICUBIC) for each in coarse]
    with torch.inference_mode():
        expected = theirs(torch.stack([transform(picture) for picture in pictures])).numpy()
    found = Classifier(tmp_path / "model.safetensors").predict(pictures)
    logits = np.stack([each.logits for each in found])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.ptp(expected))
    apart = np.abs(expected[0] - expected[1]).max()
    assert apart > 0.01 * np.ptp(expected), "the pictures differ"
