"""Facts about a model: its size, published results, and its counterparts in Keras and timm."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

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


# Takes a model; returns its layers with weights, each with its name in the other library.
NameLayers = Callable[[Any], Iterable[tuple[Any, str | None]]]


@dataclass(frozen=True)
class Foreign:
    """The same model in Keras or timm, whose weights files can be read and written.

    Attributes:
      name: its name in `keras.applications` or `timm.create_model`.
      overrides: the overrides that make this package's model compute the same.
      crop: the share of the shorter side that the library's evaluation keeps; None: its default.
      classifier: the name of the classifier layer in a timm file.
      layers: pairs each layer of a model with its name in the library, for a model that is not
        built like one of this package. Layers are those of `models.layers` and `nnx.Linear`. For
        Keras they are in the order of its graph, with None for names that Keras generates.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    crop: float | None = None
    classifier: str = "fc"
    layers: NameLayers | None = None
