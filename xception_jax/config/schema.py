"""The schema of a run: every field, its default, its meaning and its bounds.

A config file starts from `default()`, changes fields, and returns the config from `get_config()`.
The command line changes fields with `--config.field=value`. Nothing heavy is imported here, so that
`--help` and a misspelt field respond immediately.
"""

from dataclasses import replace
from typing import Any

from ml_collections import ConfigDict, config_dict

from xception_jax.config.fields import EXAMPLES, Field
from xception_jax.errors import UsageError, nearest


def _text(default: str | None, help: str, **more: Any) -> Field:
    return Field(default, help, str, **more)


def _int(default: int | None, help: str, low: int = 0, **more: Any) -> Field:
    return Field(default, help, int, low=low, **more)


def _float(default: float | None, help: str, low: float = 0.0, **more: Any) -> Field:
    return Field(default, help, float, low=low, **more)


def _flag(default: bool | None, help: str, **more: Any) -> Field:
    return Field(default, help, bool, **more)


def _tuple(default: tuple[Any, ...] | None, help: str, **more: Any) -> Field:
    return Field(default, help, tuple, **more)


def _every(default: str, help: str) -> Field:
    return Field(default, help, str, duration=True, harmless=True)


# The newest version of the rules for reading a folder of images, see docs/folder.md.
FOLDER_RULES = 2

_OWN = "None: the model's default"
_WEIGHTS = "None: as the weights of init_from need, else"
SCHEMA: dict[str, Field] = {
    "seed": _int(0, "random seed of initial weights, order, crops, augmentation and dropout",
                 high=2**32 - 1),
    "duration": _text("90 epochs", "of the whole run", duration=True),
    "init_from": _text(
        "", "initial weights: a Keras or timm file, a converted file, or a run's folder; a "
        "classifier for other classes is replaced by a new one; empty: from scratch",
        harmless=True,
    ),
    "model.name": _text("xception", "one of models.names()"),
    "model.dtype": _text(
        "auto",
        "compute dtype; auto: bfloat16 on TPU and GPU, float32 on CPU",
        choices=("auto", "float32", "bfloat16"),
    ),
    "model.matmul_precision": _text(
        "auto",
        "precision of float32 matrix products on TPU and GPU, with JAX's names; float32: exact, on "
        "TPU six passes of bfloat16; tensorfloat32: three; default: JAX's, on TPU one; auto: "
        "float32",
        choices=("auto", "default", "tensorfloat32", "float32"),
    ),
    "model.width": _float(None, f"factor of the numbers of channels; {_OWN}", low=0.01),
    "model.middle_blocks": _int(None, f"number of blocks in the middle flow; {_OWN}"),
    "model.stem_stride": _int(None, f"stride of the first convolution; {_OWN}", low=1, high=2),
    "model.segments": _int(
        None, "number of channel segments, each with its own 3x3 convolution, in separable "
        "convolutions; None: one segment per channel", low=1,
    ),
    "model.order": _text(
        None, f"order of the 3x3 and the 1x1 convolution in separable convolutions; {_OWN}",
        choices=("spatial_first", "pointwise_first"),
    ),
    "model.intermediate_activation": _text(
        None, f"activation between these two; {_OWN}", choices=("none", "relu", "elu")
    ),
    "model.residual": _flag(None, f"residual connections around the blocks; {_OWN}"),
    "model.pool_padding": _text(
        None, "padding of max pooling; same: as in TensorFlow; symmetric: as in PyTorch; "
        f"{_OWN}", choices=("same", "symmetric"),
    ),
    "model.count_padding": _flag(None, f"average pooling counts padding, as in timm; {_OWN}"),
    "model.pooling": _text(
        None, f"global pooling before the head; {_OWN}", choices=("average", "max")
    ),
    "model.fc_units": _tuple(
        None, f"sizes of the fully connected layers before the classifier; {_OWN}", low=1,
        fractions=False,
    ),
    "model.dropout": _float(None, f"dropout rate before the classifier; {_OWN}", high=0.99),
    "model.bn_epsilon": _float(None, f"number added to the batch variance; {_OWN}"),
    "model.bn_momentum": _float(
        None, f"momentum of the running batch statistics; {_OWN}", high=1.0
    ),
    "model.bn_scale": _flag(None, f"batch normalization has a scale; {_OWN}"),
    "model.bn_virtual_batch": _int(
        None, "examples that are normalized together; None: the full batch", low=1
    ),
    "model.freeze": _text(
        None, "last frozen block (block4, mixed2, blocks.3 etc., see the model's blocks()) or flow "
        "(middle_flow); all before it is frozen too; None: everything is trained"
    ),
    "model.remat": _flag(
        None, f"recompute blocks for their gradients, to save memory; {_OWN}", harmless=True
    ),
    "model.scan_middle": _flag(
        None, f"loop over the middle flow, to compile faster; {_OWN}", harmless=True
    ),
    "data.dataset": _text(
        "optical_digits",
        "a TFDS data set of labelled images, folder:PATH, or PREFIX:NAME of a registered reader",
    ),
    "data.label": _text(
        "", "feature with the labels, a nested one as objects/label; empty: the only one"
    ),
    "data.data_dir": _text(
        "", "folder of TFDS' data, and start of a relative folder:PATH; empty: TFDS' default, and "
        "the current folder",
        harmless=True,
    ),
    "data.train_split": _text("train", "split to train on, or a part of one: train[:10%]"),
    "data.eval_split": _text("test", "split to evaluate on"),
    "data.mix": _tuple(
        (), "more data sets with the same classes to train on, named as in data.dataset",
        texts=True,
    ),
    "data.mix_splits": _tuple(
        (), "splits of data.mix; (): train_split of each", texts=True
    ),
    "data.mix_weights": _tuple(
        None, "sampling weights of data.dataset and each of data.mix; only their ratios matter, to "
        "about 1 %; None: all examples once per epoch, as one set", low=1e-3, high=1e3,
    ),
    "data.balanced": _flag(False, "sample every class equally often in training"),
    "data.repeats": _int(
        1, "crops of each example in a batch (repeated augmentation, arXiv:1901.09335)", low=1
    ),
    "data.test_share": _float(
        0.2, "share of each class that is held out for the test, in a folder without train/ and "
        "test/", low=1e-6, high=0.999
    ),
    "data.split_seed": _int(
        0, "random seed of this held-out part, and of the order of a folder's records",
        high=2**32 - 1,
    ),
    "data.folder_rules": _int(
        0, "version of the rules for reading a folder (docs/folder.md); 1: without .jfif, system "
        "folders, labels.csv and other names of splits; 0: the newest; a run keeps its version",
        high=FOLDER_RULES,
    ),
    "data.max_skipped": _float(
        0.001, "maximum share of a split that is skipped as unusable (damaged files); if there are "
        "more, the run stops", high=1.0, harmless=True
    ),
    "data.batch_size": _int(64, "examples per step, over all devices", low=1),
    "data.image_size": _int(
        None, f"side of the square images, pixels; {_WEIGHTS} 299", low=1
    ),
    "data.crop_area": _tuple((1.0, 1.0), "random crop: range of its share of the image's area",
                             low=1e-3, high=1.0),
    "data.crop_aspect": _tuple((1.0, 1.0), "random crop: range of width / height", low=0.01),
    "data.eval_preset": _text(
        None,
        "how evaluation resizes images; area: a centred square, area average; inception: the "
        "centre of both sides (eval_crop 0.875) to a square, bilinear; keras: the complete image "
        "to a square, nearest pixels; timm: the shorter side, bicubic, then the centre; "
        f"{_WEIGHTS} area",
        choices=("area", "inception", "keras", "timm"),
    ),
    "data.eval_crop": _float(
        None, "share of the shorter side (inception: of both sides) that evaluation keeps; None: "
        "as the weights of init_from need, if they have the same eval_preset (timm's weights "
        "without this value: timm's value for the model), else 0.875 for inception and timm, 1.0 "
        "for area and keras",
        low=0.01, high=1.0,
    ),
    "data.exif": _text(
        "auto", "apply the EXIF orientation of images, in training and evaluation; auto: as the "
        "weights of init_from need, if they have the same eval_preset, else on for area and off "
        "for inception, keras and timm, which do not apply it",
        choices=("auto", "on", "off"),
    ),
    "data.white_level": _int(
        0, "value of white in images of more than 8 bits, 4095 for 12 bits; 0: as the file "
        "declares, else 65535",
        high=65_535,
    ),
    "data.threads": _int(
        0, "threads of each process that makes batches; 0: one per core",
        high=1024, harmless=True
    ),
    "data.workers": _int(
        0, "processes of each host that make training batches; 0: only threads of the run's "
        "process, which cost less", high=1024, harmless=True
    ),
    "data.in_memory": _int(
        256, "MiB of prepared images to keep in memory, for splits without random crops; images "
        "that fit are prepared only once", harmless=True
    ),
    "data.decode_parts": _flag(
        True, "decode only the random crop of a JPEG, if libturbojpeg 3 is installed: the same "
        "pixels in less time", harmless=True
    ),
    "augment.flip": _flag(False, "flip half of the training images horizontally"),
    "augment.shift": _int(0, "shift training images by up to this number of pixels"),
    "augment.randaugment": _int(
        0, "RandAugment (arXiv:1909.13719): number of operations per image; 0: off", high=10
    ),
    "augment.magnitude": _float(9.0, "magnitude of RandAugment's operations, 0 to 10", high=10.0),
    "augment.brightness": _float(
        0.0, "brightness: random factor from 1 - this to 1 + this; 0: off", high=1.0
    ),
    "augment.contrast": _float(
        0.0, "contrast: random factor from 1 - this to 1 + this; 0: off", high=1.0
    ),
    "augment.saturation": _float(
        0.0, "saturation: random factor from 1 - this to 1 + this; 0: off", high=1.0
    ),
    "augment.erase": _float(
        0.0, "random erasing (arXiv:1708.04896): share of images in which a rectangle becomes "
        "noise; 0: off", high=1.0
    ),
    "augment.erase_area": _tuple(
        (0.02, 1 / 3), "random erasing: range of the rectangle's share of the area", low=1e-3,
        high=1.0,
    ),
    "augment.erase_aspect": _tuple(
        (0.3, 1 / 0.3), "random erasing: range of the rectangle's width / height", low=0.01,
        high=100.0,
    ),
    "augment.mixup": _float(
        0.0, "mixup (arXiv:1710.09412): alpha of Beta(alpha, alpha), the distribution of a pair's "
        "shares; 0: off", high=100.0
    ),
    "augment.cutmix": _float(
        0.0, "CutMix (arXiv:1905.04899): alpha, as for mixup; with both on, each gets half of the "
        "pairs; 0: off", high=100.0
    ),
    "optimizer.name": _text("sgd", "Optax' algorithm", choices=("sgd", "rmsprop", "adamw", "lamb")),
    "optimizer.learning_rate": _float(
        0.045, "maximum learning rate, for a batch size of reference_batch"
    ),
    "optimizer.reference_batch": _int(
        256, "batch size of learning_rate: the rate is scaled by data.batch_size / "
        "reference_batch; 0: no scaling"
    ),
    "optimizer.schedule": _text(
        "staircase",
        "after the warm-up: constant; cosine to 0 at the end; staircase: x decay_rate every "
        "decay_every",
        choices=("constant", "cosine", "staircase"),
    ),
    "optimizer.warmup": _text(
        "0 steps", "length of the linear warmup of the learning rate from 0", duration=True
    ),
    "optimizer.decay_rate": _float(0.94, "factor of each stair of the staircase", high=1.0),
    "optimizer.decay_every": _text("2 epochs", "length of each stair", duration=True),
    "optimizer.momentum": _float(0.9, "momentum of sgd and rmsprop", high=1.0),
    "optimizer.nesterov": _flag(False, "use Nesterov momentum in sgd"),
    "optimizer.beta1": _float(0.9, "decay of the mean gradient in adamw and lamb", high=1.0),
    "optimizer.beta2": _float(
        0.999, "decay of the mean squared gradient in adamw, lamb and rmsprop", high=1.0
    ),
    "optimizer.epsilon": _float(
        1e-8, "adamw and lamb: added to the root of the mean square; rmsprop: added inside the "
        "root, as in TensorFlow and Keras (PyTorch adds it outside)"
    ),
    "optimizer.initial_squares": _float(
        0.0, "rmsprop: initial value of the mean squared gradient; 1: as in TensorFlow, which "
        "trained Inception and Xception; a run keeps the value that it began with",
        harmless=True,
    ),
    "optimizer.weight_decay": _float(0.0, "strength of the weight decay; 0: none"),
    "optimizer.decay_mode": _text(
        "auto",
        "l2: a term weight_decay / 2 * |w|^2 in the loss, as in the paper; decoupled: learning "
        "rate * weight_decay * w is subtracted from w; auto: l2 for sgd and rmsprop, otherwise "
        "decoupled",
        choices=("auto", "l2", "decoupled"),
    ),
    "optimizer.decay_all": _flag(
        False, "also decay batch-norm parameters and biases; lamb then also scales their steps"
    ),
    "optimizer.clip_norm": _float(0.0, "maximum norm of the global gradient; 0: no clipping"),
    "optimizer.microbatch": _int(
        0, "maximum number of examples per device in one pass; a larger batch is split, and its "
        "gradients are accumulated; 0: no limit", harmless=True
    ),
    "loss.name": _text(
        "auto",
        "softmax: cross entropy; sigmoid: binary cross entropy, summed over the classes; auto: "
        "sigmoid for data with several labels per image, else softmax",
        choices=("auto", "softmax", "sigmoid"),
    ),
    "loss.label_smoothing": _float(
        0.0, "share of the target that is spread over all classes", high=1.0
    ),
    "loss.class_weights": _tuple(
        None, "factor of each class's loss, in the order of the classes; None: all equal",
        low=1e-6, high=1e6,
    ),
    "ema.decay": _float(
        0.0, "decay of the averaged weights, which evaluation uses; 0: no averages", high=1.0
    ),
    "eval.every": _every(
        "auto", "interval between evaluations, each of which also saves a checkpoint; auto: the "
        "fewest full epochs with 100 steps, or with a tenth of the run's steps if that is less"
    ),
    "eval.batch_size": _int(
        0, "examples per batch of evaluation; 0: as in training, limited by microbatch",
        harmless=True,
    ),
    "eval.also": _tuple(
        (), "more sets to evaluate on: SPLIT, NAME=SPLIT or NAME=DATASET@SPLIT; their metrics have "
        "the name as prefix: real/top1", texts=True, harmless=True,
    ),
    "eval.metrics": _tuple(
        (), "more metrics, added by metrics.register: NAME, or SET/NAME for only one set of "
        "eval.also", texts=True, harmless=True,
    ),
    "eval.best": _text(
        "auto", "metric that decides which checkpoint is best: METRIC, METRIC:max or METRIC:min, "
        "for example real/top1 or loss:min; auto: the highest top1, or map for several labels",
        harmless=True,
    ),
    "checkpoint.every": _every("auto", "interval between checkpoints; auto: as eval.every"),
    "checkpoint.keep": _int(
        3, "number of newest checkpoints to keep, in addition to the best", low=1, harmless=True
    ),
    "log.every": _every("50 steps", "interval between lines of the log"),
    "log.tensorboard": _flag(True, "write TensorBoard events", harmless=True),
    "log.writers": _tuple(
        (), "more log writers: wandb, mlflow, or one added by writers.register",
        texts=True, harmless=True,
    ),
    "profile.steps": _tuple(
        (), "first and last step to trace to workdir/profile, as (100, 105); (): none", low=1,
        fractions=False, harmless=True,
    ),
    "compilation_cache": _text(
        "", "folder for compiled programs, which only you can write to, so that later runs need "
        "not compile; empty: in ~/.cache/xception_jax; none: no cache", harmless=True,
    ),
    "mesh.data": _int(
        -1, "size of the mesh's axis data; batches are sharded over mesh.data x mesh.model "
        "devices; -1: as large as possible", low=-1, harmless=True,
    ),
    "mesh.model": _int(
        1, "number of devices over which the head's layers are sharded", low=1, harmless=True,
    ),
    "mesh.shard": _text(
        "none", "what is sharded over the devices of mesh.data; optimizer: its state and the "
        "averaged weights; all: also the weights", choices=("none", "optimizer", "all"),
        harmless=True,
    ),
}  # fmt: skip
# The fields that a registry has added, each with its owner.
_ADDED: dict[str, str] = {}
# The values of fields that are missing in an older `config.json`: what runs did at that time.
_BEFORE: dict[str, Any] = {
    "data.image_size": 299, "data.eval_preset": "area", "data.eval_crop": 1.0, "data.exif": "on",
    "data.white_level": 65_535, "data.folder_rules": 1, "model.matmul_precision": "default",
}  # fmt: skip


def add_field(name: str, field: Field, owner: str) -> None:
    """Adds a field of a registered model, optimizer or augmentation to the schema.

    Args:
      name: the full name, as `model.depth`.
      field: the field.
      owner: what adds the field, for messages. It may replace its own field.

    Raises:
      UsageError: there is another field with this name.
    """
    if name in SCHEMA and SCHEMA[name] != field and _ADDED.get(name) != owner:
        raise UsageError(
            f"{owner} cannot add config.{name}: this field already belongs to "
            f"{_ADDED.get(name, 'every config')}; use another name"
        )
    if name not in SCHEMA:
        _ADDED[name] = owner
    SCHEMA[name] = field


def add_missing(config: ConfigDict) -> None:
    """Adds the fields that were registered after the config was created, with their defaults."""
    flat = flatten(config)
    with config.unlocked():
        for name in _ADDED.keys() - flat.keys():
            section, _, field = name.partition(".")
            config[section][field] = SCHEMA[name].default


def add_choice(name: str, choice: str) -> None:
    """Adds a value to the choices of a field."""
    field = SCHEMA[name]
    if choice not in field.choices:
        SCHEMA[name] = replace(field, choices=(*field.choices, choice))


def default() -> ConfigDict:
    """A config with every field at its default, locked against misspelt names."""
    nested: dict[str, Any] = {}
    for path, field in SCHEMA.items():
        *sections, name = path.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        unset = field.default is None
        section[name] = config_dict.placeholder(field.kind) if unset else field.default
    return ConfigDict(nested).lock()


def flatten(config: ConfigDict) -> dict[str, Any]:
    """The config as `{"data.batch_size": 64, ...}`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{rest}": leaf for rest, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def from_flat(flat: dict[str, Any]) -> ConfigDict:
    """The inverse of `flatten`, for the content of `config.json`.

    If a field is missing, the config is of an older version, and the field gets its behaviour.
    """
    config = default()
    unknown(flat)
    config.update_from_flattened_dict(complete(flat))
    return config


def complete(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat config with all fields; missing ones get the behaviour of older versions."""
    return {**flatten(default()), **_BEFORE, **flat}


def portable(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat config for `config.json`, independent of the machine and of other registered fields.

    `compilation_cache` is reset to its default: a `config.json` can come from someone else, and the
    programs in the cache are run. Added fields at their defaults are left out, unless the run's own
    model or optimizer has added them. So the config can be read without the other extensions.
    """
    owners = {f"model {flat.get('model.name')}", f"optimizer {flat.get('optimizer.name')}"}
    used = {
        name: value
        for name, value in flat.items()
        if name not in _ADDED
        or _ADDED[name] in owners
        or _plain(value) != _plain(SCHEMA[name].default)
    }
    return {**used, "compilation_cache": SCHEMA["compilation_cache"].default}


def unknown(names: Any) -> None:
    """Raises `UsageError` for the first name that is not a field."""
    for name in names:
        if name not in SCHEMA:
            raise UsageError(f"config has no field {name!r}{nearest(name, SCHEMA)}")


def check_fields(config: ConfigDict) -> None:
    """Checks every field separately; raises `UsageError`."""
    flat = flatten(config)
    unknown(flat)
    for name, field in SCHEMA.items():
        if name not in flat and name in _ADDED:  # added later, see `add_missing`
            continue
        if name not in flat:
            raise UsageError(f"config has no {name}; start from xception_jax.config.default()")
        complaint = field.check(flat[name])
        if complaint:
            raise UsageError(f"config.{name} {complaint}")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of the fields in which two flat configs differ, in the schema's order."""
    names = [*SCHEMA, *(name for name in {**old, **new} if name not in SCHEMA)]
    return [name for name in names if _plain(old.get(name)) != _plain(new.get(name))]


def may_change(name: str, config: dict[str, Any]) -> bool:
    """Whether a field may change in a started run, because no step's result depends on it.

    Exceptions are the rounding of sums and, with `optimizer.microbatch`, the random dropout.

    Args:
      name: the field's name.
      config: flat. The duration may change if the learning rate does not depend on it.
    """
    if name == "duration":
        return bool(config["optimizer.schedule"] != "cosine")
    return name in SCHEMA and SCHEMA[name].harmless


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def describe() -> str:
    """Every field with its default and meaning, for the terminal."""
    lines = [f"A duration is {EXAMPLES}. --config.FIELD=None unsets a field whose default is None."]
    for name, field in SCHEMA.items():
        choices = f" [{', '.join(field.choices)}]" if field.choices else ""
        choices = " [duration]" if field.duration else choices
        lines.append(f"  {name} = {field.default!r}{choices}\n      {field.help}")
    return "\n".join(lines)
