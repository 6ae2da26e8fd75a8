"""Xception on a folder of pictures, from weights that were trained on ImageNet.

    python -m xception_jax.main --config=configs/finetune.py --workdir=runs/pets \
        --config.init_from=xception.safetensors --config.data.dataset=folder:PATH

PATH is a folder of pictures, see docs/folder.md. docs/weights.md says where to get weights; a Keras
or timm file works directly. Images have the size, resize and crop of the weights' training, unless
the config sets data.image_size, data.eval_preset or data.eval_crop. The recipe is for a hundred to
ten thousand pictures. The values are the usual ones for such sets and were not tuned on any; the
comments say what to change.
"""

from ml_collections import ConfigDict

from xception_jax import config as config_lib


def get_config() -> ConfigDict:
    """Returns the config."""
    config = config_lib.default()
    config.init_from = "xception.safetensors"
    config.duration = "20 epochs"

    config.model.name = "xception"
    config.model.freeze = "entry_flow"  # exit_flow: train only the classifier; None: train all
    config.model.dropout = 0.5
    config.model.bn_momentum = 0.9  # small sets have few steps an epoch: statistics adapt faster
    config.model.bn_virtual_batch = 32

    config.data.dataset = "folder:PATH"
    config.data.batch_size = 32
    config.data.crop_area = (0.5, 1.0)
    config.data.crop_aspect = (3 / 4, 4 / 3)
    # image_size, eval_preset and eval_crop are not set: they become those of the weights.
    config.augment.flip = True  # False if left and right have a meaning, as in text

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.learning_rate = 0.02  # a fifth of the rate for training from scratch
    config.optimizer.reference_batch = 256
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "1 epoch"
    config.optimizer.weight_decay = 1e-5
    config.loss.label_smoothing = 0.1
    config.ema.decay = 0.99

    config.eval.every = "auto"
    config.checkpoint.every = "auto"
    config.log.every = "20 steps"
    return config
