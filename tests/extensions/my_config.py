"""A config that uses what the files beside it register."""
# ruff: noqa: F401

import my_augmentation
import my_data
import my_model
import my_optimizer

from xception_jax import config


def get_config():
    c = config.default()
    c.duration, c.log.every, c.log.tensorboard = "4 steps", "1 step", False
    c.model.name, c.model.depth = "plain", 3
    c.data.dataset, c.data.batch_size, c.data.image_size = "npz:shapes.npz", 16, 8
    c.optimizer.name, c.optimizer.lion_beta, c.optimizer.weight_decay = "lion", 0.95, 1e-3
    c.augment.negative = 0.5
    return c
