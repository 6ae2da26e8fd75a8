"""Xception on a folder of pictures, trained from scratch.

    python -m xception_jax.main --config=configs/folder.py --workdir=runs/pets \
        --config.data.dataset=folder:PATH

PATH contains train/CLASS/*.jpg, with test or val beside train if there is one, or CLASS/*.jpg, or
images and a labels.csv: see docs/folder.md. --list_split=test lists the held-out files. The recipe
is for a thousand to a hundred thousand pictures; with fewer, training from scratch is not accurate.
The values are the usual ones for such sets and were not tuned on any; the comments say what to
change.
"""

from ml_collections import ConfigDict

from xception_jax import config as config_lib


def get_config() -> ConfigDict:
    """Returns the config."""
    config = config_lib.default()
    config.duration = "100 epochs"  # small sets need more, large ones fewer

    config.model.name = "xception"
    config.model.dropout = 0.5
    config.model.bn_momentum = 0.9  # small sets have few steps an epoch: statistics adapt faster
    config.model.bn_virtual_batch = 32

    config.data.dataset = "folder:PATH"
    config.data.image_size = 299  # 150 takes a quarter of the time
    config.data.batch_size = 64
    config.data.crop_area = (0.25, 1.0)  # closer to 1 if the complete picture matters
    config.data.crop_aspect = (3 / 4, 4 / 3)
    config.data.eval_crop = 0.875
    config.augment.flip = True  # False if left and right have a meaning, as in text

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.learning_rate = 0.1
    config.optimizer.reference_batch = 256
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "5 epochs"
    config.optimizer.weight_decay = 1e-4
    config.optimizer.microbatch = 32  # fits on a small device; a larger one changes only the speed
    config.loss.label_smoothing = 0.1
    config.ema.decay = 0.99

    config.eval.every = "5 epochs"
    config.checkpoint.every = "auto"
    config.log.every = "20 steps"
    return config
