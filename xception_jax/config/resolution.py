"""Resolves the open fields of a config, and derives values from several fields."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from ml_collections import ConfigDict

from xception_jax.config.fields import Duration
from xception_jax.config.schema import FOLDER_RULES, HALF
from xception_jax.config.values import add_missing, flatten
from xception_jax.errors import UsageError

# Fields that only matter at a run's first start. A continued run keeps its values.
_AT_START = ("optimizer.initial_squares",)
# Fields with the value that leaves them open. A continued run keeps its resolved values.
_OPEN: dict[str, Any] = {
    "model.dtype": "auto", "model.matmul_precision": "auto", "data.image_size": None,
    "data.eval_preset": None, "data.eval_crop": None, "data.exif": "auto",
    "data.mean": None, "data.std": None, "data.white_level": 0, "data.folder_rules": 0,
    "eval.every": "auto", "checkpoint.every": "auto",
}  # fmt: skip
# The usual shares of an image: Inception's (in its `preprocess_for_eval`), and timm's
# `DEFAULT_CROP_PCT`, for models without their own value in timm (`models.Foreign`).
_CROPS = {"inception": 0.875, "timm": 0.875}


def log_writers(config: ConfigDict) -> tuple[str, ...]:
    """The names of the log writers, without `metrics.jsonl`."""
    return (*(("tensorboard",) if config.log.tensorboard else ()), *config.log.writers)


def microbatch_count(config: ConfigDict, devices: int) -> int:
    """The number of microbatches of a step, so that no device exceeds its limit of examples."""
    batch, limit = config.data.batch_size, config.optimizer.microbatch
    if not limit or batch <= limit * devices:
        return 1
    virtual = config.model.bn_virtual_batch
    if virtual is None:
        raise UsageError(
            f"config.optimizer.microbatch is {limit} and each device has {batch // devices} images "
            f"of the batch; set config.model.bn_virtual_batch, so that splitting a batch does not "
            f"change its statistics"
        )
    # Each part must have complete virtual batches on every device: XLA would replicate a part that
    # is not divisible by the devices.
    for parts in range(2, batch // (virtual * devices) + 1):
        if batch % (parts * virtual * devices) == 0 and batch <= parts * limit * devices:
            return parts
    raise UsageError(
        f"config.optimizer.microbatch is {limit}, but the batch of {batch} on {devices} devices "
        f"cannot be split into such small parts of complete virtual batches "
        f"(config.model.bn_virtual_batch is {virtual}); raise it, or lower bn_virtual_batch"
    )


def loss_name(config: ConfigDict, multilabel: bool) -> str:
    """The name of the loss; `auto` depends on the data."""
    if config.loss.name != "auto":
        return str(config.loss.name)
    return "sigmoid" if multilabel else "softmax"


def compute_dtype(name: str) -> str:
    """The dtype of `model.dtype`; `auto` is bfloat16 on hardware that supports it well."""
    import jax

    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def settled(config: ConfigDict, begun: ConfigDict | None) -> ConfigDict:
    """A copy whose open fields have the values of the run to continue.

    Args:
      config: can be invalid.
      begun: the resolved config of that run, or None.
    """
    copy = ConfigDict(config).copy_and_resolve_references()
    add_missing(copy)
    if begun is not None:
        given, then = flatten(copy), flatten(begun)
        copy.update_from_flattened_dict(
            {name: then[name] for name, unset in _OPEN.items() if given.get(name) == unset}
        )
    return copy


# The minimum number of steps between evaluations and between checkpoints for `auto`.
_APART = 100


def period(config: ConfigDict, name: str, epoch: int) -> Duration:
    """The duration of a field such as `eval.every`, for `epoch` training examples.

    `auto` depends on the config and the data only, not on time. So all processes of a run evaluate
    and save after the same steps, also after a kill.
    """
    text = flatten(config)[name]
    if text != "auto":
        return Duration.parse(text)
    batch = config.data.batch_size
    steps = Duration.parse(config.duration).steps(batch_size=batch, epoch=epoch)
    examples = min(_APART, -(-steps // 10)) * batch
    return Duration(Fraction(-(-examples // epoch)), "epochs")


def due(config: ConfigDict, name: str, epoch: int) -> Callable[[int], bool]:
    """A function of a step: whether it is the first to reach a multiple of a field's `period`."""
    length, size = period(config, name, epoch), {"batch_size": config.data.batch_size}
    return lambda step: (
        length.passed(step, **size, epoch=epoch) > length.passed(step - 1, **size, epoch=epoch)
    )


def matmul_precision(config: ConfigDict) -> str | None:
    """JAX's name of the precision in `model.matmul_precision`; None: JAX's default."""
    asked = config.model.matmul_precision
    return {"auto": "float32", "default": None}.get(asked, asked)


def resolve(config: ConfigDict, begun: ConfigDict | None = None) -> ConfigDict:
    """A copy without open fields, so that a run keeps its meaning when defaults change.

    Args:
      config: valid.
      begun: the resolved config of the run to continue, if any.
    """
    resolved = settled(config, begun)
    if begun is not None:
        then = flatten(begun)
        resolved.update_from_flattened_dict({name: then[name] for name in _AT_START})
    resolved.data.folder_rules = resolved.data.folder_rules or FOLDER_RULES
    resolved.model.dtype = compute_dtype(resolved.model.dtype)
    data = resolved.data
    data.image_size = data.image_size or 299
    data.eval_preset = data.eval_preset or "area"
    data.eval_crop = data.eval_crop or own_crop(data.eval_preset)
    data.mean, data.std = data.mean or HALF, data.std or HALF
    if resolved.model.matmul_precision == "auto":
        resolved.model.matmul_precision = "float32"
    resolved.data.exif = "on" if applies_exif(resolved) else "off"
    return resolved


def own_crop(preset: str) -> float:
    """The default share of an image that evaluation keeps, see `data.eval_crop`."""
    return _CROPS.get(preset, 1.0)


def applies_exif(config: ConfigDict) -> bool:
    """Whether images are rotated by their EXIF orientation, see `data.exif`."""
    if config.data.exif != "auto":
        return bool(config.data.exif == "on")
    return config.data.eval_preset not in ("inception", "keras", "timm")


def model_overrides(config: ConfigDict) -> dict[str, Any]:
    """The fields of `config.model` that change the model's defaults."""
    own = ("name", "dtype", "matmul_precision")
    return {k: v for k, v in config.model.items() if k not in own and v is not None}
