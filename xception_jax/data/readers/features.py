"""Which features of a TFDS data set are the image and the label."""

from typing import Any

import tensorflow_datasets as tfds

from xception_jax.errors import UsageError, nearest


def named(builder: tfds.core.DatasetBuilder, kind: type) -> list[str]:
    """The names of the features of a kind, without nested ones."""
    return [name for name, feature in builder.info.features.items() if isinstance(feature, kind)]


def only(builder: tfds.core.DatasetBuilder, dataset: str, kind: str, names: list[str]) -> str:
    """The only feature of a kind; of several, the one in TFDS' `supervised_keys`."""
    chosen = names if len(names) == 1 else set(names) & set(builder.info.supervised_keys or ())
    if len(chosen) != 1:
        raise UsageError(
            f"{dataset} has {len(names)} features of the kind {kind} (of: "
            f"{', '.join(builder.info.features)}); image classification needs exactly one"
        )
    return next(iter(chosen))


def label_features(builder: tfds.core.DatasetBuilder) -> dict[str, tuple[Any, bool]]:
    """Every class-label feature (`objects/label` if nested) and whether an example has several."""
    found = {}
    for name, feature in builder.info.features.items():
        several = isinstance(feature, tfds.features.Sequence)
        inner = feature.feature if several else feature
        nested = isinstance(inner, tfds.features.FeaturesDict)
        parts = {f"{name}/{key}": part for key, part in inner.items()} if nested else {name: inner}
        for path, part in parts.items():
            if isinstance(part, tfds.features.ClassLabel):
                found[path] = part, several
    return found


def label_key(
    builder: tfds.core.DatasetBuilder,
    dataset: str,
    labels: dict[str, tuple[Any, bool]],
    asked: str | None,
) -> str:
    """The feature with the labels: the requested one, else the only one."""
    if asked and asked not in labels:
        hint = nearest(asked, labels) or ";"
        raise UsageError(
            f"{dataset} has no labels in {asked!r}{hint} config.data.label takes: "
            f"{', '.join(sorted(labels)) or 'nothing of this data set'}"
        )
    if asked:
        return asked
    plain = named(builder, tfds.features.ClassLabel)
    if not plain and len(labels) > 1:
        raise UsageError(
            f"{dataset} has labels in {', '.join(sorted(labels))}; name one of them in "
            f"config.data.label"
        )
    return only(builder, dataset, "class label", plain or list(labels))


def confidence_key(builder: tfds.core.DatasetBuilder, label_key: str) -> str | None:
    """The feature with the confidence of each label of a sequence; None if there is none."""
    features = builder.info.features
    group = label_key.rpartition("/")[0]
    if label_key in features or "confidence" not in features[group].feature:
        return None
    return f"{group}/confidence"
