"""The schema of a run: every field, its default, its meaning and its bounds.

The fields of the models, of `config.model`, are declared with the models. Nothing heavy is imported
here, so that `--help` and a misspelt field answer at once.
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


# The newest rules by which a folder of images is read, see docs/folder.md.
FOLDER_RULES = 2

_WEIGHTS = "None: as the weights of init_from, else"
SCHEMA: dict[str, Field] = {
    "seed": _int(0, "of initial weights, order, crops, augmentation and dropout", high=2**32 - 1),
    "duration": _text("90 epochs", "of the whole run", duration=True, harmless=True),
    "init_from": _text(
        "", "weights to begin with: a Keras or timm file, a converted one, or a run's folder; a "
        "classifier of other classes begins anew; empty: from scratch", harmless=True,
    ),
    "model.name": _text("xception", "one of models.names()"),
    "model.dtype": _text(
        "auto",
        "compute dtype; auto: bfloat16 on TPU and GPU, float32 on CPU",
        choices=("auto", "float32", "bfloat16"),
    ),
    "model.matmul_precision": _text(
        "auto",
        "of float32 numbers on TPU and GPU, named as JAX does; float32: exact, on TPU six passes "
        "of bfloat16; tensorfloat32: three; default: as JAX has it, on TPU one; auto: float32",
        choices=("auto", "default", "tensorfloat32", "float32"),
    ),
    "data.dataset": _text(
        "optical_digits",
        "a TFDS data set of labelled images, folder:PATH, or PREFIX:NAME of a registered reader",
    ),
    "data.label": _text(
        "", "its feature with the labels, a nested one as objects/label; empty: the only one"
    ),
    "data.data_dir": _text(
        "", "where TFDS keeps its data, or a relative PATH starts; empty: TFDS' default, and here",
        harmless=True,
    ),
    "data.train_split": _text("train", "TFDS split to train on, also a part: train[:10%]"),
    "data.eval_split": _text("test", "TFDS split to evaluate on"),
    "data.mix": _tuple(
        (), "further data sets of the same classes to train on, named as in data.dataset",
        texts=True,
    ),
    "data.mix_splits": _tuple((), "their splits; (): train_split of each", texts=True),
    "data.mix_weights": _tuple(
        None, "how often data.dataset and each of data.mix come: only the ratios count, to about a "
        "hundredth; None: together as one set, each example once an epoch", low=1e-3, high=1e3,
    ),
    "data.balanced": _flag(False, "train with every class equally often"),
    "data.repeats": _int(
        1, "crops of an example in a batch (repeated augmentation, arXiv:1901.09335)", low=1
    ),
    "data.test_share": _float(
        0.2, "of each class of a folder without train/ and test/, held out", low=1e-6, high=0.999
    ),
    "data.split_seed": _int(0, "of that cut, and of the order of a folder's records",
                            high=2**32 - 1),
    "data.folder_rules": _int(
        0, "by which a folder is read (docs/folder.md); 1: those before .jfif, system folders, "
        "labels.csv and other names of splits; 0: the newest, and a run that has begun keeps its "
        "own", high=FOLDER_RULES,
    ),
    "data.max_skipped": _float(
        0.001, "share of a split that may be unusable (damaged files) and is skipped; more stops "
        "the run", high=1.0, harmless=True
    ),
    "data.batch_size": _int(64, "examples in a step over all devices", low=1),
    "data.image_size": _int(
        None, f"side of the square images, pixels; {_WEIGHTS} 299", low=1
    ),
    "data.crop_area": _tuple((1.0, 1.0), "random crop: range of shares of the area", low=1e-3,
                             high=1.0),
    "data.crop_aspect": _tuple((1.0, 1.0), "random crop: range of width / height", low=0.01),
    "data.eval_preset": _text(
        None,
        "how evaluation resizes: area: a centred square, averaged; inception: as Inception was "
        "judged: the centre of both sides (eval_crop 0.875), squeezed, bilinear; keras: all, "
        f"squeezed, nearest pixels; timm: the shorter side, bicubic, then the centre; {_WEIGHTS} "
        "area",
        choices=("area", "inception", "keras", "timm"),
    ),
    "data.eval_crop": _float(
        None, "evaluation: share of the shorter side kept; inception: of both; None: as the "
        "weights of init_from with the same eval_preset (of timm's that do not say it: "
        "timm's for the model), else 0.875 of inception and timm, 1.0 of area and keras",
        low=0.01, high=1.0,
    ),
    "data.exif": _text(
        "auto", "apply the EXIF orientation of an image, in training and in evaluation; auto: as "
        "the weights of init_from with the same eval_preset, else off where that is inception, "
        "keras or timm, which do not apply it, and on with area",
        choices=("auto", "on", "off"),
    ),
    "data.white_level": _int(
        0, "white in images of more than 8 bits, 4095 of 12; 0: what the file declares, else 65535",
        high=65_535,
    ),
    "data.threads": _int(
        0, "of each process that makes batches; 0: one per core",
        high=1024, harmless=True
    ),
    "data.workers": _int(
        0, "processes of a host that make training batches; 0: threads of the run's own, which "
        "cost less", high=1024, harmless=True
    ),
    "data.in_memory": _int(
        256, "MiB of finished images that may be kept, of a split of which nothing is cropped at "
        "random; what fits is made once", harmless=True
    ),
    "data.decode_parts": _flag(
        True, "of JPEGs decode only the random crop, where libturbojpeg 3 is installed: the same "
        "pixels in less time", harmless=True
    ),
    "augment.flip": _flag(False, "mirror half of the training images"),
    "augment.shift": _int(0, "move training images by up to so many pixels"),
    "augment.randaugment": _int(
        0, "RandAugment (arXiv:1909.13719): operations drawn for each image; 0: off", high=10
    ),
    "augment.magnitude": _float(9.0, "of RandAugment's operations, 0 to 10", high=10.0),
    "augment.brightness": _float(0.0, "factor drawn from 1 - this to 1 + this; 0: off", high=1.0),
    "augment.contrast": _float(0.0, "likewise", high=1.0),
    "augment.saturation": _float(0.0, "likewise", high=1.0),
    "augment.erase": _float(
        0.0, "random erasing (arXiv:1708.04896): share of the images in which a rectangle becomes "
        "noise; 0: off", high=1.0
    ),
    "augment.erase_area": _tuple((0.02, 1 / 3), "the rectangle: range of shares of the area",
                                 low=1e-3, high=1.0),
    "augment.erase_aspect": _tuple((0.3, 1 / 0.3), "the rectangle: range of width / height",
                                   low=0.01, high=100.0),
    "augment.mixup": _float(
        0.0, "mixup (arXiv:1710.09412): alpha of the Beta(alpha, alpha) that a pair's shares are "
        "drawn from; 0: off", high=100.0
    ),
    "augment.cutmix": _float(
        0.0, "CutMix (arXiv:1905.04899): its alpha; with mixup too, half of the pairs each; 0: off",
        high=100.0
    ),
    "optimizer.name": _text("sgd", "Optax' algorithm"),
    "optimizer.learning_rate": _float(0.045, "at its highest, for a batch of reference_batch"),
    "optimizer.reference_batch": _int(
        256, "the batch that learning_rate is for; the rate scales with data.batch_size / "
        "reference_batch; 0: it does not scale"
    ),
    "optimizer.schedule": _text(
        "staircase",
        "after the warm-up: constant; cosine to 0 at the end; staircase: x decay_rate every "
        "decay_every",
    ),
    "optimizer.warmup": _text("0 steps", "linear from 0", duration=True),
    "optimizer.decay_rate": _float(0.94, "of the staircase", high=1.0),
    "optimizer.decay_every": _text("2 epochs", "of the staircase", duration=True),
    "optimizer.momentum": _float(0.9, "of sgd and rmsprop", high=1.0),
    "optimizer.nesterov": _flag(False, "sgd with Nesterov's momentum"),
    "optimizer.beta1": _float(0.9, "of adamw and lamb", high=1.0),
    "optimizer.beta2": _float(0.999, "decay of the squares: adamw, lamb and rmsprop", high=1.0),
    "optimizer.epsilon": _float(
        1e-8, "of adamw and lamb: added to the root of the squares; of rmsprop: inside the root, "
        "as in TensorFlow and Keras (PyTorch adds it outside)"
    ),
    "optimizer.initial_squares": _float(
        0.0, "of rmsprop: what its mean of squared gradients begins at; 1: as in TensorFlow, with "
        "which Inception and Xception were trained; a run that has begun keeps what it began with",
        harmless=True,
    ),
    "optimizer.weight_decay": _float(0.0, "0: none"),
    "optimizer.decay_mode": _text(
        "auto",
        "l2: a term weight_decay / 2 * |w|^2 of the loss, as in the paper; decoupled: subtracted "
        "from the weights, times the learning rate; auto: l2 for sgd and rmsprop, else decoupled",
        choices=("auto", "l2", "decoupled"),
    ),
    "optimizer.decay_all": _flag(
        False, "decay batch-norm parameters and biases too; lamb scales their steps then too"
    ),
    "optimizer.clip_norm": _float(0.0, "largest norm of the whole gradient; 0: no clipping"),
    "optimizer.microbatch": _int(
        0, "most examples that a device takes through the model at once; a larger share is cut, "
        "and its gradients are accumulated; 0: no limit", harmless=True
    ),
    "loss.name": _text(
        "auto",
        "softmax: cross entropy; sigmoid: binary cross entropy, summed over the classes; auto: "
        "sigmoid where an image has several labels, else softmax",
        choices=("auto", "softmax", "sigmoid"),
    ),
    "loss.label_smoothing": _float(0.0, "share spread over all classes", high=1.0),
    "loss.class_weights": _tuple(
        None, "factor on the loss of each class, in the order of the classes; None: all alike",
        low=1e-6, high=1e6,
    ),
    "ema.decay": _float(0.0, "of the averaged weights that evaluation uses; 0: none", high=1.0),
    "eval.every": _every(
        "auto", "between evaluations; each one saves a checkpoint too; auto: so many whole epochs "
        "that they hold 100 steps, or a tenth of the run if that is less"
    ),
    "eval.batch_size": _int(0, "0: as in training, in view of microbatch", harmless=True),
    "eval.also": _tuple(
        (), "further sets to evaluate on: SPLIT, NAME=SPLIT or NAME=DATASET@SPLIT; their metrics "
        "have the name as prefix: real/top1", texts=True, harmless=True,
    ),
    "eval.metrics": _tuple(
        (), "further metrics, added by metrics.register: NAME, or SET/NAME for one set of "
        "eval.also alone", texts=True, harmless=True,
    ),
    "eval.best": _text(
        "auto", "the metric that decides which checkpoint is best: METRIC, METRIC:max or "
        "METRIC:min, as real/top1 or loss:min; auto: the highest top1, of several labels map",
        harmless=True,
    ),
    "checkpoint.every": _every("auto", "between checkpoints; auto: as of eval.every"),
    "checkpoint.keep": _int(3, "newest checkpoints kept, besides the best", low=1, harmless=True),
    "log.every": _every("50 steps", "between lines of the log"),
    "log.tensorboard": _flag(True, "write TensorBoard events", harmless=True),
    "log.writers": _tuple(
        (), "further writers of the log: wandb, mlflow, or one added by writers.register",
        texts=True, harmless=True,
    ),
    "profile.steps": _tuple(
        (), "first and last step to trace into workdir/profile, as (100, 105); (): none", low=1,
        fractions=False, harmless=True,
    ),
    "compilation_cache": _text(
        "", "folder in which compiled programs are kept, so that a run that goes on need not "
        "compile, and to which only you can write; empty: in ~/.cache/xception_jax; none: not at "
        "all", harmless=True,
    ),
    "mesh.data": _int(-1, "devices that share a batch, times mesh.model; -1: all there are",
                      low=-1, harmless=True),
    "mesh.model": _int(
        1, "devices that share the head's fully connected layers and classes", low=1, harmless=True
    ),
    "mesh.shard": _text(
        "none", "what is cut over the devices of mesh.data: optimizer: its state and the averaged "
        "weights; all: the weights too", choices=("none", "optimizer", "all"), harmless=True,
    ),
}  # fmt: skip
# The fields that a registry has added, each with what it was added by.
ADDED: dict[str, str] = {}
# The fields that one choice of another field holds fixed in a run that has begun.
FIXED: dict[tuple[str, str], tuple[str, ...]] = {}


def add_field(name: str, field: Field, owner: str) -> None:
    """Adds a field of a registered model, optimizer or augmentation to the schema.

    Args:
      name: its full name, `model.depth`.
      field: what it takes.
      owner: what the field is of, for messages. It may change its own field.

    Raises:
      UsageError: there is another field of that name.
    """
    if name in SCHEMA and SCHEMA[name] != field and ADDED.get(name) != owner:
        raise UsageError(
            f"{owner} cannot add config.{name}: there is such a field already, of "
            f"{ADDED.get(name, 'this package')}; take another name"
        )
    if name not in SCHEMA:
        ADDED[name] = owner
    _insert(name, field)


def _insert(name: str, field: Field) -> None:
    """Sets a field; a new one comes after the last of its section."""
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
      name: of the field.
      choice: the value.
      fixes: fields that a run with this value cannot change once it has begun, see `may_change`.
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
    """Adds what models, optimizers and schedules declare, which nothing may have imported yet."""
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
