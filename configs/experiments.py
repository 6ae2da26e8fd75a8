"""The paper's experiments (arXiv:1610.02357v3); a variant is named EXPERIMENT/VARIANT.

    python -m xception_jax.main --config=configs/experiments.py:residual/without --workdir=runs/bare
    python -m xception_jax.main --config=configs/experiments.py:residual/without/digits \
        --workdir=runs/bare_digits

    architecture: Xception against Inception V3 (table 1, figure 6)
    residual: with and without residual connections (figure 9)
    activation: none, ReLU or ELU inside the separable convolutions (figure 10)
    fc: without and with fully connected layers (table 2, there on JFT)
    spectrum: from a regular to a depthwise separable convolution (section 1.2; not one of the
        paper's experiments)

A variant is `configs/imagenet.py` with a few fields changed. With `/digits` it is scaled down to
the embedded handwritten digits: `configs/digits.py` for half of its epochs. `architecture` then has
40 pixels and an eighth of the channels, because Inception V3 needs larger images. `residual` has
all eight blocks of the middle flow, because it is about depth. `python -m benchmarks.experiments`
runs all variants of an experiment with several seeds and draws the results.
"""

from typing import Any

from ml_collections import ConfigDict

from xception_jax import recipes
from xception_jax.errors import UsageError, nearest

EXPERIMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "architecture": {
        "xception": {},
        # As in configs/inception_v3.py.
        "inception_v3": {"model.name": "inception_v3", "optimizer.weight_decay": 4e-5},
    },
    "residual": {"with": {}, "without": {"model.residual": False}},
    "activation": {
        name: {"model.intermediate_activation": name} for name in ("none", "relu", "elu")
    },
    "fc": {"without": {}, "with": {"model.fc_units": (4096, 4096)}},
    "spectrum": {
        "1": {"model.segments": 1},
        "4": {"model.segments": 4},  # as many as an Inception module has towers
        "16": {"model.segments": 16},
        "64": {"model.segments": 64},
        "channels": {},
    },
}

# Changes for the digits, added to the above.
_DIGITS: dict[str, dict[str, Any]] = {
    # Inception V3's stem has no padding: it needs at least 39 pixels.
    "architecture/xception": {"data.image_size": 40, "model.width": 0.125},
    "architecture/inception_v3": {
        "data.image_size": 40,
        "model.width": 0.125,
        "model.middle_blocks": None,
        "optimizer.weight_decay": 4e-4,
    },
    # All eight middle blocks, because the connections matter in deep networks.
    "residual/with": {"model.middle_blocks": 8},
    "residual/without": {"model.middle_blocks": 8},
    # As wide as the features, times two, as in the paper.
    "fc/with": {"model.fc_units": (1024, 1024)},
}


def names() -> list[str]:
    """The names of the variants for `get_config`, at the paper's scale."""
    return [f"{name}/{variant}" for name, variants in EXPERIMENTS.items() for variant in variants]


def get_config(variant: str = "residual/with") -> ConfigDict:
    """Returns the config of a variant, `EXPERIMENT/VARIANT` or `EXPERIMENT/VARIANT/digits`."""
    name = variant.removesuffix("/digits")
    if name not in names():
        raise UsageError(
            f"no experiment {name!r}{nearest(name, names()) or ';'} There are: {', '.join(names())}"
        )
    experiment, _, which = name.partition("/")
    changes = EXPERIMENTS[experiment][which]
    if name == variant:
        config = recipes.load("imagenet")
    else:
        config = recipes.load("digits")
        config.duration = "12 epochs"
        config.eval.every = "1 epoch"
        changes = {**changes, **_DIGITS.get(name, {})}
    config.update_from_flattened_dict(changes)
    return config
