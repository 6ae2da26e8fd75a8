"""What is known of a model: its size, what others report of it, and what it is elsewhere."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
