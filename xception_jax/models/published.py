"""What others report of the models: accuracy on ImageNet's validation images, and their weights."""

from dataclasses import dataclass

# The side of the images, in pixels, that all of these models are published for.
IMAGE_SIZE = 299


@dataclass(frozen=True)
class Result:
    """A published accuracy: one model, one crop.

    Attributes:
      top1, top5: in percent.
      source: a paper's table, or the collection of weights and their name in it: `keras` stands
        for keras.io/api/applications, `timm` for results/results-imagenet.csv of
        huggingface/pytorch-image-models.
      weights: whether the source has weights too.
    """

    top1: float
    top5: float
    source: str
    weights: bool = True


def _paper(top1: float, top5: float) -> Result:
    return Result(top1, top5, "arXiv:1610.02357, table 1", weights=False)


RESULTS: dict[str, list[Result]] = {
    "inception_v3": [
        _paper(78.2, 94.1),
        Result(77.9, 93.7, "keras InceptionV3"),
        Result(77.866, 93.644, "timm inception_v3.tf_in1k"),
        Result(77.598, 93.726, "timm inception_v3.tf_adv_in1k"),
        Result(77.472, 93.468, "timm inception_v3.tv_in1k"),
        Result(78.806, 94.372, "timm inception_v3.gluon_in1k"),
    ],
    "xception": [_paper(79.0, 94.5), Result(79.0, 94.5, "keras Xception")],
    "legacy_xception": [Result(79.058, 94.396, "timm legacy_xception.tf_in1k")],
    "xception41": [Result(78.550, 94.282, "timm xception41.tf_in1k")],
    "xception65": [
        Result(79.558, 94.656, "timm xception65.tf_in1k"),
        Result(83.186, 96.596, "timm xception65.ra3_in1k"),
    ],
    "xception71": [Result(79.920, 94.908, "timm xception71.tf_in1k")],
    "xception41p": [Result(81.978, 95.784, "timm xception41p.ra3_in1k")],
    "xception65p": [Result(83.160, 96.506, "timm xception65p.ra3_in1k")],
}
