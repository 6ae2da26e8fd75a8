"""The classes of a data set as those of a model: matched by name, or by number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xception_jax.data import imagenet
from xception_jax.data.readers.folder_files import composed
from xception_jax.data.source import Source
from xception_jax.errors import UsageError
from xception_jax.utils.text import printable


@dataclass(frozen=True)
class RelabelledRecords(Sequence[Any]):
    """The records of a split with other labels: `records[i]` is `{"image": bytes, "label": ...}`.

    Attributes:
      source: the split.
      numbers: int `[classes of the split]`, the new label of each class.
    """

    source: Source
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> Any:
        """Reads a record; raises `ExampleError` or `ReadError`."""
        example = self.source[index]
        label = np.flatnonzero(example.label) if self.source.multilabel else example.label
        return {"image": example.encoded, "label": self.numbers[label]}


def matched(source: Source, class_names: tuple[str, ...], say: Callable[[str], None]) -> Source:
    """A split whose labels are a model's; it may have only some of the model's classes.

    Classes are matched by name. ImageNet's classes have two names: a synset (`n01440764`) and a
    word. If the data or the weights only have numbers for names, numbers are matched.

    Args:
      source: the split.
      class_names: the model's, in the order of its logits.
      say: prints how classes are matched, if it is not simply by equal names.

    Raises:
      UsageError: a class of the split is none of the model's.
    """
    own = [*map(composed, source.class_names)]
    if own == [*map(composed, class_names)]:
        return source
    numbers, how = _numbers(source, own, class_names)
    say(f"{len(own):,} classes of the data are matched with the model's {len(class_names):,} {how}")
    if numbers == [*range(len(class_names))]:
        return replace(source, class_names=class_names)
    return Source(
        name=source.name,
        class_names=class_names,
        records=RelabelledRecords(source, np.asarray(numbers, np.int32)),
        image_key="image",
        label_key="label",
        multilabel=source.multilabel,
        describe=source.name_of,
        summary=source.summary,
    )


def _numbers(source: Source, own: list[str], class_names: tuple[str, ...]) -> tuple[list[int], str]:
    """The model's class of each of the data's, and how they are matched."""
    count = len(class_names)
    unnamed = class_names == tuple(map(str, range(count)))
    synsets = imagenet.synsets().keys() >= set(own)
    if unnamed and synsets and count == imagenet.CLASSES:
        class_names, unnamed = imagenet.class_names(), False
        how = "by name; the weights do not name theirs, which are assumed to be ImageNet's"
    else:
        how = "by name"
    known = {composed(name): i for i, name in enumerate(imagenet.readable(class_names))}
    names = imagenet.readable(tuple(own))
    if len(known) == count and known.keys() >= set(names):
        return [known[name] for name in names], how
    if unnamed and len(own) == count:
        return [*range(count)], "in their order, because the weights do not name theirs"
    if all(name.isdecimal() for name in own):
        numbers = [*map(int, own)]
        if max(numbers) < count and len(set(numbers)) == len(numbers):
            return numbers, "by number, because the data names them by numbers"
    strange = [name for name in names if name not in known]
    named = ", ".join(repr(printable(name, 40)) for name in strange[:3])
    theirs = ", ".join(repr(printable(name, 40)) for name in class_names[:3])
    raise UsageError(
        f"{len(strange):,} of the {len(own):,} classes of {printable(source.name)} are none of the "
        f"model's: {named}{', ...' * (len(strange) > 3)}; the model has {count:,}: {theirs}"
        f"{', ...' * (count > 3)}"
    )
