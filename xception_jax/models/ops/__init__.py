"""Operations whose fastest form depends on the platform. Only the layers call them.

TPU and GPU use XLA's own operations. On CPU, some of those are ten times slower. There, other forms
replace them: passes over plain slices, which XLA vectorizes, and matrix products. All forms have
the semantics and the gradients of the plain operation. They keep the batch axis, so that a step on
many devices needs no communication. Only reverse-mode derivatives are supported. docs/speed.md has
the measurements, also of rejected alternatives.
"""

from xception_jax.models.ops.convolutions import conv, depthwise, grouped, pointwise, separable
from xception_jax.models.ops.normalization import affine, moments
from xception_jax.models.ops.pooling import average_pool, max_pool

__all__ = [
    "affine", "average_pool", "conv", "depthwise", "grouped", "max_pool", "moments", "pointwise",
    "separable",
]  # fmt: skip
