"""What a plan knows of a run's data, which need not be there."""

from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.data import sources
from xception_jax.errors import UsageError
from xception_jax.planning.steps import Data


def find(
    config: ConfigDict,
    *,
    classes: int | None = None,
    examples: int | None = None,
    eval_examples: int | None = None,
) -> Data:
    """Classes and sizes of the config's data set: from its files, or from what TFDS knows of it.

    Args:
      config: valid in its fields.
      classes: in place of what is found; then nothing is looked for, and there is one label an
        image.
      examples, eval_examples: of the two splits, in place of what is found.

    Raises:
      UsageError: nothing is known of the data set.
    """
    if classes is not None:
        return Data(classes, False, examples, eval_examples)
    train, test = (_of_split(config, config.data[f"{name}_split"]) for name in ("train", "eval"))
    return Data(
        train.classes,
        train.multilabel,
        examples or train.examples,
        eval_examples or test.examples,
    )


def _of_split(config: ConfigDict, split: str) -> sources.Metadata:
    data = config.data
    if data.dataset.startswith(sources.FOLDER) or data.dataset == sources.EMBEDDED:
        source = config_lib.open_split(config, split)
        return sources.Metadata(len(source.class_names), source.multilabel, len(source))
    try:
        return sources.metadata(data.dataset, split, data.data_dir, label=data.label)
    except UsageError as error:
        raise UsageError(f"{error} (or say what it holds: --classes, --examples)") from None
