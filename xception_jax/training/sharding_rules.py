"""The rules for sharding arrays over devices: by their path and by their size."""

import math
import re

from jax.sharding import PartitionSpec

MODEL = "model"

# What is sharded over the axis `model`: the end of a parameter's path, and the dimension. The first
# matching rule applies; other arrays are replicated. Fully connected layers are sharded in turn by
# columns and by rows. So the two exchange nothing, and one sum follows them (arXiv:1909.08053,
# section 3). The classifier is sharded by classes. The optimizer's arrays and the averages are
# sharded like their parameters.
RULES = (
    (r"head\.fc\.\d*[02468]\.kernel", 1),
    (r"head\.fc\.\d*[02468]\.bias", 0),
    (r"head\.fc\.\d*[13579]\.kernel", 0),
    (r"head\.classifier\.kernel", 1),
    (r"head\.classifier\.bias", 0),
)

# Smaller arrays are not sharded over `data`: 75 of Xception's 156, with 0.2 % of the parameters.
SMALLEST = 2**10

# The parts of a state that each value of `mesh.shard` shards over `data`.
SHARDED = {
    "none": (),
    "optimizer": ("opt_state", "ema"),
    "all": ("opt_state", "ema", "params"),
}


def spec(path: str, shape: tuple[int, ...], axes: dict[str, int], over_data: bool) -> PartitionSpec:
    """The sharding of an array.

    Args:
      path: the path of its leaf, as `head.classifier.kernel`.
      shape: the array's shape.
      axes: the mesh's axes and their sizes.
      over_data: whether to shard also over the axes of `data`. The largest dimension that is
        divisible by all of them is used, otherwise several dimensions as far as possible.
    """
    axes_of: list[tuple[str, ...] | str | None] = [None] * len(shape)
    rule = next((d for pattern, d in RULES if re.search(rf"(^|\.){pattern}$", path)), None)
    if rule is not None and MODEL in axes and shape[rule] % axes[MODEL] == 0:
        axes_of[rule] = MODEL
    left = {name: size for name, size in axes.items() if name != MODEL and size > 1}
    if over_data and left and math.prod(shape) >= SMALLEST:
        free = sorted((d for d, a in enumerate(axes_of) if a is None), key=lambda d: -shape[d])
        fits = [d for d in free if shape[d] % math.prod(left.values()) == 0]
        for d in fits[:1] or free:
            taken = _divisors(shape[d], left)
            axes_of[d] = taken or None
            left = {name: size for name, size in left.items() if name not in taken}
    while axes_of and axes_of[-1] is None:
        axes_of.pop()
    return PartitionSpec(*axes_of)


def _divisors(size: int, axes: dict[str, int]) -> tuple[str, ...]:
    """The axes, taken in turn, whose product of sizes divides a dimension."""
    taken = []
    for name, factor in axes.items():
        if size % factor == 0:
            size //= factor
            taken.append(name)
    return tuple(taken)
