"""Random access to one split of a data set: of TFDS, without TensorFlow, or of a folder."""

import contextlib
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from xception_jax.data.readers import features, tfrecord
from xception_jax.errors import ExampleError, ReadError, UsageError, nearest
from xception_jax.utils import retry
from xception_jax.utils.text import quoted

EMBEDDED = "optical_digits"
FOLDER = "folder:"

# Sizes of data sets that are not prepared: TFDS' package does not have them. This one's are on
# image-net.org/challenges/LSVRC/2012.
PUBLISHED = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}


class Example(NamedTuple):
    """An image as it is stored, what it shows, and how to name it in a complaint.

    The label is a number, or, in a multi-label set, multi-hot uint8 `[classes]`.
    """

    encoded: bytes
    label: int | np.ndarray
    name: str


@dataclass(frozen=True)
class Source:
    """One split of a data set. `source[i]` is an `Example`.

    Attributes:
      name: the data set, its version and split, as `optical_digits/1.0.0:train`.
      class_names: what each label means; their number is the number of classes.
      records: the split's examples as TFDS reads them, images still encoded.
      image_key, label_key: the names of the two features, that of a nested one as `objects/label`.
      multilabel: whether an example has any number of labels.
      confidence_key: of such labels, where they have one; at 0 the label was verified as absent.
      describe: how a complaint names an example; None: by its number.
      summary: what is to be said of the split at the start of a run; may be empty.
      directory: where TFDS has prepared it; empty: it is none of TFDS'.
      patience: seconds for which a read that fails for a passing reason is tried again.
    """

    name: str
    class_names: tuple[str, ...]
    records: Sequence[Any]
    image_key: str
    label_key: str
    multilabel: bool = False
    confidence_key: str | None = None
    describe: Callable[[int], str] | None = None
    summary: str = ""
    directory: str = ""
    patience: float = retry.SECONDS

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Reads an example.

        Raises:
          ExampleError: its bytes are damaged, its file is gone or denied, or its label is wrong.
          ReadError: it could not be read for `patience` seconds; see `retry`.
        """
        name = self.name_of(index)
        try:
            record = retry.reading(partial(self._read, index), name, seconds=self.patience)
        except (ExampleError, ReadError):  # the first: of one of several sets that are joined
            raise
        # RuntimeError: our own of a damaged tfrecord, and array_record's of a wrong hash. The last
        # two: protobuf's and TFDS' of a record that is whole, and no example of this data set.
        except (OSError, RuntimeError, ValueError, DecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise ExampleError(name, f"cannot be read: {reason}") from None
        encoded, marked = record[self.image_key], _value(record, self.label_key)
        if encoded is None or marked is None:
            raise ExampleError(name, f"has no {'image' if encoded is None else 'label'}")
        labels = np.ravel(marked).tolist()
        classes = len(self.class_names)
        outside = [label for label in labels if not 0 <= label < classes]
        if outside:
            # On the device it would train the wrong class, or give NaN with finite gradients.
            raise ExampleError(name, f"has label {outside[0]}, outside 0...{classes - 1}")
        label = self._multi_hot(record, labels) if self.multilabel else int(labels[0])
        return Example(encoded, label, name)

    def _read(self, index: int) -> Any:
        try:
            return self.records[index]
        except Exception as error:
            files = getattr(self.records, "data_source", None)
            if files is not None and retry.transient(error):
                # An array_record reader that failed once fails for ever. Pickle's own methods
                # forget the readers; other threads keep those they hold.
                files.__setstate__(files.__getstate__())
            raise

    def name_of(self, index: int) -> str:
        """What a complaint calls an example."""
        return self.describe(index) if self.describe else f"example {index} of {self.name}"

    def _multi_hot(self, record: Any, marked: list[int]) -> np.ndarray:
        labels = np.asarray(marked, np.int64)
        found = np.zeros(len(self.class_names), np.uint8)
        found[labels] = 1
        if self.confidence_key:
            # People verify what a machine was sure of: an entry with 0 overrules the others.
            found[labels[np.asarray(_value(record, self.confidence_key)) <= 0]] = 0
        return found

    @property
    def no_label(self) -> int | np.ndarray:
        """The label of a row that only fills up a batch."""
        return np.zeros(len(self.class_names), np.uint8) if self.multilabel else 0

    def __repr__(self) -> str:
        return f"Source({self.name!r}, {len(self)} examples)"


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
    """Opens a split of a folder of images, or of a TFDS data set prepared already.

    Args:
      dataset: `folder:PATH`, see `data.folder`; or a TFDS name, `name`, `name/config` or
        `name:version`. The embedded `optical_digits` is prepared on first use (a second, under a
        megabyte).
      split: a TFDS split, `train` or a part of one, `train[:10%]`.
      data_dir: where TFDS keeps its data; None or empty for TFDS' own default. A relative PATH of
        a folder starts here.
      label: the feature with the labels, `objects/label` for a nested one; None or empty for the
        one that there is. Inside a sequence it makes the set a multi-label one.
      test_share, split_seed, most_missing, hold_out: of a folder, see `data.folder`.
      folder_rules: see `data.folder_files.RULES`; 0: the newest.

    Raises:
      UsageError: the data set is unknown, not prepared, empty, or has not one image and one such
        feature.
      RunError: a tfrecord file is damaged.
    """
    if dataset.startswith(FOLDER):
        from xception_jax.data.readers import folder  # it builds on this module

        path = dataset.removeprefix(FOLDER)
        return folder.open_split(
            path, split, data_dir or "", test_share=test_share, split_seed=split_seed,
            most_missing=most_missing, hold_out=hold_out, rules=folder_rules or folder.RULES,
        )  # fmt: skip
    return _open_prepared(dataset, split, data_dir, label)


class Metadata(NamedTuple):
    """What is known of a split without its data: `examples` may be None."""

    classes: int
    multilabel: bool
    examples: int | None


def metadata(
    dataset: str, split: str, data_dir: str | None = None, *, label: str | None = None
) -> Metadata:
    """What TFDS knows of a split, whether the data set is prepared or not.

    Args:
      dataset: a TFDS name.
      split, data_dir, label: see `open_split`.

    Raises:
      UsageError: there is no such data set, split or label.
    """
    builder = find_builder(dataset, os.path.expanduser(data_dir) if data_dir else None)
    labels = features.label_features(builder)
    feature, multilabel = labels[features.label_key(builder, dataset, labels, label)]
    known = builder.info.splits or _published(builder)
    if not known:
        return Metadata(feature.num_classes, multilabel, None)
    try:
        return Metadata(feature.num_classes, multilabel, known[split].num_examples)
    except (KeyError, ValueError):
        splits = ", ".join(sorted(known))
        raise UsageError(f"{dataset} has no split {split!r}; it has: {splits}") from None


def _published(builder: tfds.core.DatasetBuilder) -> tfds.core.splits.SplitDict:
    """The sizes of splits that are not prepared; empty where they are not known."""
    files = tfds.core.ShardedFileTemplate(
        data_dir=builder.data_dir, dataset_name=builder.name, filetype_suffix="array_record"
    )
    return tfds.core.splits.SplitDict(
        tfds.core.SplitInfo(name=name, shard_lengths=[count], num_bytes=0, filename_template=files)
        for name, count in PUBLISHED.get(builder.name, {}).items()
    )


def _open_prepared(dataset: str, split: str, data_dir: str | None, label: str | None) -> Source:
    """Opens a split that TFDS has prepared as array_record or tfrecord; see `open_split`."""
    builder = _builder(dataset, os.path.expanduser(data_dir) if data_dir else None)
    images = features.named(builder, tfds.features.Image)
    image_key = features.only(builder, dataset, "image", images)
    labels = features.label_features(builder)
    label_key = features.label_key(builder, dataset, labels, label)
    label_feature, multilabel = labels[label_key]
    try:
        examples = builder.info.splits[split].num_examples
    except (KeyError, ValueError):
        splits = ", ".join(sorted(builder.info.splits))
        raise UsageError(f"{dataset} has no split {split!r}; it has: {splits}") from None
    if examples <= 0:
        raise UsageError(f"{split!r} of {dataset} in {builder.data_dir} is empty")
    decoders = {image_key: tfds.decode.SkipDecoding()}
    records: Sequence[Any]
    try:
        records = builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError:
        file_format = builder.info.file_format.value
        if file_format != "tfrecord":
            raise UsageError(
                f"{dataset} in {builder.data_dir} is prepared as {file_format}, which has no "
                f"random access; move it away and prepare it with: {_prepare_command(builder)}"
            ) from None
        records = tfrecord.open_split(builder.info, split, decoders)
    return Source(
        name=f"{builder.info.full_name}:{split}",
        class_names=tuple(label_feature.names),
        records=records,
        image_key=image_key,
        label_key=label_key,
        multilabel=multilabel,
        confidence_key=features.confidence_key(builder, label_key) if multilabel else None,
        directory=str(builder.data_dir),
    )


def _builder(dataset: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The data set's TFDS builder, its data known to be on disk."""
    builder = find_builder(dataset, data_dir)
    if builder.name == EMBEDDED:
        tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS tells of its work in prints
                builder.download_and_prepare(file_format="array_record")
        except OSError as error:
            # Another process may have prepared it meanwhile: theirs is as good.
            builder = find_builder(dataset, data_dir)
            if not builder.info.splits:
                raise UsageError(f"{EMBEDDED} cannot be prepared in {data_dir}: {error}") from None
    elif not builder.info.splits:
        raise UsageError(
            f"{dataset} is not prepared in {builder.data_dir}; prepare it with: "
            f"{_prepare_command(builder)}"
        )
    return builder


def find_builder(dataset: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a data set, whether its data is on disk or not.

    Raises:
      UsageError: there is none, or it cannot be opened.
    """
    if re.split("[:/]", dataset)[0] == EMBEDDED:
        from xception_jax.data.readers.optical_digits import (
            OpticalDigits,  # registers itself with TFDS
        )

        if dataset not in (EMBEDDED, f"{EMBEDDED}:{OpticalDigits.VERSION}"):
            raise UsageError(
                f"no data set {dataset!r}; there is {EMBEDDED}:{OpticalDigits.VERSION}"
            )
        return OpticalDigits(data_dir=data_dir, file_format="array_record")
    _refuse_path(dataset, data_dir)
    _refuse_community(dataset)
    try:
        return tfds.builder(dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = [EMBEDDED, *tfds.list_builders(with_community_datasets=False)]
        where = data_dir or tfds.core.constants.DATA_DIR
        raise UsageError(
            f"no data set {dataset!r} in {where} or among TFDS' own{nearest(dataset, known)}"
        ) from None
    except (ValueError, AssertionError, ImportError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"data set {dataset!r} cannot be opened: {reason}") from None


# What no name of TFDS looks like: a path from the root, the home or the current folder, one with
# Windows' separators, a table, and what other tools put before a path.
_PATH = re.compile(r"(?:[/~.\\]|[a-z]:[/\\]).*|.*\\.*|.*\.csv|(?:folder|dir|path|file):.*", re.I)


def _refuse_path(dataset: str, data_dir: str | None) -> None:
    """Raises `UsageError` for a path in place of a name, with the name that it has as a folder."""
    path = re.sub(r"^(folder|dir|path|file):(//)?", "", dataset, flags=re.IGNORECASE)
    there = os.path.join(data_dir or "", os.path.expanduser(path))
    if _PATH.fullmatch(dataset) or (os.path.isdir(there) and not _is_known(dataset, there)):
        raise UsageError(
            f"no data set {dataset!r}; did you mean {FOLDER}{path}? A folder of images is read as "
            f"it is"
        )


def _is_known(dataset: str, folder: str) -> bool:
    """Whether a name is one of TFDS', or its folder holds one: versions, or configs with them."""
    if re.split("[:/]", dataset)[0] in tfds.list_builders(with_community_datasets=False):
        return True
    inside = [folder, *(e.path for e in os.scandir(folder) if e.is_dir())]
    inside += [e.path for each in inside[1:] for e in os.scandir(each) if e.is_dir()]
    return any(os.path.isfile(os.path.join(each, "dataset_info.json")) for each in inside)


def _refuse_community(dataset: str) -> None:
    """Raises `UsageError` for `huggingface:NAME` and the like: TFDS downloads code for them.

    The name may be that of a stranger's `config.json`.
    """
    try:
        namespace = tfds.core.naming.parse_builder_name_kwargs(dataset)[0].namespace
    except ValueError:  # told of by TFDS
        return
    if namespace:
        raise UsageError(
            f"data set {dataset!r} is one of TFDS' community, whose code it would download and "
            f"run; take one of its own, or prepare it with --imports=YOUR_MODULE"
        )


def _prepare_command(builder: tfds.core.DatasetBuilder) -> str:
    """The command that prepares a data set, for a complaint that it is not."""
    command = (
        f"python -m xception_jax.prepare --dataset={builder.name} "
        f"--data_dir={quoted(builder._data_dir_root)}"
    )
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        command += " --manual_dir=FOLDER_OF_ITS_ARCHIVES"
    return command


def _value(nested: Any, key: str) -> Any:
    """What `key` names: an entry, or one of an entry's own, as `objects/label`."""
    if key in nested:
        return nested[key]
    group, _, name = key.rpartition("/")
    return nested[group][name]
