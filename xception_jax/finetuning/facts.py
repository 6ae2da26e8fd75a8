"""What the choice of settings depends on: facts about the data, the machine and the weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataFacts:
    """The training data, after anything is held out from it.

    Attributes:
      train: number of training pictures.
      classes: number of classes.
      smallest, largest: numbers of pictures of the smallest and the largest class; 0 if unknown.
      side: median of the shorter sides of the pictures, pixels.
      multilabel: whether a picture can have several labels.
    """

    train: int
    classes: int
    smallest: int
    largest: int
    side: int
    multilabel: bool = False


@dataclass(frozen=True)
class MachineFacts:
    """The devices.

    Attributes:
      platform: `cpu`, `gpu` or `tpu`.
      kind: the device's name.
      devices: their number.
      memory: bytes of each device.
      speed: multiply-adds per second of large matrix products, over all devices, in the compute
        dtype of training.
    """

    platform: str
    kind: str
    devices: int
    memory: int
    speed: float


@dataclass(frozen=True)
class WeightsFacts:
    """The initial weights.

    Attributes:
      name: as the user gave it.
      model: the model's name.
      image_size: the side of the images that they were made for, pixels.
      preset: how these were resized, see `data.eval_preset`.
      multiply_adds: of the forward pass of one such image.
      min_image_size: the smallest side that the model takes.
      blocks: the names of the model's blocks, in their order.
      flows: the names of its flows.
    """

    name: str
    model: str
    image_size: int
    preset: str
    multiply_adds: int
    min_image_size: int
    blocks: tuple[str, ...]
    flows: tuple[str, ...]
