"""The schema of a run: every field, its default, its meaning and its bounds.

The fields of a model, in `config.model`, are declared with the model. Nothing heavy is imported
here, so that `--help` and a misspelt field respond immediately.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from xception_jax.config.declared import declarations, table
from xception_jax.config.fields import EXAMPLES, Field
from xception_jax.errors import UsageError


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

# The mean and the standard deviation that scale pixels to [-1, 1], as for Keras' and timm's models.
HALF = (0.5, 0.5, 0.5)

_WEIGHTS = "None: as the weights of init_from need, else"
SCHEMA: dict[str, Field] = {
    "seed": _int(0, "random seed of initial weights, order, crops, augmentation and dropout",
                 high=2**32 - 1),
    "duration": _text("90 epochs", "length of the run", duration=True, harmless=True),
    "init_from": _text(
        "", "initial weights: a name (hf:OWNER/REPO, keras:xception, https://...#sha256=...), a "
        "Keras or timm file, a converted file, or a run's folder; a classifier for other classes "
        "is replaced by a new one; empty: from scratch",
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
        0, "random seed of the held-out parts, and of the order of a folder's records",
        high=2**32 - 1,
    ),
    "data.val_share": _float(
        0.0, "share of each class of train_split that is held out from training, as the split "
        "held_out; 0: none", high=0.9
    ),
    "data.folds": _int(
        0, "number of parts of train_split for cross-validation, each with its share of every "
        "class; 0: none"
    ),
    "data.fold": _int(
        0, "of folds: the part that is left out of training, as the split fold; from 0 on"
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
        0, "value of white in images of more than 8 bits, 4095 for 12 bits; 0: that of the weights "
        "of init_from, else as the file declares, else 65535",
        high=65_535,
    ),
    "data.mean": _tuple(
        None, "mean of each channel, R, G and B, which is subtracted from the pixels on a scale of "
        f"0 to 1; {_WEIGHTS} (0.5, 0.5, 0.5)",
        low=0.0, high=1.0, length=3,
    ),
    "data.std": _tuple(
        None, "standard deviation of each channel, by which the difference is divided; "
        f"{_WEIGHTS} (0.5, 0.5, 0.5), which gives [-1, 1]",
        low=1e-3, high=10.0, length=3,
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
        "that fit are prepared only once. The same for features of frozen_draws; more of them go "
        "into a file in the workdir", harmless=True
    ),
    "data.frozen_draws": _int(
        0, "compute the part of model.freeze once, for this number of random crops and "
        "augmentations of each training image, which the epochs then take in turn; 1 is exact "
        "without crops and augmentation; 0: compute it in every step"
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
    "optimizer.name": _text("sgd", "algorithm, implemented by Optax"),
    "optimizer.learning_rate": _float(
        0.045, "maximum learning rate, for a batch size of reference_batch"
    ),
    "optimizer.reference_batch": _int(
        256, "batch size of learning_rate: the rate is scaled by data.batch_size / "
        "reference_batch; 0: no scaling"
    ),
    "optimizer.schedule": _text(
        "staircase",
        "learning rate after the warmup; constant; cosine: to 0 at the end; staircase: multiplied "
        "by decay_rate every decay_every",
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
    "eval.patience": _int(
        0, "stop after this number of evaluations without a better one, by eval.best; 0: never",
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
ADDED: dict[str, str] = {}
# The fields that a choice of another field fixes in a started run.
FIXED: dict[tuple[str, str], tuple[str, ...]] = {}


def add_field(name: str, field: Field, owner: str) -> None:
    """Adds a field of a registered model, optimizer or augmentation to the schema.

    Args:
      name: the full name, as `model.depth`.
      field: the field.
      owner: what adds the field, for messages. It may replace its own field.

    Raises:
      UsageError: there is another field with this name.
    """
    if name in SCHEMA and SCHEMA[name] != field and ADDED.get(name) != owner:
        raise UsageError(
            f"{owner} cannot add config.{name}: this field already belongs to "
            f"{ADDED.get(name, 'this package')}; use another name"
        )
    if name not in SCHEMA:
        ADDED[name] = owner
    _insert(name, field)


def _insert(name: str, field: Field) -> None:
    """Sets a field; a new one is inserted after the last of its section."""
    new = name not in SCHEMA
    SCHEMA[name] = field
    if not new:
        return
    sections = [*dict.fromkeys(each.partition(".")[0] for each in SCHEMA)]
    ordered = sorted(SCHEMA.items(), key=lambda item: sections.index(item[0].partition(".")[0]))
    SCHEMA.clear()
    SCHEMA.update(ordered)


def add_choice(name: str, choice: str, fixes: Iterable[str] = ()) -> None:
    """Adds a value to the choices of a field.

    Args:
      name: the field's name.
      choice: the value.
      fixes: fields that a started run with this value cannot change, see `may_change`.
    """
    field = SCHEMA[name]
    if choice not in field.choices:
        SCHEMA[name] = replace(field, choices=(*field.choices, choice))
    FIXED[name, choice] = tuple(fixes)


def describe() -> str:
    """Every field with its default and meaning, for the terminal."""
    lines = [f"A duration is {EXAMPLES}. --config.FIELD=None unsets a field whose default is None."]
    for name, field in SCHEMA.items():
        choices = f" [{', '.join(field.choices)}]" if field.choices else ""
        choices = " [duration]" if field.duration else choices
        lines.append(f"  {name} = {field.default!r}{choices}\n      {field.help}")
    return "\n".join(lines)


def _add_own() -> None:
    """Adds the fields and choices of models, optimizers and schedules without importing them."""
    for key, field in table("models/options.py", "FIELDS").items():
        _insert(f"model.{key}", field)
    for one in declarations("models"):
        for key, field in one.value("options", {}).items():
            _insert(f"model.{key}", field)
    for one in declarations("training/optimizer.py"):
        add_choice("optimizer.name", one.name)
    for one in declarations("training/optimizer.py", "register_schedule"):
        fixes = ("duration",) if one.value("until_end") else ()
        add_choice("optimizer.schedule", one.name, fixes)


_add_own()
