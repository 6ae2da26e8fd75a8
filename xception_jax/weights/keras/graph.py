"""The graphs of Keras' Xception and Inception V3 up to the features, to compare with a config.

The source is keras/src/applications of Keras 3.15. Layers have the names that Keras gives them in
a new process, as in `keras.names.Layer`, and are created in Keras' order.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Node:
    """A layer in a graph.

    Attributes:
      name: the layer's name.
      kind: its Keras class.
      traits: its settings that change the output.
      inputs: its inputs in order; empty for the node of the images.
    """

    name: str
    kind: str
    traits: dict[str, Any] = field(default_factory=dict)
    inputs: Sequence["Node"] = ()


_CONV = {"strides": (1, 1), "padding": "valid", "dilation_rate": (1, 1), "activation": "linear",
         "use_bias": False, "data_format": "channels_last"}  # fmt: skip
_POOL = {"pool_size": (3, 3), "data_format": "channels_last"}
# The traits of each class, with Keras' defaults for those that a config leaves out.
TRAITS: dict[str, dict[str, Any]] = {
    "Conv2D": _CONV | {"kernel_size": None, "use_bias": True, "groups": 1},
    "SeparableConv2D": _CONV | {"kernel_size": None, "use_bias": True, "depth_multiplier": 1},
    "BatchNormalization": {"axis": -1, "center": True, "scale": True},
    "Activation": {"activation": "linear"},
    "MaxPooling2D": _POOL | {"pool_size": (2, 2), "strides": None, "padding": "valid"},
    "AveragePooling2D": _POOL | {"pool_size": (2, 2), "strides": None, "padding": "valid"},
    "Concatenate": {"axis": -1},
    "Add": {},
}


class _Builder:
    def __init__(self) -> None:
        self.made_up = Counter[str]()

    def add(self, kind: str, inputs: Sequence[Node], name: str | None, **traits: Any) -> Node:
        if name is None:
            stem = {"Conv2D": "conv2d", "BatchNormalization": "batch_normalization"}.get(kind, kind)
            count = self.made_up[stem]
            self.made_up[stem] += 1
            name = f"{stem}_{count}" if count else stem
        return Node(name, kind, TRAITS[kind] | traits, inputs)

    def conv(self, x: Node, window: Sequence[int], name: str | None = None, **traits: Any) -> Node:
        own = _CONV | {"kernel_size": tuple(window)} | traits
        return self.add("Conv2D", [x], name, **own)

    def norm(self, x: Node, name: str | None = None, **traits: Any) -> Node:
        return self.add("BatchNormalization", [x], name, **traits)

    def relu(self, x: Node) -> Node:
        return self.add("Activation", [x], None, activation="relu")

    def pool(self, kind: str, x: Node, stride: int, padding: str) -> Node:
        return self.add(kind, [x], None, pool_size=(3, 3), strides=(stride,) * 2, padding=padding)


def xception() -> Node:
    """The last node before the pooling."""
    build, x = _Builder(), Node("images", "Images")
    for i, stride in ((1, 2), (2, 1)):
        x = build.conv(x, (3, 3), f"block1_conv{i}", strides=(stride, stride))
        x = build.relu(build.norm(x, f"block1_conv{i}_bn"))

    def unit(x: Node, name: str) -> Node:
        own = _CONV | {"kernel_size": (3, 3), "padding": "same"}
        x = build.add("SeparableConv2D", [x], name, **own)
        return build.norm(x, f"{name}_bn")

    for block in range(2, 14):
        skip = x
        if shrinks := block in (2, 3, 4, 13):
            skip = build.conv(x, (1, 1), strides=(2, 2), padding="same")
            skip = build.norm(skip)
        for i in range(1, 3 if shrinks else 4):
            # Block 1 already ends in a ReLU.
            x = x if (block, i) == (2, 1) else build.relu(x)
            x = unit(x, f"block{block}_sepconv{i}")
        x = build.pool("MaxPooling2D", x, 2, "same") if shrinks else x
        x = build.add("Add", [x, skip], None)
    for i in (1, 2):
        x = build.relu(unit(x, f"block14_sepconv{i}"))
    return x


def inception_v3() -> Node:
    """The last node before the pooling."""
    build, x = _Builder(), Node("images", "Images")

    def conv(x: Node, window: tuple[int, int], stride: int = 1, padding: str = "same") -> Node:
        x = build.conv(x, window, strides=(stride, stride), padding=padding)
        return build.relu(build.norm(x, scale=False))

    def tower(x: Node, *windows: tuple[int, int], reduces: bool = False) -> Node:
        for i, window in enumerate(windows, start=1):
            last = reduces and i == len(windows)
            x = conv(x, window, *((2, "valid") if last else ()))
        return x

    def pooled(x: Node) -> Node:
        return conv(build.pool("AveragePooling2D", x, 1, "same"), (1, 1))

    def split(x: Node) -> Node:
        return build.add("Concatenate", [conv(x, (1, 3)), conv(x, (3, 1))], None)

    def joined(*branches: Node) -> Node:
        return build.add("Concatenate", branches, None)

    one, three, row, column = (1, 1), (3, 3), (1, 7), (7, 1)
    x = conv(x, three, 2, "valid")
    x = conv(conv(x, three, 1, "valid"), three)
    x = build.pool("MaxPooling2D", x, 2, "valid")
    x = conv(conv(x, one, 1, "valid"), three, 1, "valid")
    x = build.pool("MaxPooling2D", x, 2, "valid")
    for _ in range(3):
        x = joined(tower(x, one), tower(x, one, (5, 5)), tower(x, one, three, three), pooled(x))
    x = joined(tower(x, three, reduces=True), tower(x, one, three, three, reduces=True),
               build.pool("MaxPooling2D", x, 2, "valid"))  # fmt: skip
    for _ in range(4):
        x = joined(tower(x, one), tower(x, one, row, column),
                   tower(x, one, column, row, column, row), pooled(x))  # fmt: skip
    x = joined(tower(x, one, three, reduces=True), tower(x, one, row, column, three, reduces=True),
               build.pool("MaxPooling2D", x, 2, "valid"))  # fmt: skip
    for _ in range(2):
        x = joined(tower(x, one), split(tower(x, one)), split(tower(x, one, three)), pooled(x))
    return x


FEATURES = {"xception": xception, "inception_v3": inception_v3}
