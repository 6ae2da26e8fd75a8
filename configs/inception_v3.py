"""Inception V3 on ImageNet, by the recipe of the comparison in the Xception paper.

    python -m xception_jax.main --config=configs/inception_v3.py --workdir=runs/inception_v3

Sections 4.2 and 4.3 of arXiv:1610.02357v3: the recipe of `configs/imagenet.py` except the weight
decay. That file marks the paper's values. Neither model has an auxiliary tower. The paper reports
78.2 % top-1 and 94.1 % top-5 on the validation images (table 1). This project has not run this
config to its end.
"""

from ml_collections import ConfigDict

from xception_jax import recipes


def get_config() -> ConfigDict:
    """Returns the config."""
    config = recipes.load("imagenet")
    config.model.name = "inception_v3"
    config.optimizer.weight_decay = 4e-5  # paper: tuned by the authors of Inception V3
    return config
