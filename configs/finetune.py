"""Xception on a folder of pictures, from weights that ImageNet has taught it.

    python -m xception_jax.main --config=configs/finetune.py --workdir=runs/pets \
        --config.init_from=xception.safetensors --config.data.dataset=folder:PATH

PATH is a folder of pictures, see docs/folder.md. docs/weights.md says where weights come from; a
Keras or timm file will do as it is. Images have the size, the resize and the crop that the weights
were made for, unless the config sets data.image_size, data.eval_preset or data.eval_crop. For a
hundred to ten thousand pictures. The values are the usual ones for such sets and have not been
tuned on any; the comments say what to change.
"""

from ml_collections import ConfigDict

from xception_jax import config as config_lib


def get_config() -> ConfigDict:
    """Returns the config."""
    config = config_lib.default()
    config.init_from = "xception.safetensors"
    config.duration = "20 epochs"

    config.model.name = "xception"
    config.model.freeze = "entry_flow"  # exit_flow: only the classifier learns; None: all does
    config.model.dropout = 0.5
    config.model.bn_momentum = 0.9  # small sets have few steps an epoch: statistics must follow
    config.model.bn_virtual_batch = 32

    config.data.dataset = "folder:PATH"
    config.data.batch_size = 32
    config.data.crop_area = (0.5, 1.0)
    config.data.crop_aspect = (3 / 4, 4 / 3)
    # image_size, eval_preset and eval_crop are left open: they become the weights' own.
    config.augment.flip = True  # False where left and right mean something, as in text

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.learning_rate = 0.02  # a fifth of what a start from scratch takes
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
