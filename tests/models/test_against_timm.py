"""Every model that timm has too, against timm's own with the same weights."""

import numpy as np
import pytest

from tests.models import agreement
from xception_jax import weights

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
    model = agreement.create(name, **overrides)
    safetensors.save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    weights.load(model, tmp_path / "theirs.safetensors")

    def reference(images):
        with torch.inference_mode():
            features = theirs.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2)))
            return features.numpy().transpose(0, 2, 3, 1), theirs.forward_head(features).numpy()

    agreement.assert_agrees(model, reference)
