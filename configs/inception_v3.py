"""Inception V3 on ImageNet, by the recipe that the Xception paper compares the two with.

    python -m xception_jax.main --config=configs/inception_v3.py --workdir=runs/inception_v3

Sections 4.2 and 4.3 of arXiv:1610.02357v3: the recipe of `configs/imagenet.py`, which says value by
value what is the paper's, but for the weight decay; no auxiliary tower in either. The paper reports
78.2 % top-1 and 94.1 % top-5 on the validation images (table 1). This config has not been run to
its end by this project.
"""

from ml_collections import ConfigDict

from xception_jax import recipes


def get_config() -> ConfigDict:
    """Returns the config."""
    config = recipes.load("imagenet")
    config.model.name = "inception_v3"
    config.optimizer.weight_decay = 4e-5  # paper: what its authors had tuned it to
    return config
