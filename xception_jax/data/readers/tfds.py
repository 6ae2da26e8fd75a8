"""Random access to one split of a data set that TFDS has prepared, without TensorFlow."""

import contextlib
import io
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from xception_jax.data.readers import features, tfrecord
from xception_jax.data.source import FOLDER, Source
from xception_jax.errors import NoSplitError, UsageError, nearest
from xception_jax.utils.text import quoted

EMBEDDED = "optical_digits"

# Sizes of unprepared data sets that TFDS' package does not contain. Source of this one:
# image-net.org/challenges/LSVRC/2012.
PUBLISHED = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}


class Metadata(NamedTuple):
    """Facts about a split that are known without its data; `examples` is None if unknown."""

    classes: int
    multilabel: bool
    examples: int | None


def metadata(
    dataset: str, split: str, data_dir: str | None = None, *, label: str | None = None
) -> Metadata:
    """TFDS' facts about a split, whether or not the data set is prepared.

    Args:
      dataset: a TFDS name.
      split, data_dir, label: see `readers.open_split`.

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
        raise NoSplitError(f"{dataset} has no split {split!r}; it has: {splits}") from None


def _published(builder: tfds.core.DatasetBuilder) -> tfds.core.splits.SplitDict:
    """The sizes of splits that are not prepared; empty if they are not known."""
    files = tfds.core.ShardedFileTemplate(
        data_dir=builder.data_dir, dataset_name=builder.name, filetype_suffix="array_record"
    )
    return tfds.core.splits.SplitDict(
        tfds.core.SplitInfo(name=name, shard_lengths=[count], num_bytes=0, filename_template=files)
        for name, count in PUBLISHED.get(builder.name, {}).items()
    )


def open_split(dataset: str, split: str, data_dir: str | None, label: str | None) -> Source:
    """Opens a split that is prepared as array_record or tfrecord; see `readers.open_split`."""
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
        raise NoSplitError(f"{dataset} has no split {split!r}; it has: {splits}") from None
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
    """The TFDS builder of a data set whose data is on disk."""
    builder = find_builder(dataset, data_dir)
    if builder.name == EMBEDDED:
        tfds.disable_progress_bar()
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints its progress
                builder.download_and_prepare(file_format="array_record")
        except OSError as error:
            # Another process may have prepared it in the meantime; then that data is used.
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
    """The TFDS builder of a data set, whether or not its data is on disk.

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
    _refuse_prefix(dataset)
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


# Names that cannot be TFDS data sets: a path from the root, the home or the current folder, one
# with Windows separators, a table, and prefixes that other tools use for paths.
_PATH = re.compile(r"(?:[/~.\\]|[a-z]:[/\\]).*|.*\\.*|[^:]*\.csv|(?:folder|dir|path|file):.*", re.I)


def _refuse_path(dataset: str, data_dir: str | None) -> None:
    """Raises `UsageError` for a path in place of a name; suggests the name with `folder:`."""
    path = re.sub(r"^(folder|dir|path|file):(//)?", "", dataset, flags=re.IGNORECASE)
    there = os.path.join(data_dir or "", os.path.expanduser(path))
    if _PATH.fullmatch(dataset) or (os.path.isdir(there) and not _is_known(dataset, there)):
        raise UsageError(
            f"no data set {dataset!r}; did you mean {FOLDER}{path}? A folder of images is read as "
            f"it is"
        )


def _is_known(dataset: str, folder: str) -> bool:
    """Whether a name is one of TFDS', or its folder holds versions, or configs of versions."""
    if re.split("[:/]", dataset)[0] in tfds.list_builders(with_community_datasets=False):
        return True
    inside = [folder, *(e.path for e in os.scandir(folder) if e.is_dir())]
    inside += [e.path for each in inside[1:] for e in os.scandir(each) if e.is_dir()]
    return any(os.path.isfile(os.path.join(each, "dataset_info.json")) for each in inside)


def _refuse_community(dataset: str) -> None:
    """Raises `UsageError` for `huggingface:NAME` and similar: TFDS downloads code for them.

    The name may come from an untrusted `config.json`.
    """
    try:
        namespace = tfds.core.naming.parse_builder_name_kwargs(dataset)[0].namespace
    except ValueError:  # TFDS reports it later
        return
    if namespace:
        raise UsageError(
            f"data set {dataset!r} is one of TFDS' community, whose code it would download and "
            f"run; use one of TFDS' own, or prepare it with --imports=YOUR_MODULE; a prefix that "
            f"your own file registers needs --imports=FILE here"
        )


def _refuse_prefix(dataset: str) -> None:
    """Raises `UsageError` for a prefix that no imported file registers, as in `npz:FILE`.

    Else the part after the colon is a version, `mnist:3.0.1`, or the data set is TFDS' own.
    """
    found = re.match(r"([a-z][a-z0-9_]*:)(?!(?:\d+|\*)\.(?:\d+|\*)\.)", dataset)
    own = tfds.list_builders(with_community_datasets=False)
    if found and found[1].removesuffix(":") not in own:
        raise UsageError(
            f"no data set {dataset!r}: nothing has registered the prefix {found[1]!r}; if a file "
            f"of yours does, give it here too: --imports=FILE"
        )


def _prepare_command(builder: tfds.core.DatasetBuilder) -> str:
    """The command that prepares a data set, for error messages."""
    command = (
        f"python -m xception_jax.prepare --dataset={builder.name} "
        f"--data_dir={quoted(builder._data_dir_root)}"
    )
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        command += " --manual_dir=FOLDER_OF_ITS_ARCHIVES"
    return command
