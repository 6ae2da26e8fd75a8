"""Facts about a run's data for a plan; the data itself may be missing."""

from ml_collections import ConfigDict

from xception_jax.data import parts, readers, splits
from xception_jax.data.readers import tfds as tfds_reader
from xception_jax.errors import UsageError
from xception_jax.training.build import DataSpec


def find_spec(
    config: ConfigDict,
    *,
    classes: int | None = None,
    examples: int | None = None,
    eval_examples: int | None = None,
) -> DataSpec:
    """Classes and sizes of the config's data set: from its files, or from TFDS' metadata.

    Args:
      config: a config with valid fields.
      classes: replaces the number of classes, with one label an image. The data set may then be
        unknown. If it is known and has this number of classes, its sizes are used.
      examples, eval_examples: replace the sizes of the two splits.

    Raises:
      UsageError: the data set is unknown.
    """
    if classes is not None:
        try:
            known = find_spec(config)
        except UsageError:  # it is unknown or missing
            return DataSpec(classes, False, examples, eval_examples)
        if known.classes != classes:
            return DataSpec(classes, False, examples, eval_examples)
        return DataSpec(classes, False, examples or known.examples,
                    eval_examples or known.eval_examples)  # fmt: skip
    data = config.data
    sets = [data.dataset, *data.mix]
    splits = [data.train_split, *(data.mix_splits or [data.train_split] * len(data.mix))]
    train = [_of_split(config, *pair) for pair in zip(sets, splits, strict=True)]
    test = _of_split(config, data.dataset, data.eval_split)
    counts = [found.examples for found in train if found.examples is not None]
    return DataSpec(
        test.classes,
        test.multilabel,
        examples or (sum(counts) if len(counts) == len(train) else None),
        eval_examples or test.examples,
    )


def _of_split(config: ConfigDict, dataset: str, split: str) -> tfds_reader.Metadata:
    data = config.data
    of_config = readers.prefix_of(dataset) or dataset == tfds_reader.EMBEDDED
    if of_config or split in parts.names(config):
        source = splits.open_split(config, split, dataset=dataset)
        return tfds_reader.Metadata(len(source.class_names), source.multilabel, len(source))
    try:
        return tfds_reader.metadata(dataset, split, data.data_dir, label=data.label)
    except UsageError as error:
        raise UsageError(f"{error} (or give its size: --classes, --examples)") from None
