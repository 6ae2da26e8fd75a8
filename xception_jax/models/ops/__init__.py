"""Operations whose fastest form depends on the platform. The layers call these, nobody else.

TPU and GPU get XLA's own operations. On CPU some of those are slower by an order of magnitude, and
forms made of what XLA compiles well there take their place: passes over plain slices, which it
vectorizes, and products of matrices. All forms have the semantics and the gradients of the plain
operation, and keep the batch axis, so that a step on many devices stays free of communication.
docs/speed.md has the measurements, also of what was tried and lost. Reverse-mode derivatives only.
"""

from xception_jax.models.ops.convolutions import conv, depthwise, grouped, pointwise, separable
from xception_jax.models.ops.normalization import affine, moments
from xception_jax.models.ops.pooling import average_pool, max_pool

__all__ = [
    "affine", "average_pool", "conv", "depthwise", "grouped", "max_pool", "moments", "pointwise",
    "separable",
]  # fmt: skip
