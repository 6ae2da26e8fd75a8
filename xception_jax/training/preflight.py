"""Checks before a run: its config against the model, the devices and the data on disk."""

import itertools
import os
from importlib import metadata

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from packaging.requirements import Requirement

from xception_jax import config as config_lib
from xception_jax import models
from xception_jax.config.fields import Duration
from xception_jax.data import splits
from xception_jax.data.order import candidates
from xception_jax.data.readers import joined
from xception_jax.data.render import decode
from xception_jax.data.source import FOLDER, Source
from xception_jax.errors import ReadError, UsageError
from xception_jax.models.published import IMAGE_SIZE
from xception_jax.training import evaluation, metrics, step
from xception_jax.training.telemetry import records
from xception_jax.utils import paths


def validate(config: ConfigDict, begun: ConfigDict | None = None) -> None:
    """Checks a config against the schema, the model, the devices and the data on disk.

    Args:
      config: the run's config.
      begun: the resolved config of the run to continue, if any. Its rules for opening data apply.

    Raises:
      UsageError: one line with what is wrong and how to fix it, before anything is compiled.
    """
    config = config_lib.settled(config, begun)
    check_without_data(config, jax.device_count())
    records.check_writers(config_lib.log_writers(config))
    _check_processes(config, jax.device_count(), jax.process_count())
    if config.profile.steps:
        check_profiler()
    _check_data(config, begun)


def check_profiler() -> None:
    """Refuses to trace if JAX has loaded a libtpu of another version than it requires.

    JAX 0.10.2 with libtpu 0.0.52 then ends with a segmentation fault, even without a TPU.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms:
        return
    try:
        there = metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return
    needs = (Requirement(text) for text in metadata.requires("jax") or ())
    for need in needs:
        if need.name == "libtpu" and not need.specifier.contains(there, prereleases=True):
            raise UsageError(
                f"JAX {jax.__version__} cannot trace with libtpu {there}, only with "
                f"{need.specifier}; without a TPU set JAX_PLATFORMS=cpu (or cuda), else "
                f"pip install 'xception_jax[tpu]'"
            )


def check_without_data(config: ConfigDict, devices: int) -> None:
    """The checks of `validate` that need no data, for a number of devices."""
    config_lib.check_fields(config)
    _check_paths(config)
    _check_ranges(config)
    _check_sampling(config)
    _check_frozen_draws(config)
    _check_batch(config, devices)
    _check_model(config)
    config_lib.Best.parse(config.eval.best)
    for name in ("", *(one.name for one in config_lib.eval_sets(config))):
        metrics.registered(config_lib.eval_metrics(config, name))


def _check_paths(config: ConfigDict) -> None:
    fields = config_lib.flatten(config)
    for name in ("init_from", "compilation_cache", "data.data_dir"):
        if name == "init_from" and paths.is_weights_name(fields[name]):
            continue
        if fields[name]:
            buckets = paths.BUCKETS if name == "data.data_dir" else ()
            paths.local(f"config.{name}", fields[name], buckets)
    further = (one.dataset for one in config_lib.eval_sets(config))
    for dataset in filter(None, (config.data.dataset, *config.data.mix, *further)):
        if dataset.startswith(FOLDER):
            paths.local("config.data: a folder of images", dataset.removeprefix(FOLDER))


def _check_ranges(config: ConfigDict) -> None:
    fields = config_lib.flatten(config)
    for name in (
        "data.crop_area",
        "data.crop_aspect",
        "augment.erase_area",
        "augment.erase_aspect",
    ):
        value = fields[name]
        if len(value) != 2 or value[0] > value[1]:
            raise UsageError(f"config.{name} is {value}; expected (smallest, largest)")
    check_crop(config)
    traced = config.profile.steps
    if traced and (len(traced) != 2 or traced[0] > traced[1]):
        raise UsageError(f"config.profile.steps is {traced}; expected (first, last)")
    for name in ("augment.mixup", "augment.cutmix"):
        if 0 < fields[name] < 0.01:
            raise UsageError(f"config.{name} is {fields[name]}; use 0 (off) or at least 0.01")
    for name in (
        "eval.every",
        "checkpoint.every",
        "log.every",
        "duration",
        "optimizer.decay_every",
    ):
        if fields[name] != "auto" and Duration.parse(fields[name]).amount == 0:
            raise UsageError(f"config.{name} is {fields[name]!r}; it must be above 0")


def check_crop(config: ConfigDict) -> None:
    """Refuses a crop of evaluation that its preset does not support; both can still be None."""
    if config.data.eval_preset == "keras" and config.data.eval_crop not in (None, 1):
        raise UsageError(
            f"config.data.eval_crop is {config.data.eval_crop}; it must be 1.0 with "
            f"config.data.eval_preset keras, which uses the complete image"
        )


def check_lengths(config: ConfigDict, examples: int) -> None:
    """Checks that the warmup is not longer than the run, for a number of training examples."""
    opt, size = config.optimizer, {"batch_size": config.data.batch_size, "epoch": examples}
    warmup, total = (Duration.parse(text).steps(**size) for text in (opt.warmup, config.duration))
    if warmup > total:
        raise UsageError(
            f"config.optimizer.warmup is {opt.warmup!r}, {warmup:,} steps, but the run has only "
            f"{total:,} (config.duration {config.duration!r}); shorten the warmup or lengthen the "
            f"run"
        )


def _sharing(config: ConfigDict, devices: int) -> int:
    """The number of devices that share a batch, by `mesh.data` and `mesh.model`."""
    data, model = config.mesh.data, config.mesh.model
    if data == 0 or data > devices:
        raise UsageError(f"config.mesh.data is {data}; there are {devices} devices (-1: all)")
    if data == -1 and devices % model:
        raise UsageError(
            f"config.mesh.model is {model}, but the {devices} devices are not divisible by it"
        )
    if data * model > devices:
        raise UsageError(
            f"config.mesh.model is {model} and config.mesh.data {data}, but there are {devices} "
            f"devices; set mesh.model to at most {devices // data}"
        )
    return devices if data == -1 else data * model


def _check_processes(config: ConfigDict, devices: int, processes: int) -> None:
    """Checks that the mesh includes all devices: each process computes its part of a batch."""
    taken = _sharing(config, devices)
    if processes > 1 and taken != devices:
        raise UsageError(
            f"config.mesh.data is {config.mesh.data}, which uses {taken} of the {devices} devices "
            f"of {processes} processes; a run of several processes must use all: set it to -1"
        )
    if processes > 1 and config.data.frozen_draws:
        raise UsageError(
            f"config.data.frozen_draws is {config.data.frozen_draws}, for one process, but this "
            f"run has {processes}; set it to 0"
        )


def _check_batch(config: ConfigDict, devices: int) -> None:
    devices = _sharing(config, devices)
    batch, virtual = config.data.batch_size, config.model.bn_virtual_batch
    if batch % devices:
        multiples = [m for m in (batch // devices * devices, -(-batch // devices) * devices) if m]
        raise UsageError(
            f"config.data.batch_size is {batch}, not divisible by the {devices} devices; use "
            f"{' or '.join(map(str, multiples))}"
        )
    if virtual is not None and batch % virtual:
        raise UsageError(
            f"config.data.batch_size is {batch}, not a multiple of "
            f"config.model.bn_virtual_batch, {virtual}"
        )
    if batch % 2 and (config.augment.mixup or config.augment.cutmix):
        raise UsageError(
            f"config.data.batch_size is {batch}, which is odd, but config.augment.mixup and cutmix "
            f"mix pairs; use {batch + 1}"
        )
    share = batch // devices
    if virtual is not None and share % virtual and virtual % share:
        raise UsageError(
            f"config.model.bn_virtual_batch is {virtual} and each device has {share} images of the "
            f"batch; one must be a multiple of the other, or every device computes the full batch"
        )
    config_lib.microbatch_count(config, devices)


def _check_model(config: ConfigDict) -> None:
    known = models.overrides(config.model.name)
    unknown = [name for name in config_lib.model_overrides(config) if name not in known]
    if unknown:
        fields = ", ".join(f"config.model.{name}" for name in unknown)
        unset = " ".join(f"--config.model.{name}=None" for name in unknown)
        raise UsageError(f"{config.model.name} does not take {fields}; add {unset}")


def _check_data(config: ConfigDict, begun: ConfigDict | None) -> None:
    train = splits.open_training(config)
    evaluated = splits.open_evaluation(config)
    if begun is None:  # a run of an older version can violate this check
        check_lengths(config, len(train))
    if len(train.class_names) < 2:
        raise UsageError(f"config.data.dataset {config.data.dataset!r} has fewer than two classes")
    for name, test in evaluated.items():
        _check_set(train, name, test)
        _check_metrics(config, name, test)
    known = evaluation.metric_names(config, evaluated)
    config_lib.Best.parse(config.eval.best).check(known)
    if config.data.balanced and train.multilabel:
        raise UsageError(
            f"config.data.balanced needs one label per image, but {train.name} has several"
        )
    _check_loss(config, train.name, len(train.class_names), train.multilabel)
    for source in (train, *evaluated.values()):
        most = int(config.data.max_skipped * len(source))
        for record in (0, len(source) - 1):
            _check_readable(source, record, most)


def _check_set(train: Source, name: str, test: Source) -> None:
    joined.same_classes(train, test)
    if name and test.multilabel != train.multilabel:
        several, one = (test, train) if test.multilabel else (train, test)
        raise UsageError(
            f"config.eval.also: {several.name} has several labels per image, but {one.name} has "
            f"one; all sets of a run must be of the same kind"
        )


def _check_metrics(config: ConfigDict, name: str, test: Source) -> None:
    classes = len(test.class_names)
    count = classes + 1  # another number, so that the axes cannot be confused
    side = config.data.image_size or IMAGE_SIZE
    batch = step.batch_shapes(count, side, classes, test.multilabel)
    if config.data.frozen_draws:
        del batch["image"]  # its place is taken by features
    logits = jax.ShapeDtypeStruct((count, classes), jnp.float32)
    for metric in metrics.registered(config_lib.eval_metrics(config, name)):
        try:
            metric.check(logits, batch)
        except KeyError as error:
            if error.args != ("image",):
                raise
            raise UsageError(
                f"metric {metric.name!r} takes images, but with config.data.frozen_draws a batch "
                f"has none; set it to 0"
            ) from None


def _check_sampling(config: ConfigDict) -> None:
    data = config.data
    if data.mix_splits and len(data.mix_splits) != len(data.mix):
        raise UsageError(
            f"config.data.mix_splits has {len(data.mix_splits)} splits, but config.data.mix has "
            f"{len(data.mix)} data sets; give one split for each"
        )
    if data.mix_weights is not None and len(data.mix_weights) != 1 + len(data.mix):
        raise UsageError(
            f"config.data.mix_weights has {len(data.mix_weights)} numbers; give one for "
            f"config.data.dataset and one for each of the {len(data.mix)} sets in config.data.mix"
        )
    if data.mix_weights is not None and data.balanced:
        raise UsageError("config.data.balanced and mix_weights cannot be combined; set only one")
    if data.folds == 1 or (data.folds and data.fold >= data.folds):
        raise UsageError(
            f"config.data.fold is {data.fold} and data.folds is {data.folds}; folds takes 0 or at "
            f"least 2, and fold is below it"
        )
    if data.batch_size % data.repeats:
        raise UsageError(
            f"config.data.batch_size is {data.batch_size}, not a multiple of config.data.repeats, "
            f"{data.repeats}"
        )
    if data.batch_size == data.repeats and (config.augment.mixup or config.augment.cutmix):
        raise UsageError(
            f"config.data.repeats is {data.repeats}, the full batch, so config.augment.mixup and "
            f"cutmix would mix each image with itself; lower it"
        )


def _check_frozen_draws(config: ConfigDict) -> None:
    draws = config.data.frozen_draws
    asked = f"config.data.frozen_draws is {draws}"
    if draws and config.model.get("freeze") is None:
        raise UsageError(
            f"{asked}, but nothing is frozen; set config.model.freeze, or frozen_draws to 0"
        )
    if draws and (config.augment.mixup or config.augment.cutmix):
        raise UsageError(
            f"{asked}, but config.augment.mixup and cutmix mix other pairs in each epoch, so that "
            f"the frozen part cannot be computed once; set them to 0, or frozen_draws"
        )
    if draws and config.data.repeats > 1:
        raise UsageError(
            f"{asked}, so a batch with config.data.repeats {config.data.repeats} would have equal "
            f"images; set repeats to 1, or frozen_draws to 0"
        )


def _check_readable(source: Source, record: int, most: int) -> None:
    """Raises `UsageError` if no example can be read.

    Args:
      source: the split.
      record: the first to try.
      most: the number of examples that may be skipped.
    """
    first: Exception | None = None
    records = range(len(source))
    for candidate in itertools.islice(candidates(records, record, len(source)), most + 1):
        try:
            decode.decode(source[candidate].encoded, source[candidate].name)
            return
        except ReadError:  # the storage failed, not the example
            raise
        except Exception as error:  # a file can be missing, truncated or damaged
            first = first or error
    reason = (str(first).splitlines() or [type(first).__name__])[0]
    raise UsageError(f"{source.name} cannot be read: {reason}")


def _check_loss(config: ConfigDict, data: str, classes: int, multilabel: bool) -> None:
    if multilabel and config.loss.name == "softmax":
        raise UsageError(
            f"config.loss.name is 'softmax', for one label per image, but {data} has several; use "
            f"sigmoid"
        )
    weights = config.loss.class_weights
    if weights is not None and len(weights) != classes:
        raise UsageError(
            f"config.loss.class_weights has {len(weights)} numbers; give one for each of the "
            f"{classes} classes of {data}"
        )
