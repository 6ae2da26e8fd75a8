"""Random access to one split of a TFDS data set, without TensorFlow."""

import contextlib
import io
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from xception_jax.data import tfrecord
from xception_jax.errors import RunError, UsageError, nearest

EMBEDDED = "optical_digits"


class Example(NamedTuple):
    """An image as it is stored, what it shows, and how to name it in a complaint."""

    encoded: bytes
    label: int
    name: str


@dataclass(frozen=True)
class Source:
    """One split of a data set. `source[i]` is an `Example`.

    Attributes:
      name: the data set, its version and split, as `optical_digits/1.0.0:train`.
      class_names: what each label means; their number is the number of classes.
      records: the split's examples as TFDS reads them, images still encoded.
      image_key, label_key: the names of the two features.
    """

    name: str
    class_names: tuple[str, ...]
    records: Sequence[Any]
    image_key: str
    label_key: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        label = int(record[self.label_key])
        if not 0 <= label < len(self.class_names):
            # On the device it would train the wrong class, or give NaN with finite gradients.
            raise RunError(
                f"example {index} of {self.name} has label {label}, outside 0..."
                f"{len(self.class_names) - 1}"
            )
        return Example(record[self.image_key], label, f"example {index} of {self.name}")

    def __repr__(self) -> str:
        return f"Source({self.name!r}, {len(self)} examples)"


def open_split(dataset: str, split: str, data_dir: str | None = None) -> Source:
    """Opens a split of a TFDS data set that was prepared as array_record or tfrecord.

    Args:
      dataset: a TFDS name, `name`, `name/config` or `name:version`. The embedded `optical_digits`
        is prepared on first use (a second, under a megabyte).
      split: a TFDS split, `train` or a part of one, `train[:10%]`.
      data_dir: where TFDS keeps its data; None or empty for TFDS' own default.

    Raises:
      UsageError: the data set is unknown, not prepared, empty, or not one image and one label.
      RunError: a tfrecord file is damaged.
    """
    builder = _builder(dataset, os.path.expanduser(data_dir) if data_dir else None)
    image_key, label_key = _features(builder, dataset)
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
        class_names=tuple(builder.info.features[label_key].names),
        records=records,
        image_key=image_key,
        label_key=label_key,
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
        from xception_jax.data.optical_digits import OpticalDigits  # registers itself with TFDS

        if dataset not in (EMBEDDED, f"{EMBEDDED}:{OpticalDigits.VERSION}"):
            raise UsageError(
                f"no data set {dataset!r}; there is {EMBEDDED}:{OpticalDigits.VERSION}"
            )
        return OpticalDigits(data_dir=data_dir, file_format="array_record")
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


def _prepare_command(builder: tfds.core.DatasetBuilder) -> str:
    """The command that prepares a data set, for a complaint that it is not."""
    command = (
        f"python -m xception_jax.prepare --dataset={builder.name} "
        f"--data_dir={shlex.quote(str(builder._data_dir_root))}"
    )
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        command += " --manual_dir=FOLDER_OF_ITS_ARCHIVES"
    return command


def _features(builder: tfds.core.DatasetBuilder, dataset: str) -> tuple[str, str]:
    """The names of the data set's one image and one label."""
    features = builder.info.features
    kinds = (("image", tfds.features.Image), ("class label", tfds.features.ClassLabel))
    found: list[str] = []
    for kind, feature_class in kinds:
        names = [name for name, feature in features.items() if isinstance(feature, feature_class)]
        # Of several, the one that TFDS itself would give to a supervised learner.
        chosen = names if len(names) == 1 else set(names) & set(builder.info.supervised_keys or ())
        if len(chosen) != 1:
            raise UsageError(
                f"{dataset} has {len(names)} features of the kind {kind} (of: "
                f"{', '.join(features)}); image classification takes data sets with one"
            )
        found += chosen
    return found[0], found[1]
