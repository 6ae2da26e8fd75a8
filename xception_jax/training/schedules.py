"""Learning-rate schedules by name; a linear warmup precedes each."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xception_jax.config.fields import Field
from xception_jax.config.registry import Registry, where_is

# Takes the fields listed in `register`; the schedule counts steps from the end of the warmup.
MakeSchedule = Callable[[Any], optax.Schedule]


@dataclass(frozen=True)
class _Entry:
    make: MakeSchedule
    options: Mapping[str, Field]


_SCHEDULES = Registry[_Entry]("schedule", "optimizer.schedule")


def register(
    name: str, *, options: Mapping[str, Field] | None = None, until_end: bool = False
) -> Callable[[MakeSchedule], MakeSchedule]:
    """Decorates a function that creates a schedule for `config.optimizer.schedule`.

    The function gets an object with `learning_rate`, the maximum; `steps`, the steps after the
    warmup, at least 1; `total_steps`, including the warmup; `decay_rate` and `decay_steps`; and its
    own options. An option that is a duration is given in steps, as a fraction.

    Args:
      name: the schedule's name.
      options: additional fields of `config.optimizer`, by their names.
      until_end: whether the rate depends on the length of the run. If so, a started run cannot
        change its duration.

    Raises:
      UsageError: the name or a field is already used.
    """

    def decorate(make: MakeSchedule) -> MakeSchedule:
        own = options or {}
        fields = {f"optimizer.{key}": field for key, field in own.items()}
        fixes = ("duration",) if until_end else ()
        _SCHEDULES.add(name, _Entry(make, own), where_is(make), fields, fixes)
        return make

    return decorate


def options(name: str) -> Mapping[str, Field]:
    """The fields of `config.optimizer` that a schedule has declared."""
    return _SCHEDULES.find(name).options


def make_schedule(
    name: str,
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    decay_rate: float = 0.94,
    decay_steps: Fraction | int = 1,
    **options: Any,
) -> optax.Schedule:
    """A linear warmup from 0, then a schedule that counts its steps from the end of the warmup.

    Args:
      name: a registered schedule. `constant`; `cosine`, which reaches 0 at `total_steps`;
        `staircase` (the paper's, section 4.2), which multiplies by `decay_rate` every
        `decay_steps`.
      learning_rate: the maximum.
      total_steps: the steps of the run, including the warmup.
      warmup_steps: the length of the warmup.
      decay_rate: of the staircase.
      decay_steps: of the staircase, at least 1. With a fraction, the k-th decay is at the first
        step that is not before `k * decay_steps`.
      **options: the fields that a registered schedule has declared, durations in steps.

    Raises:
      UsageError: there is no such schedule.
    """
    fields = SimpleNamespace(
        learning_rate=learning_rate, steps=max(total_steps - warmup_steps, 1),
        total_steps=total_steps, decay_rate=decay_rate, decay_steps=decay_steps, **options,
    )  # fmt: skip
    after = _SCHEDULES.find(name).make(fields)
    if not warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


@register("constant")
def _constant(fields: Any) -> optax.Schedule:
    return optax.constant_schedule(fields.learning_rate)


@register("cosine", until_end=True)
def _cosine(fields: Any) -> optax.Schedule:
    return optax.cosine_decay_schedule(fields.learning_rate, fields.steps)


@register("staircase")
def _staircase(fields: Any) -> optax.Schedule:
    """`rate * decay_rate ** (count // every)`, in integers: float32 is exact only up to 2^24."""
    rate: float = fields.learning_rate
    decay_rate: float = fields.decay_rate
    every = max(Fraction(fields.decay_steps), Fraction(1))
    if every.denominator == 1:
        return lambda count: rate * jnp.power(decay_rate, jnp.float32(count // int(every)))
    # A table, because the product of a step and the denominator can exceed 2^32.
    ends = range(1, int(fields.total_steps / every) + 1)
    first = np.array([math.ceil(k * every) for k in ends], np.int32)

    def schedule(count: Any) -> jax.Array:
        decays = jnp.searchsorted(jnp.asarray(first), count, side="right")
        return rate * jnp.power(decay_rate, jnp.float32(decays))

    return schedule
