"""What is known of a model: its size, and the accuracy and weights that others report."""

from dataclasses import dataclass

# The side of the images, in pixels, that the models are published for.
IMAGE_SIZE = 299


@dataclass(frozen=True)
class Size:
    """How large a model is, with its defaults and 1000 classes.

    Attributes:
      parameters: that training changes.
      multiply_adds: of one image of `IMAGE_SIZE`, forward.
      min_image_size: the least side of an image, pixels.
    """

    parameters: int
    multiply_adds: int
    min_image_size: int


@dataclass(frozen=True)
class Result:
    """A published accuracy: one model, one crop.

    Attributes:
      top1, top5: in percent.
      source: a paper's table (`arXiv:...`), or the collection of weights and their name in it:
        `keras` stands for keras.io/api/applications, `timm` for results/results-imagenet.csv of
        huggingface/pytorch-image-models.
      weights: whether the source has weights too.
    """

    top1: float
    top5: float
    source: str
    weights: bool = True
