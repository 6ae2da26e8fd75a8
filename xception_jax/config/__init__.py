"""The config of a run: its schema, and the resolution of fields that are left open.

Nothing here opens data or builds a model.
"""

from xception_jax.config.eval_fields import Best, EvalSet, eval_metrics, eval_sets
from xception_jax.config.fields import Field
from xception_jax.config.resolution import (
    applies_exif,
    compute_dtype,
    due,
    log_writers,
    loss_name,
    matmul_precision,
    microbatch_count,
    model_overrides,
    own_crop,
    period,
    resolve,
    settled,
)
from xception_jax.config.schema import HALF, SCHEMA, describe
from xception_jax.config.values import (
    check_fields,
    complete,
    default,
    differences,
    flatten,
    from_flat,
    may_change,
    portable,
    unknown,
)

__all__ = [
    "HALF",
    "SCHEMA",
    "Best",
    "EvalSet",
    "Field",
    "applies_exif",
    "check_fields",
    "complete",
    "compute_dtype",
    "default",
    "describe",
    "differences",
    "due",
    "eval_metrics",
    "eval_sets",
    "flatten",
    "from_flat",
    "log_writers",
    "loss_name",
    "matmul_precision",
    "may_change",
    "microbatch_count",
    "model_overrides",
    "own_crop",
    "period",
    "portable",
    "resolve",
    "settled",
    "unknown",
]
