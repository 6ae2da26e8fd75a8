"""Readers of data sets: TFDS, tfrecord, folders of images, several joined."""

from xception_jax.data.source import FOLDER, Source


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
      dataset: `folder:PATH`, see `readers.folder`; or a TFDS name, `name`, `name/config` or
        `name:version`. The embedded `optical_digits` is prepared on first use (a second, under a
        megabyte).
      split: a TFDS split, `train` or a part of one, `train[:10%]`.
      data_dir: where TFDS keeps its data; None or empty for TFDS' own default. A relative PATH of
        a folder starts here.
      label: the feature with the labels, `objects/label` for a nested one; None or empty for the
        one that there is. Inside a sequence it makes the set a multi-label one.
      test_share, split_seed, most_missing, hold_out: of a folder, see `readers.folder`.
      folder_rules: see `folder_files.RULES`; 0: the newest.

    Raises:
      UsageError: the data set is unknown, not prepared, empty, or has not one image and one such
        feature.
      RunError: a tfrecord file is damaged.
    """
    if dataset.startswith(FOLDER):
        from xception_jax.data.readers import folder

        path = dataset.removeprefix(FOLDER)
        return folder.open_split(
            path, split, data_dir or "", test_share=test_share, split_seed=split_seed,
            most_missing=most_missing, hold_out=hold_out, rules=folder_rules or folder.RULES,
        )  # fmt: skip
    from xception_jax.data.readers import tfds

    return tfds.open_split(dataset, split, data_dir, label)
