"""The names of ImageNet's 1000 classes, which published weights do not bring along."""

import functools
from importlib import resources

CLASSES = 1000
VALIDATION = 50_000  # images of the validation set


@functools.cache
def synsets() -> dict[str, str]:
    """The words of each class by its synset: `{"n01440764": "tench, Tinca tinca", ...}`.

    They are in the order of the classes of Keras' and timm's weights.
    """
    text = resources.files(__package__).joinpath("imagenet.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.split("\t") for line in lines)


@functools.cache
def class_names() -> tuple[str, ...]:
    """A short name of each class: its first word; `crane (n02012849)` where two have the same."""
    first = [words.partition(",")[0] for words in synsets().values()]
    return tuple(
        name if first.count(name) == 1 else f"{name} ({synset})"
        for name, synset in zip(first, synsets(), strict=True)
    )


def readable(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of classes for people: words where the names are all synsets of ImageNet."""
    words = dict(zip(synsets(), class_names(), strict=True))
    return tuple(words[name] for name in names) if words.keys() >= set(names) else names
