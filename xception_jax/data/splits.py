"""Opens the splits that a config names."""

import os

from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.data import parts, readers
from xception_jax.data.readers import folder, folder_layout, joined
from xception_jax.data.source import FOLDER, Source
from xception_jax.errors import NoSplitError


def open_split(
    config: ConfigDict, split: str, data_dir: str | None = None, dataset: str | None = None
) -> Source:
    """Opens a split of the config's data set; see `readers.open_split`.

    Args:
      config: a config with valid fields.
      split: the split's name, or `held_out` or `fold`, which are parts of the training split if the
        config has them; see `parts`.
      data_dir: replaces the config's, if given.
      dataset: replaces the config's, if given.
    """
    dataset = dataset or config.data.dataset
    # Data sets that are mixed into training are not evaluated.
    evaluated = dataset == config.data.dataset
    if evaluated and split in parts.names(config):
        whole = open_split(config, config.data.train_split, data_dir)
        return parts.divide(config, whole)[split]
    return readers.open_split(
        dataset,
        split,
        data_dir or config.data.data_dir,
        label=config.data.label,
        test_share=config.data.test_share,
        split_seed=config.data.split_seed,
        most_missing=config.data.max_skipped,
        hold_out=folder_layout.held_out(config.data.eval_split) if evaluated else "",
        folder_rules=config.data.folder_rules,
    )


def is_own(config: ConfigDict, dataset: str | None, data_dir: str | None = None) -> bool:
    """Whether a name is that of the config's data set; a folder may be written in any way.

    Args:
      config: a config with valid fields.
      dataset: see `readers.open_split`; None: the config's.
      data_dir: replaces the config's, if given.
    """
    own, start = config.data.dataset, data_dir or config.data.data_dir
    if dataset in (None, own):
        return True
    if not (dataset.startswith(FOLDER) and own.startswith(FOLDER)):
        return False
    paths = (folder.path_of(name.removeprefix(FOLDER), start) for name in (dataset, own))
    return len(set(map(os.path.realpath, paths))) == 1


def open_named(
    dataset: str,
    split: str | None,
    data_dir: str | None = None,
    *,
    label: str | None = None,
    most_missing: float = 0.001,
) -> tuple[Source, str]:
    """Opens a split of a data set that no config names, and returns it with its name.

    Args:
      dataset: see `readers.open_split`.
      split: its name. None: all of a folder that has no splits, else the `test` part of a folder,
        or its validation part; of other data sets `validation`, or else `test`.
      data_dir, label: see `readers.open_split`.
      most_missing: see `readers.folder`.
    """

    def opened(split: str) -> tuple[Source, str]:
        source = readers.open_split(
            dataset, split, data_dir, label=label, most_missing=most_missing
        )
        return source, split

    if split is not None:
        return opened(split)
    if dataset.startswith(FOLDER):
        return opened(folder.all_or_test(dataset.removeprefix(FOLDER), data_dir or ""))
    try:
        return opened("validation")
    except (NoSplitError, LookupError):
        return opened("test")


def open_evaluation(config: ConfigDict, data_dir: str | None = None) -> dict[str, Source]:
    """Opens the evaluation sets of a config, by name.

    `data.eval_split` comes first, with an empty name; the sets of `eval.also` follow.
    """
    own = {"": open_split(config, config.data.eval_split, data_dir)}
    return own | {
        one.name: open_split(config, one.split, data_dir, one.dataset)
        for one in config_lib.eval_sets(config)
    }


def open_training(config: ConfigDict) -> Source:
    """Opens the training data of a config: its data set's `train_split`, joined with `data.mix`.

    What is held out from `train_split` is left out, see `parts`.
    """
    data = config.data
    splits = data.mix_splits or [data.train_split] * len(data.mix)
    sources = [
        parts.divide(config, open_split(config, data.train_split))[""],
        *(
            open_split(config, split, dataset=dataset)
            for dataset, split in zip(data.mix, splits, strict=True)
        ),
    ]
    return joined.join(sources) if len(sources) > 1 else sources[0]
