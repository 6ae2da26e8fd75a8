"""Finds the facts for `choice.choose`: opens the data and the weights, and measures the machine."""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.data import parts, readers, splits
from xception_jax.data.batches import Host
from xception_jax.data.labels import labels_of
from xception_jax.data.readers import folder, folder_layout, joined
from xception_jax.data.readers.folder_files import role_of
from xception_jax.data.render import decode
from xception_jax.data.source import FOLDER, Source
from xception_jax.errors import ExampleError, NoSplitError, ReadError, UsageError
from xception_jax.finetuning import table
from xception_jax.finetuning.facts import DataFacts, MachineFacts, WeightsFacts
from xception_jax.models import counts
from xception_jax.models.published import IMAGE_SIZE
from xception_jax.training.telemetry import outlook
from xception_jax.training.trained import Trained
from xception_jax.utils import paths
from xception_jax.weights import initial, pretrained, remote
from xception_jax.weights.tensors import abstract

# Pictures whose sizes are read.
_SAMPLED = 64


@dataclass(frozen=True)
class Splits:
    """What the splits of the data are used for.

    Attributes:
      fields: values of config fields: the training data, and the split that selects the checkpoint.
      test: the split that is read once, at the end; empty: there is none.
    """

    fields: Mapping[str, Any]
    test: str


def find_splits(config: ConfigDict, given: Mapping[str, Any]) -> Splits:
    """Decides what the splits are used for: a test set never selects anything.

    Args:
      config: with the data set.
      given: config fields that the user sets.

    Raises:
      UsageError: there is no such data, or the user wants to select by the test set.
    """
    asked = given.get("data.eval_split", "")
    if "test" in map(role_of, folder_layout.names_in(asked)):
        raise UsageError(
            f"config.data.eval_split is {asked!r}, but finetune selects by this split, and reads a "
            f"test set once, at the end; leave it out"
        )
    train, validation, test = _named(config)
    train = given.get("data.train_split", train)
    fields: dict[str, Any] = {"data.train_split": train}
    if asked:
        return Splits(fields | {"data.eval_split": asked}, test)
    if validation:
        return Splits(fields | {"data.eval_split": validation}, test)
    share = given.get("data.val_share", table.VAL_SHARE)
    if not share:
        raise UsageError(
            "config.data.val_share is 0, and the data has no validation part to select by; hold a "
            "share out, or name a split in config.data.eval_split"
        )
    return Splits(fields | {"data.eval_split": parts.HELD_OUT, "data.val_share": share}, test)


def _named(config: ConfigDict) -> tuple[str, str, str]:
    """The names of the training, validation and test split; empty where there is none."""
    data = config.data
    if not data.dataset.startswith(FOLDER):
        usual = ("validation", "test")
        validation, test = (name if _exists(config, name) else "" for name in usual)
        return "train", validation, test
    layout = folder.layout_of(data.dataset.removeprefix(FOLDER), data.data_dir)
    if layout.divided is not None:  # nobody has divided it yet
        return "train+test", "", ""
    test = layout.find("test") or ""
    test = test if role_of(test) == "test" else ""
    return layout.find("train") or "train", layout.find("validation") or "", test


def _exists(config: ConfigDict, split: str) -> bool:
    try:
        splits.open_split(config, split)
    except (NoSplitError, LookupError):  # LookupError: of a reader from outside of the package
        return False
    return True


def data_facts(source: Source) -> DataFacts:
    """The facts about the training data; some of its pictures are opened."""
    smallest = largest = 0
    if not source.multilabel:
        found = np.bincount(np.maximum(labels_of(source), 0), minlength=len(source.class_names))
        smallest, largest = int(found.min()), int(found.max())
    return DataFacts(
        len(source), len(source.class_names), smallest, largest, _side(source), source.multilabel
    )


def _side(source: Source) -> int:
    """The median of the shorter sides, in a sample."""
    sides = []
    for record in np.linspace(0, len(source) - 1, min(_SAMPLED, len(source))).astype(int):
        try:
            claim = decode.examine(source[int(record)].encoded)
        except ReadError:
            raise
        except ExampleError:
            continue
        sides.append(min(claim.height, claim.width))
    return int(np.median(sides)) if sides else IMAGE_SIZE


def machine_facts(given: Mapping[str, Any]) -> MachineFacts:
    """The facts about the devices that a run would use; the speed is measured."""
    device, platform = jax.local_devices()[0], jax.default_backend()
    devices = jax.device_count()
    if given.get("mesh.data", -1) > 0:
        devices = min(devices, given["mesh.data"] * given.get("mesh.model", 1))
    on_cpu = platform == "cpu"  # all cores are one device, or share it
    speed = outlook.multiply_adds_per_second(
        1024 if on_cpu else 8192, config_lib.compute_dtype(given.get("model.dtype", "auto"))
    )
    stats = device.memory_stats() or {}
    memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kind = f"CPU of {Host().at_once} cores" if on_cpu else device.device_kind
    each = memory // devices if on_cpu else memory
    return MachineFacts(platform, kind, devices, each, speed if on_cpu else speed * devices)


def weights_facts(name: str, given: Mapping[str, Any]) -> WeightsFacts:
    """The facts about weights, which are downloaded if need be.

    Raises:
      UsageError: there are no such weights.
      RunError: they cannot be downloaded.
    """
    config = _resolved(name, given)
    model = config.model.name
    network = abstract(model, None, config_lib.model_overrides(config) | {"freeze": None})
    side = config.data.image_size
    least = network.min_image_size
    work = counts.multiply_adds(counts.forward_program(network, max(side, least)))
    flows = ("entry_flow", "middle_flow", "exit_flow")
    return WeightsFacts(
        name, model, side, config.data.eval_preset, work, least,
        blocks=tuple(name for name, _ in network.blocks()),
        flows=tuple(flow for flow in flows if list(getattr(network, flow, ()))),
    )  # fmt: skip


def _resolved(name: str, given: Mapping[str, Any]) -> ConfigDict:
    """A config of the model that the weights belong to, with their images."""
    config = config_lib.default()
    overrides = {key: value for key, value in given.items() if key.startswith("model.")}
    config.update_from_flattened_dict({**overrides, "model.freeze": None, "init_from": name})
    config_lib.check_fields(config)
    errors = []
    for model in _models(name, config, given):
        config.model.name = model
        try:
            return initial.resolve_with_weights(config)
        except UsageError as error:
            errors.append(error)
    raise errors[0]


def _models(name: str, config: ConfigDict, given: Mapping[str, Any]) -> Sequence[str]:
    """The models that the weights may belong to, the most likely one first."""
    if "model.name" in given:
        return [given["model.name"]]
    source = initial.open_weights(config)
    if source.model or source.unknown_model:
        return [source.model_name()]
    known = pretrained.model_names(source.format)
    return sorted(known, key=lambda model: model != config.model.name)


def check_test(config: ConfigDict, test: str) -> int:
    """The number of pictures of the test set, of which nothing else is read here.

    Args:
      config: with the splits that train and select.
      test: the split; empty: there is none.

    Raises:
      UsageError: a picture of it would train or select, or it has other classes.
    """
    if not test:
        return 0
    source, train = splits.open_split(config, test), splits.open_training(config)
    kept = _contents(source)
    evaluated = splits.open_evaluation(config)
    for name, one in {"data.train_split or data.mix": train, **evaluated}.items():
        if kept & _contents(one):
            where = name if one is train else "eval.also" if name else "data.eval_split"
            raise UsageError(
                f"config.{where} has pictures of the test set {test!r}, but finetune reads a test "
                f"set once, at the end; leave them out"
            )
    if not config.data.folds:  # else nothing is evaluated on it
        joined.same_classes(train, source)
    return len(source)


def _contents(source: Source) -> set[str]:
    """What a split consists of: its files; of a TFDS data set the splits that it has parts of."""
    records = source.records
    if isinstance(records, joined.JoinedRecords):
        return set().union(*map(_contents, records.parts))
    if isinstance(records, parts.Subset):
        return _contents(records.whole)
    if source.directory:
        split = source.name.partition(":")[2]
        return {f"{source.directory}:{name}" for name in folder_layout.names_in(split)}
    real = functools.cache(os.path.realpath)
    found = [os.path.split(path) for i in range(len(source)) if (path := source.path_of(i))]
    # The name of other data identifies it.
    return {os.path.join(real(place), name) for place, name in found} or {source.name}


def pinned(name: str) -> str:
    """The name of the same weights at any time: with the commit, or the checkpoint of a run.

    Raises:
      UsageError: there are no such weights.
      RunError: they cannot be downloaded.
    """
    if paths.is_weights_name(name):
        return remote.pinned(name)
    path = Path(name).expanduser()
    if (run := pretrained.run_of(path)) is None:
        return name
    folder, step = run
    return str(folder / "checkpoints" / str(Trained.find(folder, step).step))


def digest(name: str) -> str:
    """The SHA-256 of weights in a file on this machine; empty: `pinned` tells others apart."""
    path = Path(name).expanduser()
    if paths.is_weights_name(name) or not path.is_file():
        return ""
    return remote.downloads.digest(path, "sha256")


def dataset_of(path: str | os.PathLike[str]) -> str:
    """The name of a folder as a data set."""
    return FOLDER + os.fspath(path)


def default_workdir(dataset: str) -> Path:
    """The folder of the run for a data set: `runs/NAME`."""
    prefix = readers.prefix_of(dataset)
    path = Path(dataset.removeprefix(prefix)).expanduser()
    name = path.resolve().name if prefix == FOLDER else path.name
    return Path("runs") / (name.removesuffix(".csv") or "finetuned")
