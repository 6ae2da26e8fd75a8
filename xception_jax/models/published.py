"""What is known of the models: their sizes, and the accuracy and weights that others report."""

from dataclasses import asdict, dataclass
from typing import Any

from xception_jax import models

# The side of the images, in pixels, that all of these models are published for.
IMAGE_SIZE = 299


@dataclass(frozen=True)
class Size:
    """How large a model is, with its defaults and 1000 classes.

    Written down, since to count takes seconds a model; tests hold it against `counts`.

    Attributes:
      parameters: that training changes.
      multiply_adds: of one image of `IMAGE_SIZE`, forward.
      min_image_size: the least side of an image, pixels.
    """

    parameters: int
    multiply_adds: int
    min_image_size: int


SIZES = {
    "inception_v3": Size(23_817_352, 5_713_216_096, 75),
    "legacy_xception": Size(22_855_952, 8_357_403_496, 7),
    "xception": Size(22_855_952, 8_357_403_496, 7),
    "xception41": Size(26_969_560, 9_204_134_312, 1),
    "xception41p": Size(26_907_752, 9_204_134_312, 1),
    "xception65": Size(39_916_312, 13_852_682_216, 1),
    "xception65p": Size(39_819_560, 13_852_682_216, 1),
    "xception71": Size(42_338_736, 17_946_553_928, 1),
}


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


def describe(name: str) -> dict[str, Any]:
    """What there is to say of a model.

    Returns:
      `name`, `parameters` at 1000 classes, `multiply_adds` of one image of `image_size` pixels a
      side, `min_image_size`, and `published`, a list of `Result` as dicts.

    Raises:
      UsageError: there is no such model.
    """
    models.check_name(name)
    return {
        "name": name,
        **asdict(SIZES[name]),
        "image_size": IMAGE_SIZE,
        "published": [asdict(result) for result in RESULTS[name]],
    }
