"""A small Xception on the embedded handwritten digits."""

from ml_collections import ConfigDict

from xception_jax import config as config_lib


def get_config() -> ConfigDict:
    config = config_lib.default()
    config.duration = "30 epochs"

    config.model.width = 0.25
    config.model.middle_blocks = 2
    config.model.stem_stride = 1
    config.model.dropout = 0.2
    config.model.bn_momentum = 0.9
    config.data.image_size = 16
    config.data.batch_size = 64
    config.augment.shift = 1

    config.optimizer.learning_rate = 0.1
    config.optimizer.reference_batch = 64
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "2 epochs"
    config.optimizer.weight_decay = 1e-4
    config.loss.label_smoothing = 0.1
    config.ema.decay = 0.99

    config.eval.every = "5 epochs"
    config.checkpoint.every = "5 epochs"
    return config
