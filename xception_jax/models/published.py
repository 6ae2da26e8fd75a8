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


# From a model, its layers that have weights, each with its name in the other library.
NameLayers = Callable[[Any], Iterable[tuple[Any, str | None]]]


@dataclass(frozen=True)
class Foreign:
    """The same model in another library, whose files of weights can be read and written.

    Attributes:
      name: there: of `keras.applications`, or of `timm.create_model`.
      overrides: what it computes with there, in the names of our overrides.
      crop: the share of the shorter side that the library's evaluation keeps; None: its usual one.
      classifier: the name of the layer of the logits in a timm file.
      layers: pairs each layer of a model with its name there, for a model that is not built like
        one of this package. Layers are those of `models.layers` and `nnx.Linear`. For Keras they
        come in the order of its graph, and None stands for a name that Keras makes up.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    crop: float | None = None
    classifier: str = "fc"
    layers: NameLayers | None = None
