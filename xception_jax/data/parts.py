"""Parts of a training split: what is held out from it, and the folds of a cross-validation.

Each class gives its share to each part. The choice depends on `data.split_seed`. In a folder it
also depends on the names of the files, and an added file moves few others.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from xception_jax.data.labels import labels_of
from xception_jax.data.readers import folder
from xception_jax.data.source import Source
from xception_jax.errors import UsageError

# The names of the parts as splits.
HELD_OUT, FOLD = "held_out", "fold"


def names(config: ConfigDict) -> list[str]:
    """The names of the parts that a config leaves out of training."""
    data = config.data
    return [*([FOLD] if data.folds else []), *([HELD_OUT] if data.val_share else [])]


@dataclass(frozen=True)
class Subset(Sequence[Any]):
    """Some of the records of a split.

    Attributes:
      whole: the split.
      indices: int `[len(self)]`, the chosen records.
    """

    whole: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.whole.records[int(self.indices[index])]

    @cached_property
    def data_source(self) -> Any:
        """TFDS' reader of the files, which `Source` reopens after an error."""
        return getattr(self.whole.records, "data_source", None)

    def describe(self, index: int) -> str:
        """The name of a record in error messages."""
        return self.whole.name_of(int(self.indices[index]))


def divide(config: ConfigDict, whole: Source) -> dict[str, Source]:
    """The parts of the training split by name; what is left for training has an empty name.

    Args:
      config: `data.folds`, `fold`, `val_share` and `split_seed`.
      whole: the config's `train_split`.

    Raises:
      UsageError: a part is empty.
    """
    data, asked = config.data, names(config)
    if not asked:
        return {"": whole}
    seed = data.split_seed
    # A folder's records are in the order of a hash of their names.
    ranks = np.arange(len(whole)) if _files(whole) else _shuffled(len(whole), seed)
    labels = np.zeros(len(whole), np.int32) if whole.multilabel else labels_of(whole)
    left, parts = ranks, {}
    if data.folds:
        number = folds(labels[left], whole.class_names, data.folds, seed)
        told = f"fold {data.fold + 1}/{data.folds}"
        parts[FOLD] = _part(whole, left[number == data.fold], told, seed)
        left = left[number != data.fold]
    if data.val_share:
        held = held_out(labels[left], data.val_share)
        parts[HELD_OUT] = _part(whole, left[held], ", ".join(_tags(config)), seed)
        left = left[~held]
    rest = _part(whole, left, f"without {', '.join(_tags(config))}", seed)
    counts = [f"{name} has {len(part):,}" for name, part in parts.items()]
    summary = f"{len(rest):,} images are left for training; {', '.join(counts)}"
    return {"": replace(rest, summary=f"{whole.summary}\n{summary}".strip()), **parts}


def _tags(config: ConfigDict) -> list[str]:
    data = config.data
    fold = [f"fold {data.fold + 1}/{data.folds}"] if data.folds else []
    return [*fold, *([f"held out {data.val_share:g}"] if data.val_share else [])]


def folds(labels: np.ndarray, class_names: Sequence[str], count: int, seed: int) -> np.ndarray:
    """The fold of each record, int `[records]` from 0 to `count - 1`.

    Each class is spread evenly. A class with fewer records than folds begins at a fold that its
    name decides, so that the folds have about the same size.

    Args:
      labels: int `[records]`, by rank.
      class_names: of the labels.
      count: of folds.
      seed: of the first folds of the classes.
    """
    number = np.zeros(len(labels), np.int64)
    for mine in _by_class(labels):
        label = int(labels[mine[0]])
        name = class_names[label] if label >= 0 else ""
        key = seed.to_bytes(8, "little")
        digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8, key=key)
        first = int.from_bytes(digest.digest(), "little") % count
        number[mine] = (first + np.arange(len(mine)) * count // len(mine)) % count
    return number


def held_out(labels: np.ndarray, share: float) -> np.ndarray:
    """Which records are held out, bool `[records]`.

    It is a share of each class: at least one record of two or more, never all.

    Args:
      labels: int `[records]`, by rank.
      share: of each class.
    """
    held = np.zeros(len(labels), bool)
    for mine in _by_class(labels):
        count = min(max(1, int(share * len(mine) + 0.5)), len(mine) - 1)
        held[mine[:count]] = True
    return held


def _by_class(labels: np.ndarray) -> list[np.ndarray]:
    """The places of each class, in their order."""
    if not len(labels):
        return []
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _shuffled(records: int, seed: int) -> np.ndarray:
    # Not `Generator.permutation`: NumPy guarantees only that the raw numbers stay the same.
    bits = np.random.Philox(np.random.SeedSequence(seed))
    return np.argsort(bits.random_raw(records), kind="stable")


def _files(source: Source) -> bool:
    return isinstance(source.records, folder.Files)


def _part(whole: Source, indices: np.ndarray, told: str, seed: int) -> Source:
    """Some records of a split, in its order."""
    told = f"{told}, seed {seed}" if seed else told
    name, indices = f"{whole.name}[{told}]", np.sort(indices)
    if not len(indices):
        raise UsageError(
            f"{name} is empty: {len(whole):,} images of {len(whole.class_names):,} classes are too "
            f"few to divide; lower config.data.folds, or set config.data.val_share=0 and another "
            f"config.data.eval_split"
        )
    records: folder.Files | Subset
    if isinstance(files := whole.records, folder.Files):
        chosen = [files.names[i] for i in indices]
        records = replace(files, names=chosen, labels=files.labels[indices])
    else:
        records = Subset(whole, indices)
    return replace(whole, name=name, records=records, describe=records.describe, summary="")
