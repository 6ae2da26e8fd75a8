"""The choice of the settings of fine-tuning: a pure function of facts.

The values are those of `table`. Nothing here imports JAX.
"""

import math
from collections.abc import Mapping
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
    row = next(row for row in table.ROWS if data.train <= row.pictures)
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
    fields = {**table.FIXED, **chosen, **given}
    reasons = _reasons(data, machine, weights, plans[0], plan, fields)
    told = tuple(reason for name, reason in reasons if name not in given)
    return Choice(fields, told, plan.seconds)


def typical(pictures: int) -> ConfigDict:
    """The config for a number of large training pictures, an Xception, and a fast device."""
    data = DataFacts(pictures, 2, 0, 0, side=IMAGE_SIZE)
    machine = MachineFacts("gpu", "GPU", 1, memory=2**40, speed=float("inf"))
    flows = tuple(stage.flow for stage in table.STAGES if stage.flow)
    weights = WeightsFacts("", "xception", IMAGE_SIZE, "keras", 0, 1, blocks=(), flows=flows)
    config = choose(data, machine, weights).config()
    config.data.image_size = None
    return config


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
    usual = next(stage for stage in table.STAGES if stage.flow == row.flow)
    stages = [stage for stage in table.STAGES if stage.share >= usual.share]
    frozen = [(stage, freeze_of(stage, weights)) for stage in stages]
    if "model.freeze" in given:
        asked = given["model.freeze"]
        known = {freeze_of(stage, weights): stage for stage in table.STAGES}
        frozen = [(known.get(asked, usual), asked)]
    sides = _sides(data, weights)
    if given.get("data.image_size"):
        sides = [given["data.image_size"]]
    speed = machine.speed * table.EFFICIENCY.get(machine.platform, min(table.EFFICIENCY.values()))
    plans = []
    for side in sides:
        forward = weights.multiply_adds * (side / weights.image_size) ** 2
        for stage, freeze in frozen:
            draws = _draws(stage, freeze, weights, given)
            rounds = min(draws, epochs) if draws else epochs
            # The gradient takes two products for each of the forward pass.
            work = forward * (stage.work * rounds + 3 * (1 - stage.work) * epochs) * data.train
            plans.append(_Plan(side, stage, freeze, draws, work / speed))
    return plans


def _draws(
    stage: Stage, freeze: str | None, weights: WeightsFacts, given: Mapping[str, Any]
) -> int:
    """`data.frozen_draws`: where it pays, and what is given allows it."""
    if "data.frozen_draws" in given:
        return int(given["data.frozen_draws"])
    mixed = given.get("augment.mixup") or given.get("augment.cutmix")
    head_alone = stage.share == 1 and freeze == freeze_of(stage, weights)
    pays = head_alone and not mixed and given.get("data.repeats", 1) == 1
    return table.FROZEN_DRAWS if pays else 0


def freeze_of(stage: Stage, weights: WeightsFacts) -> str | None:
    """The value of `model.freeze` that a stage means for a model."""
    if stage.flow is None or stage.flow in weights.flows:
        return stage.flow
    return weights.blocks[max(1, round(stage.share * len(weights.blocks))) - 1]


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
    once = f"; the rest is computed once, for data.frozen_draws={plan.draws} random crops"
    trained += once * bool(plan.draws)
    dtype = "float32" if machine.platform == "cpu" else "bfloat16"
    batch, rate = fields["data.batch_size"], fields["optimizer.learning_rate"]
    mirrored = "False if left and right have a meaning, as in text"
    resized = f"{weights.model}; data.eval_preset={weights.preset} resizes images as they expect it"
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
