"""Xception on a JFT-like set of images with several labels, by the paper's JFT recipe.

    python -m xception_jax.main --config=configs/jft.py --workdir=runs/jft \
        --config.data.dataset=NAME --config.data.label=FEATURE --config.data.data_dir=DATA

JFT is Google's internal set: 350 million images with labels from 17,000 classes. The recipe is that
of the paper (arXiv:1610.02357v3, sections 4.1 to 4.3), for a TFDS data set of your own;
docs/multilabel.md describes its format. The paper reports a MAP@100 of 6.78 with two fully
connected layers and 6.70 without them (`--config.model.fc_units="()"`). These figures are not
comparable: they are on 14,000 other images with weighted classes (table 2). This project has not
run this config to its end.

The head has 95 million parameters, the rest 21 million. `--config.mesh.model=4` shards the head
over four devices (docs/sharding.md).

Each value below is marked `paper`, or `chosen` with the reason if the paper does not state it.
"""

from ml_collections import ConfigDict

from xception_jax import config as config_lib


def get_config() -> ConfigDict:
    """Returns the config."""
    config = config_lib.default()
    # chosen: the paper trained for a month, not to convergence. At the end the rate is 1/33.
    config.duration = "100000000 examples"

    config.model.name = "xception"
    config.model.fc_units = (4096, 4096)  # paper: one of its two variants
    config.model.dropout = 0.0  # paper: none on JFT, which is too large for overfitting
    config.model.bn_epsilon = 1e-3  # chosen: the author's own implementation (Keras)
    config.model.bn_momentum = 0.99  # chosen: the same
    config.model.bn_virtual_batch = 32  # chosen: as in configs/imagenet.py

    config.data.dataset = "jft"  # a placeholder for the name of your data set
    config.data.label = ""  # chosen: the only feature with labels
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.image_size = 299  # paper
    config.data.batch_size = 256  # chosen: as in configs/imagenet.py
    # chosen: at least half of the image, so that labelled objects are rarely cropped away.
    config.data.crop_area = (0.5, 1.0)
    config.data.crop_aspect = (3 / 4, 4 / 3)  # chosen: Inception's (arXiv:1409.4842, section 6)
    config.data.eval_crop = 0.875  # chosen: the usual share of Inception's evaluation
    config.augment.flip = True  # chosen: labels of objects do not depend on left and right

    config.loss.name = "sigmoid"  # paper: logistic regression, and several labels an image

    config.optimizer.name = "rmsprop"  # paper
    config.optimizer.momentum = 0.9  # paper
    config.optimizer.learning_rate = 0.001  # paper
    # chosen: the paper's updates were asynchronous, with an unknown batch. RMSprop divides the
    # gradient by its size, so the rate is not scaled with the batch.
    config.optimizer.reference_batch = 0
    config.optimizer.beta2 = 0.9  # chosen: TensorFlow's and Keras' default for RMSprop
    config.optimizer.epsilon = 1e-7  # chosen: Keras' default; it is inside the root
    # chosen: TensorFlow's RMSprop, which trained the paper's models, starts at 1. From 0 the first
    # steps would be large.
    config.optimizer.initial_squares = 1.0
    config.optimizer.warmup = "1000 steps"  # chosen: for untrained weights; 0.3 % of the run
    config.optimizer.schedule = "staircase"  # paper
    config.optimizer.decay_rate = 0.9  # paper
    config.optimizer.decay_every = "3000000 examples"  # paper
    config.optimizer.weight_decay = 1e-5  # paper
    config.optimizer.decay_mode = "l2"  # paper: a term of the loss
    config.optimizer.decay_all = False  # chosen: no decay of batch norm's parameters and biases
    config.optimizer.microbatch = 32  # chosen: as in configs/imagenet.py
    config.ema.decay = 0.9999  # paper: averaged weights at inference; chosen: the decay

    config.eval.every = "3000000 examples"  # chosen: after each change of the rate
    config.checkpoint.every = "1000 steps"
    config.log.every = "100 steps"
    return config
