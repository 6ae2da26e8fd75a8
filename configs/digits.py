"""A small Xception on the embedded handwritten digits: the quick start.

    python -m xception_jax.main --config=configs/digits.py --workdir=runs/digits

1,437 training and 360 test images of 8x8 pixels, enlarged to 16x16. The model has a quarter of the
paper's channels, two of its eight middle blocks and a stem that does not halve the image: 730
thousand parameters.

On two CPU cores it compiles for 20 seconds and trains for a minute or two.
Seed 0 reaches 99.72 % top-1 on the test images (359 of 360).
"""

from ml_collections import ConfigDict

from xception_jax import config as config_lib


def get_config() -> ConfigDict:
    """Returns the config."""
    config = config_lib.default()
    config.duration = "24 epochs"

    config.model.name = "xception"
    config.model.width = 0.25
    config.model.middle_blocks = 2
    config.model.stem_stride = 1
    config.model.dropout = 0.2
    config.model.bn_momentum = 0.9  # 23 steps an epoch: 0.99 would average over four epochs

    config.data.dataset = "optical_digits"
    config.data.image_size = 16
    config.data.batch_size = 64
    config.augment.shift = 1  # no flip: a mirrored digit is another character

    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.reference_batch = 64
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "1 epoch"
    config.optimizer.weight_decay = 1e-4
    config.loss.label_smoothing = 0.1
    config.ema.decay = 0.99

    config.eval.every = "3 epochs"
    config.checkpoint.every = "auto"
    config.log.every = "1 epoch"
    return config
