"""Models whose weights other libraries have: a short Xception, and one with other names there."""

from my_model import Plain

from xception_jax import models
from xception_jax.models.xception import Xception


@models.register(
    "short_xception",
    keras=models.Foreign("Xception", {"bn_epsilon": 1e-3, "pool_padding": "same"}),
    timm=models.Foreign("legacy_xception", {"pool_padding": "symmetric"}, crop=0.9),
    middle_blocks=2,
)
class ShortXception(Xception):
    pass


def names(model):
    for i, conv in enumerate(model.convs):
        yield conv.conv, f"features.{3 * i}"
        yield conv.bn, f"features.{3 * i + 1}"
    if model.head:
        yield model.head.classifier, "classifier"


THEIRS = models.Foreign("plain", classifier="classifier", layers=names)
models.register("plain_torch", timm=THEIRS)(Plain)
