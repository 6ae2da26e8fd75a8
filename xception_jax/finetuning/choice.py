"""The choice of the settings of fine-tuning: a pure function of facts.

The values are those of `table`. Nothing here imports JAX.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.config.fields import Duration
from xception_jax.finetuning import table
from xception_jax.finetuning.facts import DataFacts, MachineFacts, WeightsFacts
from xception_jax.finetuning.table import Stage
from xception_jax.models.published import IMAGE_SIZE
from xception_jax.utils.text import span


@dataclass(frozen=True)
class Reason:
    """A line about one choice: what was chosen, by its config fields, and why."""

    chosen: str
    why: str

    def __str__(self) -> str:
        return f"{self.chosen}: {self.why}"


@dataclass(frozen=True)
class Choice:
    """The settings of a fine-tuning.

    Attributes:
      fields: values of config fields, by name.
      reasons: a line for each choice.
      seconds: an estimate of the run's time without compilation.
    """

    fields: Mapping[str, Any]
    reasons: tuple[Reason, ...]
    seconds: float

    def config(self) -> ConfigDict:
        """The config: defaults, and these fields."""
        config = config_lib.default()
        config.update_from_flattened_dict(dict(self.fields))
        return config


@dataclass(frozen=True)
class _Plan:
    """A side of images, what is trained on them, and how long that takes."""

    side: int
    stage: Stage
    freeze: str | None
    draws: int
    seconds: float


def choose(
    data: DataFacts,
    machine: MachineFacts,
    weights: WeightsFacts,
    given: Mapping[str, Any] | None = None,
) -> Choice:
    """Chooses the settings.

    Args:
      data, machine, weights: the facts.
      given: config fields that the user sets. They replace a choice, and other choices follow.

    Returns:
      The fields with `given`; the reasons are for what was chosen.
    """
    given = dict(given or {})
    row = _row(data.train)
    epochs = _epochs(given, row.epochs, data)
    plans = _plans(data, machine, weights, given, row, epochs)
    budget = table.BUDGET_S + table.BUDGET_PER_PICTURE_S * data.train
    plan = next((one for one in plans if one.seconds <= budget), None)
    plan = plan or min(plans, key=lambda one: one.seconds)
    batch = given.get("data.batch_size") or _batch(data.train, machine.devices)
    share = max(1, batch // machine.devices)
    virtual = share if share >= table.VIRTUAL_BATCH else batch
    limit = _limit(plan, machine, share, virtual)
    every = max(1, math.ceil(epochs / table.EVALUATIONS))
    chosen: dict[str, Any] = {
        "model.name": weights.model,
        "model.freeze": plan.freeze,
        "data.frozen_draws": plan.draws,
        "model.bn_virtual_batch": virtual,
        "data.image_size": plan.side,
        "data.batch_size": batch,
        "optimizer.learning_rate": plan.stage.learning_rate,
        "optimizer.microbatch": limit,
        "duration": f"{row.epochs} epochs",
        "eval.every": f"{every} epoch{'s' * (every > 1)}",
        "checkpoint.every": f"{every} epoch{'s' * (every > 1)}",
    }
    if weights.preset in table.NEAREST and "data.eval_preset" not in given:
        chosen |= table.SMOOTH
    fields = {**table.FIXED, **chosen, **given}
    reasons = _reasons(data, machine, weights, plans[0], plan, fields)
    told = tuple(reason for name, reason in reasons if name not in given)
    return Choice(fields, told, plan.seconds)


def typical(pictures: int) -> ConfigDict:
    """The config for a number of large training pictures, an Xception, and a fast device."""
    data = DataFacts(pictures, 2, 0, 0, side=IMAGE_SIZE)
    machine = MachineFacts("gpu", "GPU", 1, memory=2**40, speed=float("inf"))
    flows = tuple(stage.flow for stage in table.STAGES if stage.flow)
    weights = WeightsFacts("", "xception", IMAGE_SIZE, "area", 0, 1, blocks=(), flows=flows)
    # A flow has the same name in each model of the family, a block has not.
    share = _row(pictures).share
    flow = next(stage.flow for stage in table.STAGES if stage.flow and stage.share >= share)
    config = choose(data, machine, weights, {"model.freeze": flow if share else None}).config()
    config.data.image_size = None
    return config


def _row(pictures: int) -> table.Row:
    """The row for a number of training pictures."""
    return next(row for row in table.ROWS if pictures <= row.pictures)


def _epochs(given: Mapping[str, Any], usual: int, data: DataFacts) -> float:
    """The length of the run in epochs."""
    if "duration" not in given:
        return usual
    batch = given.get("data.batch_size", table.BATCH)
    try:
        length = Duration.parse(given["duration"])
    except ValueError:  # a check of the config reports it
        return usual
    return length.examples(batch_size=batch, epoch=data.train) / data.train


def _plans(
    data: DataFacts,
    machine: MachineFacts,
    weights: WeightsFacts,
    given: Mapping[str, Any],
    row: table.Row,
    epochs: float,
) -> list[_Plan]:
    """The plans in the order of preference: a smaller image comes after less that is trained."""
    if "model.freeze" in given:
        frozen = [(_stage_of(given["model.freeze"], weights), given["model.freeze"])]
    else:
        stages = (stage for stage in table.STAGES if stage.share >= row.share)
        frozen = [(stage, freeze_of(stage, weights)) for stage in stages]
    sides = _sides(data, weights)
    if given.get("data.image_size"):
        sides = [given["data.image_size"]]
    speed = machine.speed * table.EFFICIENCY.get(machine.platform, min(table.EFFICIENCY.values()))
    plans = []
    for side in sides:
        forward = weights.multiply_adds * (side / weights.image_size) ** 2
        for stage, freeze in frozen:
            for draws in _draws(stage, freeze, machine, weights, given, data.train * side**2):
                rounds = min(draws, epochs) if draws else epochs
                # The gradient takes two products for each of the forward pass.
                work = forward * (stage.work * rounds + 3 * (1 - stage.work) * epochs) * data.train
                plans.append(_Plan(side, stage, freeze, draws, work / speed))
    return plans


def _draws(
    stage: Stage,
    freeze: str | None,
    machine: MachineFacts,
    weights: WeightsFacts,
    given: Mapping[str, Any],
    pixels: int,
) -> Sequence[int]:
    """Values of `data.frozen_draws`, the best first, for `pixels` of all training images.

    It is 0 alone if nothing is frozen, if it does not pay, or if what is given does not allow it.
    An accelerator computes features faster than a disk reads them, except the head's small ones.
    """
    if "data.frozen_draws" in given:
        return (int(given["data.frozen_draws"]),)
    mixed = given.get("augment.mixup") or given.get("augment.cutmix")
    known = freeze is not None and freeze == freeze_of(stage, weights)
    pays = machine.platform == "cpu" or stage.share == 1
    if not known or not pays or mixed or given.get("data.repeats", 1) != 1:
        return (0,)
    each = stage.feature_bytes * pixels
    return [draws for draws in table.FROZEN_DRAWS if draws * each <= table.FEATURES_BYTES] or (0,)


def freeze_of(stage: Stage, weights: WeightsFacts) -> str | None:
    """The value of `model.freeze` that a stage means for a model."""
    if stage.share == 0:
        return None
    if stage.flow in weights.flows:
        return stage.flow
    count = len(weights.blocks)
    last = count if stage.share == 1 else count - 1  # else the classifier alone is trained
    return weights.blocks[min(last, max(1, round(stage.share * count))) - 1]


def _stage_of(freeze: str | None, weights: WeightsFacts) -> Stage:
    """The stage of a given `model.freeze`: the last one that freezes no more blocks."""
    for stage in table.STAGES:
        if freeze == (stage.flow if stage.share else None):
            return stage
    share = 0.0  # also of a block that does not exist: a check of the config reports it
    if freeze in weights.blocks:
        share = (weights.blocks.index(freeze) + 1) / len(weights.blocks)
    return next(stage for stage in reversed(table.STAGES) if stage.share <= share)


def _sides(data: DataFacts, weights: WeightsFacts) -> list[int]:
    """Sides of the images, the largest useful one first."""
    step, full = table.SIDE_STEP, weights.image_size
    least = min(full, max(table.SMALLEST_SIDE, weights.min_image_size))
    own = min(full, max(least, -(-data.side // step) * step))
    smaller = (max(least, round(own * share / step) * step) for share in table.SIDES[1:])
    return [own, *dict.fromkeys(side for side in smaller if side < own)]


def _batch(pictures: int, devices: int) -> int:
    """The usual batch, or a smaller power of two for few pictures; divisible by the devices."""
    most = max(2, pictures // table.STEPS_OF_AN_EPOCH)
    size = min(table.BATCH, 1 << (most.bit_length() - 1))
    return -(-size // devices) * devices


def _limit(plan: _Plan, machine: MachineFacts, share: int, virtual: int) -> int:
    """`optimizer.microbatch`: 0, or the examples of a device that its memory can take at once."""
    bytes_of_type = 1.0 if machine.platform == "cpu" else 0.5
    trained = 1 - 0.8 * plan.stage.work
    one = table.BYTES_PER_PIXEL * plan.side**2 * bytes_of_type * trained
    most = int(machine.memory * table.MEMORY_SHARE / max(1.0, one))
    if share <= most:
        return 0
    fits = [part for part in range(virtual, share + 1, virtual) if share % part == 0]
    return max((part for part in fits if part <= most), default=fits[0] if fits else 0)


def _reasons(
    data: DataFacts,
    machine: MachineFacts,
    weights: WeightsFacts,
    best: _Plan,
    plan: _Plan,
    fields: Mapping[str, Any],
) -> list[tuple[str, Reason]]:
    """The lines, each with the field that it explains."""
    cheaper = f"more would take about {span(best.seconds)} on {machine.devices} x {machine.kind}"
    size = f"the weights were made for {weights.image_size} pixels"
    if plan.side < best.side:
        size = cheaper
    elif plan.side < weights.image_size:
        size = f"the shorter sides of the pictures have {data.side} pixels (median)"
    trained = f"for {data.train:,} pictures"
    if plan.side == best.side and plan.stage.share > best.stage.share:
        trained = cheaper
    depth = {1.0: "the classifier alone", 0.0: "everything"}.get(
        plan.stage.share, f"the blocks after {plan.freeze}"
    )
    if plan.draws:
        trained += f"; the rest is computed once, for data.frozen_draws={plan.draws} random crops"
        size_of = plan.draws * plan.stage.feature_bytes * data.train * plan.side**2
        trained += f" ({size_of / 2**20:,.0f} MiB)" if size_of else ""
    dtype = "float32" if machine.platform == "cpu" else "bfloat16"
    batch, rate = fields["data.batch_size"], fields["optimizer.learning_rate"]
    mirrored = "False if left and right have a meaning, as in text"
    preset = fields.get("data.eval_preset", weights.preset)
    resized = f"{weights.model}; data.eval_preset={preset} resizes images " + (
        "as they expect it" if preset == weights.preset else "smoothly, as random crops are"
    )
    lines = [
        ("data.eval_preset", Reason(f"weights {weights.name}", resized)),
        ("data.image_size", Reason(f"data.image_size={plan.side}", size)),
        ("model.freeze", Reason(f"model.freeze={plan.freeze}", f"trains {depth}, {trained}")),
        ("data.batch_size", Reason(f"data.batch_size={batch}", f"for {data.train:,} pictures")),
        ("optimizer.learning_rate", Reason(
            f"optimizer.learning_rate={rate:g}",
            f"for what is trained; scaled from a batch of {fields['optimizer.reference_batch']}")),
        ("duration", Reason(f"duration={fields['duration']!r}",
                            f"about {span(plan.seconds)} and compilation at most; eval.patience="
                            f"{fields['eval.patience']} evaluations without a better one end it")),
        ("augment.flip", Reason(f"augment.flip={fields['augment.flip']}", mirrored)),
        ("data.crop_area", Reason(f"data.crop_area={fields['data.crop_area']}",
                                  "random crops; (1.0, 1.0) if the complete picture matters")),
        ("model.dtype", Reason(f"model.dtype=auto, {dtype}", f"on {machine.kind}")),
    ]  # fmt: skip
    if limit := fields["optimizer.microbatch"]:
        lines.append(("optimizer.microbatch", Reason(
            f"optimizer.microbatch={limit}",
            f"for {machine.memory / 2**30:.0f} GiB of memory; results are the same")))  # fmt: skip
    if data.smallest and data.largest >= table.UNBALANCED * data.smallest:
        lines.append(("data.balanced", Reason(
            f"data.balanced={fields.get('data.balanced', False)}",
            f"the largest class has {data.largest:,} pictures, the smallest {data.smallest:,}; "
            f"True samples all classes equally")))  # fmt: skip
    return lines
