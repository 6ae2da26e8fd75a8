"""Readers of data sets by prefix: `folder:PATH`, a user's own; without a prefix, TFDS."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from xception_jax.config.registry import Registry
from xception_jax.config.schema import FOLDER_RULES
from xception_jax.data.source import FOLDER, Source
from xception_jax.errors import UsageError


@dataclass(frozen=True)
class Options:
    """Options for opening a split.

    Attributes:
      data_dir: the folder of TFDS' data, empty for TFDS' default. A relative path of a data set
        starts here.
      label: the feature with the labels, `objects/label` for a nested one; None or empty for the
        only one. A label inside a sequence makes the set a multi-label one.
      test_share, split_seed, most_missing, hold_out: for a folder, see `readers.folder`.
      folder_rules: see `folder_files.RULES`; 0: the newest.
    """

    data_dir: str = ""
    label: str | None = None
    test_share: float = 0.2
    split_seed: int = 0
    most_missing: float = 0.001
    hold_out: str = ""
    folder_rules: int = 0


# Opens a split, given the data set's name without its prefix, the split, and the options.
OpenSplit = Callable[[str, str, Options], Source]

_READERS = Registry[OpenSplit]("data source")


def register(prefix: str) -> Callable[[OpenSplit], OpenSplit]:
    """Decorates the function that opens the splits of data sets whose names have a prefix.

    The function then opens `PREFIX...` in `config.data.dataset`, for training and evaluation. The
    records of its `Source` are encoded images: PNG, JPEG and similar.

    Args:
      prefix: lower-case letters, digits and `_`, and a colon at the end: `npz:`.

    Raises:
      UsageError: the prefix is invalid or already registered.
    """

    def decorate(function: OpenSplit) -> OpenSplit:
        if not re.fullmatch(r"(?:[a-z][a-z0-9_]*:)?", prefix):
            raise UsageError(f"data source {prefix!r}: a prefix is a word and a colon, as 'npz:'")
        _READERS.add(prefix, function, function)
        return function

    return decorate


def prefix_of(dataset: str) -> str:
    """The prefix of a data set's name, which selects its reader; empty: TFDS."""
    prefix = dataset[: dataset.find(":") + 1]
    return prefix if prefix in _READERS else ""


def prefixes() -> list[str]:
    """The registered prefixes."""
    return [prefix for prefix in _READERS.names() if prefix]


def open_split(
    dataset: str,
    split: str,
    data_dir: str | None = None,
    *,
    label: str | None = None,
    test_share: float = 0.2,
    split_seed: int = 0,
    most_missing: float = 0.001,
    hold_out: str = "",
    folder_rules: int = 0,
) -> Source:
    """Opens a split of a folder of images, of a prepared TFDS data set, or of a user's data set.

    Args:
      dataset: `folder:PATH`, see `readers.folder`; a name with the prefix of a registered reader;
        or a TFDS name, `name`, `name/config` or `name:version`. The embedded `optical_digits` is
        prepared on first use (a second, under a megabyte).
      split: a TFDS split, `train` or a part of one, `train[:10%]`.
      data_dir, label, test_share, split_seed, most_missing, hold_out, folder_rules: see `Options`.

    Raises:
      NoSplitError: the data set has no such split.
      UsageError: the data set is unknown, not prepared or empty, or does not have exactly one image
        feature and one label feature.
      RunError: a tfrecord file is damaged.
    """
    options = Options(
        data_dir or "", label, test_share, split_seed, most_missing, hold_out, folder_rules
    )
    prefix = prefix_of(dataset)
    return _READERS.find(prefix)(dataset.removeprefix(prefix), split, options)


# A reader is imported when a data set is opened, so that only its own dependencies are needed.
@register(FOLDER)
def _open_folder(path: str, split: str, options: Options) -> Source:
    from xception_jax.data.readers import folder

    return folder.open_split(
        path, split, options.data_dir, test_share=options.test_share,
        split_seed=options.split_seed, most_missing=options.most_missing,
        hold_out=options.hold_out, rules=options.folder_rules or FOLDER_RULES,
    )  # fmt: skip


@register("")
def _open_tfds(name: str, split: str, options: Options) -> Source:
    from xception_jax.data.readers import tfds

    return tfds.open_split(name, split, options.data_dir, options.label)
