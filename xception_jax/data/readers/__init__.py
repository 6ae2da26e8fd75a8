"""Readers of data sets by prefix: `folder:PATH`, those of a user, and without a prefix TFDS."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from xception_jax.config.registry import Registry, where_is
from xception_jax.config.schema import FOLDER_RULES
from xception_jax.data.source import FOLDER, Source
from xception_jax.errors import UsageError


@dataclass(frozen=True)
class Options:
    """How a split is opened, besides its name.

    Attributes:
      data_dir: where TFDS keeps its data, empty for TFDS' own default. A relative path of a data
        set starts here.
      label: the feature with the labels, `objects/label` for a nested one; None or empty for the
        one that there is. Inside a sequence it makes the set a multi-label one.
      test_share, split_seed, most_missing, hold_out: of a folder, see `readers.folder`.
      folder_rules: see `folder_files.RULES`; 0: the newest.
    """

    data_dir: str = ""
    label: str | None = None
    test_share: float = 0.2
    split_seed: int = 0
    most_missing: float = 0.001
    hold_out: str = ""
    folder_rules: int = 0


# Opens a split: the name of the data set without its prefix, the split, and the options.
OpenSplit = Callable[[str, str, Options], Source]

_READERS = Registry[OpenSplit]("data source")


def register(prefix: str) -> Callable[[OpenSplit], OpenSplit]:
    """Decorates the function that opens the splits of data sets whose names have a prefix.

    `PREFIX...` in `config.data.dataset` is then read by it, in training as in evaluation. The
    records of the `Source` are images as they are stored: PNG, JPEG and the like.

    Args:
      prefix: lower-case letters, digits and `_`, and a colon at the end: `npz:`.

    Raises:
      UsageError: it is no such prefix, or is registered already.
    """

    def decorate(function: OpenSplit) -> OpenSplit:
        if not re.fullmatch(r"(?:[a-z][a-z0-9_]*:)?", prefix):
            raise UsageError(f"data source {prefix!r}: a prefix is a word and a colon, as 'npz:'")
        _READERS.add(prefix, function, where_is(function))
        return function

    return decorate


def prefix_of(dataset: str) -> str:
    """The prefix of a data set's name that says who reads it; empty: TFDS does."""
    prefix = dataset[: dataset.find(":") + 1]
    return prefix if prefix in _READERS else ""


def prefixes() -> list[str]:
    """Those that there are."""
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
    """Opens a split of a folder of images, of a TFDS data set prepared already, or of a user's.

    Args:
      dataset: `folder:PATH`, see `readers.folder`; a name with the prefix of a registered reader;
        or a TFDS name, `name`, `name/config` or `name:version`. The embedded `optical_digits` is
        prepared on first use (a second, under a megabyte).
      split: a TFDS split, `train` or a part of one, `train[:10%]`.
      data_dir, label, test_share, split_seed, most_missing, hold_out, folder_rules: see `Options`.

    Raises:
      UsageError: the data set is unknown, not prepared, empty, or has not one image and one such
        feature.
      RunError: a tfrecord file is damaged.
    """
    options = Options(
        data_dir or "", label, test_share, split_seed, most_missing, hold_out, folder_rules
    )
    prefix = prefix_of(dataset)
    return _READERS.find(prefix)(dataset.removeprefix(prefix), split, options)


# The reader that has what a data set needs is imported when one is opened.
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
