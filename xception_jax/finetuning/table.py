"""The values of fine-tuning, all in one place.

`choice.choose` makes a config of them, for `python -m xception_jax.finetune` and for
`configs/finetune.py`.

Those for 50 to 2,000 pictures were chosen by experiment, with up to 500 pictures of CIFAR-10, of
optical digits and of solar cells, see docs/finetune.md. The others are usual ones for such sets.
"""

from dataclasses import dataclass
from typing import Any

# The initial weights, unless others are named.
WEIGHTS = "keras:xception"

# Config fields with the same value for all data.
FIXED: dict[str, Any] = {
    "model.dropout": 0.5,
    "model.bn_momentum": 0.9,  # small sets have few steps an epoch: statistics adapt faster
    "data.crop_area": (0.5, 1.0),
    "data.crop_aspect": (3 / 4, 4 / 3),
    "augment.flip": True,
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": True,
    "optimizer.reference_batch": 256,
    "optimizer.schedule": "cosine",
    "optimizer.warmup": "1 epoch",
    "optimizer.weight_decay": 1e-5,
    "loss.label_smoothing": 0.1,
    "ema.decay": 0.99,
    "eval.patience": 8,
    "checkpoint.keep": 1,
    "log.every": "20 steps",
}


@dataclass(frozen=True)
class Stage:
    """How much of a model is frozen.

    Attributes:
      flow: the last frozen flow of the Xception family, where one ends there.
      share: of the blocks that are frozen, where it is not by flow; 0: everything is trained.
      work: share of the forward pass that the frozen blocks take, in the Xception family.
      feature_bytes: of their output in the Xception family, per pixel of an image; the pooled
        one's are not counted.
      learning_rate: for a batch of `optimizer.reference_batch`.
    """

    flow: str | None
    share: float
    work: float
    feature_bytes: float
    learning_rate: float


# From the most to the least that is trained.
STAGES = (
    Stage(None, 0.0, 0.0, 0.0, 0.05),
    Stage("entry_flow", 1 / 3, 0.3, 11.4, 0.05),
    Stage(None, 5 / 7, 0.72, 11.4, 0.6),  # of Xception: up to block10
    Stage("middle_flow", 6 / 7, 0.86, 11.4, 0.3),
    Stage("exit_flow", 1.0, 1.0, 0.0, 0.2),
)


@dataclass(frozen=True)
class Row:
    """The values for a number of training pictures.

    Attributes:
      pictures: the row is for up to this number.
      share: `Stage.share` of the stage that fits so many pictures.
      epochs: of training.
    """

    pictures: float
    share: float
    epochs: int


ROWS = (
    Row(50, 1.0, 60),
    Row(2_000, 5 / 7, 16),
    Row(20_000, 1 / 3, 15),
    Row(float("inf"), 0.0, 10),
)

# `data.frozen_draws`: what is frozen is computed once for so many random crops of each picture: the
# first of these numbers that the time allows, and whose output takes at most these bytes.
FROZEN_DRAWS, FEATURES_BYTES = (8, 4, 2), 4 * 2**30

# Where the weights' own `data.eval_preset` takes the nearest pixels: random crops are resized by
# averages and linearly, and an evaluation should see the same. It keeps the whole shorter side.
NEAREST = ("keras",)
SMOOTH: dict[str, Any] = {"data.eval_preset": "area", "data.eval_crop": 1.0}

# Of each class, held out from training where the data has no validation part.
VAL_SHARE = 0.1
# Evaluations over a run.
EVALUATIONS = 20
# Batches: the usual one, and the least steps of an epoch below which it is smaller.
BATCH, STEPS_OF_AN_EPOCH = 32, 4
# Virtual batches of batch normalization are not smaller than this, unless the batch is.
VIRTUAL_BATCH = 16

# Pixels: smaller pictures are enlarged to this side. Sides are multiples of the second number.
SMALLEST_SIDE, SIDE_STEP = 96, 32
# Sides, as shares of the largest useful one, that are tried if a run would take too long.
SIDES = (1.0, 2 / 3, 1 / 2, 1 / 3)

# Seconds that a run should take at most, if that is possible, and those more per training picture.
BUDGET_S, BUDGET_PER_PICTURE_S = 15 * 60, 0.01
# Share of the speed of large matrix products that a whole step reaches: a CPU core's in
# docs/speed.md, an H100's; TPUs are assumed to be like GPUs.
EFFICIENCY = {"cpu": 0.75, "gpu": 0.15, "tpu": 0.15}
# Bytes of memory per pixel of an image that training everything takes, in float32, and the share of
# a device's memory that a step may take.
BYTES_PER_PIXEL, MEMORY_SHARE = 2_000, 0.6

# From this ratio of the largest to the smallest class on, a line says how to balance them.
UNBALANCED = 5
