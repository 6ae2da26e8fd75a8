"""The values of fine-tuning, all in one place.

`choice.choose` makes a config of them, for `python -m xception_jax.finetune` and for
`configs/finetune.py`. They are the usual ones for such sets and were not tuned on any.
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
      flow: the last frozen flow of the Xception family; None: everything is trained.
      share: of the blocks that are frozen, for models without flows.
      work: share of the forward pass that the frozen blocks take, in the Xception family.
      learning_rate: for a batch of `optimizer.reference_batch`.
    """

    flow: str | None
    share: float
    work: float
    learning_rate: float


# From the most to the least that is trained.
STAGES = (
    Stage(None, 0.0, 0.0, 0.05),
    Stage("entry_flow", 1 / 3, 0.3, 0.05),
    Stage("middle_flow", 3 / 4, 0.86, 0.1),
    Stage("exit_flow", 1.0, 1.0, 0.2),
)


@dataclass(frozen=True)
class Row:
    """The values for a number of training pictures.

    Attributes:
      pictures: the row is for up to this number.
      flow: `Stage.flow` of the stage that fits so many pictures.
      epochs: of training.
    """

    pictures: float
    flow: str | None
    epochs: int


ROWS = (
    Row(200, "exit_flow", 60),
    Row(2_000, "middle_flow", 30),
    Row(20_000, "entry_flow", 15),
    Row(float("inf"), None, 10),
)

# `data.frozen_draws` where the classifier alone is trained: the rest is computed once for this
# number of random crops of each picture.
FROZEN_DRAWS = 4

# Of each class, held out from training where the data has no validation part.
VAL_SHARE = 0.2
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
