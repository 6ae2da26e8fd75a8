"""Facts about a model: its size, and published accuracies and weights."""

from dataclasses import dataclass

# The published models' image size: its side in pixels.
IMAGE_SIZE = 299


@dataclass(frozen=True)
class Size:
    """The size of a model with its defaults and 1000 classes.

    Attributes:
      parameters: the number that training changes.
      multiply_adds: of the forward pass of one image of `IMAGE_SIZE`.
      min_image_size: the smallest side of an image, pixels.
    """

    parameters: int
    multiply_adds: int
    min_image_size: int


@dataclass(frozen=True)
class Result:
    """A published accuracy: one model, one crop.

    Attributes:
      top1: in percent.
      top5: in percent.
      source: a paper's table (`arXiv:...`), or a collection and the name of weights in it. `keras`
        is keras.io/api/applications; `timm` is results/results-imagenet.csv of
        huggingface/pytorch-image-models.
      weights: whether the source also has weights.
    """

    top1: float
    top5: float
    source: str
    weights: bool = True
