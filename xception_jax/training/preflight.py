"""Whether a run can begin: its config against the model, the devices and the data on disk."""

import itertools
import os
from importlib import metadata

import jax
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
from xception_jax.training import evaluation, metrics
from xception_jax.training.telemetry import records
from xception_jax.utils import paths


def validate(config: ConfigDict, begun: ConfigDict | None = None) -> None:
    """Checks a config against the schema, the model, the devices and the data on disk.

    Args:
      config: of the run.
      begun: the resolved config of the run that is to go on, if there is one: it opens its data by
        the rules that it began with.

    Raises:
      UsageError: in one line, what is wrong and what mends it. Nothing has been compiled then.
    """
    config = config_lib.settled(config, begun)
    check_without_data(config, jax.device_count())
    records.check_writers(config_lib.log_writers(config))
    _check_processes(config, jax.device_count(), jax.process_count())
    if config.profile.steps:
        check_profiler()
    _check_data(config, begun)


def check_profiler() -> None:
    """Refuses to trace where JAX has loaded another libtpu than it asks for.

    JAX 0.10.2 with libtpu 0.0.52 ends by a segmentation fault then, also where there is no TPU.
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
                f"JAX {jax.__version__} cannot trace beside libtpu {there}, "
                f"only beside {need.specifier}; set JAX_PLATFORMS=cpu (or cuda) where there is no "
                f"TPU, else pip install 'xception_jax[tpu]'"
            )


def check_without_data(config: ConfigDict, devices: int) -> None:
    """What of `validate` can be checked without the data, for so many devices."""
    config_lib.check_fields(config)
    _check_paths(config)
    _check_ranges(config)
    _check_sampling(config)
    _check_batch(config, devices)
    _check_model(config)
    config_lib.Best.parse(config.eval.best)
    for name in ("", *(one.name for one in config_lib.eval_sets(config))):
        metrics.registered(config_lib.eval_metrics(config, name))


def _check_paths(config: ConfigDict) -> None:
    fields = config_lib.flatten(config)
    for name in ("init_from", "compilation_cache", "data.data_dir"):
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
            raise UsageError(f"config.{name} is {value}; it takes (least, largest)")
    check_crop(config)
    traced = config.profile.steps
    if traced and (len(traced) != 2 or traced[0] > traced[1]):
        raise UsageError(f"config.profile.steps is {traced}; it takes (first, last)")
    for name in ("augment.mixup", "augment.cutmix"):
        if 0 < fields[name] < 0.01:
            raise UsageError(f"config.{name} is {fields[name]}; it takes 0 (off) or at least 0.01")
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
    """Refuses a crop of evaluation that its preset does not take; both may be None still."""
    if config.data.eval_preset == "keras" and config.data.eval_crop not in (None, 1):
        raise UsageError(
            f"config.data.eval_crop is {config.data.eval_crop}; it must be 1.0 with "
            f"config.data.eval_preset keras, which takes all of the picture"
        )


def check_lengths(config: ConfigDict, examples: int) -> None:
    """Holds durations against each other, for a training split of so many examples."""
    opt, size = config.optimizer, {"batch_size": config.data.batch_size, "epoch": examples}
    warmup, total = (Duration.parse(text).steps(**size) for text in (opt.warmup, config.duration))
    if warmup > total:
        raise UsageError(
            f"config.optimizer.warmup is {opt.warmup!r}, {warmup:,} steps, and the run has "
            f"{total:,} (config.duration {config.duration!r}); make one shorter or the other longer"
        )


def _sharing(config: ConfigDict, devices: int) -> int:
    """How many of the devices share a batch, by `mesh.data` and `mesh.model`."""
    data, model = config.mesh.data, config.mesh.model
    if data == 0 or data > devices:
        raise UsageError(f"config.mesh.data is {data}; there are {devices} devices (-1: all)")
    if data == -1 and devices % model:
        raise UsageError(
            f"config.mesh.model is {model}, which does not divide the {devices} devices there are"
        )
    if data * model > devices:
        raise UsageError(
            f"config.mesh.model is {model} and config.mesh.data {data}, and there are {devices} "
            f"devices; take a mesh.model of at most {devices // data}"
        )
    return devices if data == -1 else data * model


def _check_processes(config: ConfigDict, devices: int, processes: int) -> None:
    """Each process computes its part of a batch, so each has to have its devices in the mesh."""
    taken = _sharing(config, devices)
    if processes > 1 and taken != devices:
        raise UsageError(
            f"config.mesh.data is {config.mesh.data}, which takes {taken} of the {devices} devices "
            f"of {processes} processes; all of them have to take part: take -1"
        )


def _check_batch(config: ConfigDict, devices: int) -> None:
    devices = _sharing(config, devices)
    batch, virtual = config.data.batch_size, config.model.bn_virtual_batch
    if batch % devices:
        multiples = [m for m in (batch // devices * devices, -(-batch // devices) * devices) if m]
        raise UsageError(
            f"config.data.batch_size is {batch}, which {devices} devices do not divide; take "
            f"{' or '.join(map(str, multiples))}"
        )
    if virtual is not None and batch % virtual:
        raise UsageError(
            f"config.data.batch_size is {batch}, not a multiple of "
            f"config.model.bn_virtual_batch, {virtual}"
        )
    if batch % 2 and (config.augment.mixup or config.augment.cutmix):
        raise UsageError(
            f"config.data.batch_size is {batch}, odd; config.augment.mixup and cutmix "
            f"mix pairs; take {batch + 1}"
        )
    share = batch // devices
    if virtual is not None and share % virtual and virtual % share:
        raise UsageError(
            f"config.model.bn_virtual_batch is {virtual} and a device's share of the batch "
            f"{share}; one must be a multiple of the other, or every device computes it all"
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
    if begun is None:  # older versions let a run begin that would be refused today
        check_lengths(config, len(train))
    if len(train.class_names) < 2:
        raise UsageError(f"config.data.dataset {config.data.dataset!r} has fewer than two classes")
    for name, test in evaluated.items():
        _check_set(train, name, test)
    known = evaluation.metric_names(config, evaluated)
    config_lib.Best.parse(config.eval.best).check(known)
    if config.data.balanced and train.multilabel:
        raise UsageError(
            f"config.data.balanced takes one label an image, and {train.name} has several"
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
            f"config.eval.also: {several.name} has several labels an image, and {one.name} one; it "
            f"takes sets of the run's kind"
        )


def _check_sampling(config: ConfigDict) -> None:
    data = config.data
    if data.mix_splits and len(data.mix_splits) != len(data.mix):
        raise UsageError(
            f"config.data.mix_splits names {len(data.mix_splits)} splits and config.data.mix "
            f"{len(data.mix)} data sets; it takes one for each"
        )
    if data.mix_weights is not None and len(data.mix_weights) != 1 + len(data.mix):
        raise UsageError(
            f"config.data.mix_weights holds {len(data.mix_weights)} numbers; it takes one for "
            f"config.data.dataset and one for each of the {len(data.mix)} of config.data.mix"
        )
    if data.mix_weights is not None and data.balanced:
        raise UsageError("config.data.balanced and mix_weights exclude each other; set one of them")
    if data.batch_size % data.repeats:
        raise UsageError(
            f"config.data.batch_size is {data.batch_size}, not a multiple of config.data.repeats, "
            f"{data.repeats}"
        )
    if data.batch_size == data.repeats and (config.augment.mixup or config.augment.cutmix):
        raise UsageError(
            f"config.data.repeats is {data.repeats}, all of the batch: config.augment.mixup and "
            f"cutmix would mix each image with itself"
        )


def _check_readable(source: Source, record: int, most: int) -> None:
    """Looks for an example that can be used, from a record on, past as many as may be skipped."""
    first: Exception | None = None
    records = range(len(source))
    for candidate in itertools.islice(candidates(records, record, len(source)), most + 1):
        try:
            decode.decode(source[candidate].encoded, source[candidate].name)
            return
        except ReadError:  # it says nothing about the example
            raise
        except Exception as error:  # files may be missing, cut short, or not what they say
            first = first or error
    reason = (str(first).splitlines() or [type(first).__name__])[0]
    raise UsageError(f"{source.name} cannot be read: {reason}")


def _check_loss(config: ConfigDict, data: str, classes: int, multilabel: bool) -> None:
    if multilabel and config.loss.name == "softmax":
        raise UsageError(
            f"config.loss.name is 'softmax', for one label an image, and {data} has several; take "
            f"sigmoid"
        )
    weights = config.loss.class_weights
    if weights is not None and len(weights) != classes:
        raise UsageError(
            f"config.loss.class_weights holds {len(weights)} numbers; it takes one for each of the "
            f"{classes} classes of {data}"
        )
