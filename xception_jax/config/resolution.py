"""What a config means: its fields left open, settled; and what follows from several of them."""

from fractions import Fraction
from typing import Any

from ml_collections import ConfigDict

from xception_jax.config.fields import Duration
from xception_jax.config.schema import FOLDER_RULES
from xception_jax.config.values import add_missing, flatten
from xception_jax.errors import UsageError

# Fields that matter at a run's start alone. A run that goes on keeps its own.
_AT_START = ("optimizer.initial_squares",)
# Fields that a config leaves open with this value. A run that goes on keeps what it settled.
_OPEN: dict[str, Any] = {
    "model.dtype": "auto", "model.matmul_precision": "auto", "data.image_size": None,
    "data.eval_preset": None, "data.eval_crop": None, "data.exif": "auto", "data.white_level": 0,
    "data.folder_rules": 0, "eval.every": "auto", "checkpoint.every": "auto",
}  # fmt: skip
# Inception's own share of a picture (its `preprocess_for_eval`), and timm's `DEFAULT_CROP_PCT`, of
# models that timm says no other of (`models.Foreign`).
_CROPS = {"inception": 0.875, "timm": 0.875}


def log_writers(config: ConfigDict) -> tuple[str, ...]:
    """The log's writers besides `metrics.jsonl`, by name."""
    return (*(("tensorboard",) if config.log.tensorboard else ()), *config.log.writers)


def microbatch_count(config: ConfigDict, devices: int) -> int:
    """Into how many parts a step's batch is cut, for no device to take more than its limit."""
    batch, limit = config.data.batch_size, config.optimizer.microbatch
    if not limit or batch <= limit * devices:
        return 1
    virtual = config.model.bn_virtual_batch
    if virtual is None:
        raise UsageError(
            f"config.optimizer.microbatch is {limit} and a device's share of the batch is "
            f"{batch // devices}; set config.model.bn_virtual_batch, so that the parts' batch "
            f"statistics are the whole batch's"
        )
    # Each part must hold whole virtual batches on every device: XLA would replicate the rows of a
    # part that the devices cannot share evenly.
    for parts in range(2, batch // (virtual * devices) + 1):
        if batch % (parts * virtual * devices) == 0 and batch <= parts * limit * devices:
            return parts
    raise UsageError(
        f"config.optimizer.microbatch is {limit}; the batch of {batch} has no parts that small of "
        f"whole virtual batches (config.model.bn_virtual_batch, {virtual}) on each of {devices} "
        f"devices; raise it, or lower the virtual batch"
    )


def loss_name(config: ConfigDict, multilabel: bool) -> str:
    """The loss that `loss.name` stands for; `auto` is what the data needs."""
    if config.loss.name != "auto":
        return str(config.loss.name)
    return "sigmoid" if multilabel else "softmax"


def compute_dtype(name: str) -> str:
    """The dtype that `model.dtype` names; `auto` is bfloat16 where the hardware is made for it."""
    import jax

    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def settled(config: ConfigDict, begun: ConfigDict | None) -> ConfigDict:
    """A copy in which what the config leaves open is as the run that is to go on has settled it.

    Args:
      config: may be invalid.
      begun: the resolved config of that run; None: there is none.
    """
    copy = ConfigDict(config).copy_and_resolve_references()
    add_missing(copy)
    if begun is not None:
        given, then = flatten(copy), flatten(begun)
        copy.update_from_flattened_dict(
            {name: then[name] for name, unset in _OPEN.items() if given.get(name) == unset}
        )
    return copy


# Steps that are at least between evaluations and between checkpoints, where that is left open.
_APART = 100


def period(config: ConfigDict, name: str, epoch: int) -> Duration:
    """What a field of the kind of `eval.every` stands for, with `epoch` examples to train on.

    `auto` follows from the config and the data alone, not from a clock: a run that was killed, and
    every process of it, evaluates and saves after the same steps.
    """
    text = flatten(config)[name]
    if text != "auto":
        return Duration.parse(text)
    batch = config.data.batch_size
    steps = Duration.parse(config.duration).steps(batch_size=batch, epoch=epoch)
    examples = min(_APART, -(-steps // 10)) * batch
    return Duration(Fraction(-(-examples // epoch)), "epochs")


def matmul_precision(config: ConfigDict) -> str | None:
    """What JAX calls the precision that `model.matmul_precision` names; None: JAX' default."""
    asked = config.model.matmul_precision
    return {"auto": "float32", "default": None}.get(asked, asked)


def resolve(config: ConfigDict, begun: ConfigDict | None = None) -> ConfigDict:
    """A copy in which nothing is left open, so that a run stays what it began as.

    Args:
      config: valid.
      begun: the resolved config of the run that is to go on, if there is one.
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
    if resolved.model.matmul_precision == "auto":
        resolved.model.matmul_precision = "float32"
    resolved.data.exif = "on" if applies_exif(resolved) else "off"
    return resolved


def own_crop(preset: str) -> float:
    """The share of a picture that evaluation keeps where nothing says it, see `data.eval_crop`."""
    return _CROPS.get(preset, 1.0)


def applies_exif(config: ConfigDict) -> bool:
    """Whether images are turned by their EXIF orientation, see `data.exif`."""
    if config.data.exif != "auto":
        return bool(config.data.exif == "on")
    return config.data.eval_preset not in ("inception", "keras", "timm")


def model_overrides(config: ConfigDict) -> dict[str, Any]:
    """The fields of `config.model` that change the model from its own defaults."""
    own = ("name", "dtype", "matmul_precision")
    return {k: v for k, v in config.model.items() if k not in own and v is not None}
