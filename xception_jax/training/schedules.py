"""Learning-rate schedules by name: what the rate is after the warm-up."""

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

# From the fields that `register` names: the rate of a step, counted from the end of the warm-up.
MakeSchedule = Callable[[Any], optax.Schedule]


@dataclass(frozen=True)
class _Entry:
    make: MakeSchedule
    options: Mapping[str, Field]


_SCHEDULES = Registry[_Entry]("schedule", "optimizer.schedule")


def register(
    name: str, *, options: Mapping[str, Field] | None = None, until_end: bool = False
) -> Callable[[MakeSchedule], MakeSchedule]:
    """Decorates a function that makes a schedule, which `config.optimizer.schedule` then takes.

    The function gets `learning_rate`, at its highest; `steps`, of the run after the warm-up, at
    least 1; `total_steps`, with the warm-up; `decay_rate` and `decay_steps`; and its own options.
    An option that is a duration is given in steps, as a fraction.

    Args:
      name: of the schedule.
      options: further fields of `config.optimizer`, by their names.
      until_end: the rate depends on the length of the run, which a run that has begun then keeps.

    Raises:
      UsageError: the name or a field is taken.
    """

    def decorate(make: MakeSchedule) -> MakeSchedule:
        own = options or {}
        fields = {f"optimizer.{key}": field for key, field in own.items()}
        fixes = ("duration",) if until_end else ()
        _SCHEDULES.add(name, _Entry(make, own), where_is(make), fields, fixes)
        return make

    return decorate


def options(name: str) -> Mapping[str, Field]:
    """The fields of `config.optimizer` that a schedule has declared itself."""
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
    """A linear warm-up from 0, then a schedule that counts its steps from the warm-up's end.

    Args:
      name: `constant`; `cosine`, reaching 0 at `total_steps`; `staircase`, which multiplies by
        `decay_rate` every `decay_steps` (the paper's, section 4.2); or a registered one. Where the
        decay's steps are no whole number, the k-th decay is at the first step not before
        `k * decay_steps`. At least 1.
      learning_rate: at its highest.
      **options: those that a registered schedule has declared, durations in steps.

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
    """`rate * decay_rate ** (count // every)`, in whole numbers: float32 ends at 2^24 steps."""
    rate: float = fields.learning_rate
    decay_rate: float = fields.decay_rate
    every = max(Fraction(fields.decay_steps), Fraction(1))
    if every.denominator == 1:
        return lambda count: rate * jnp.power(decay_rate, jnp.float32(count // int(every)))
    # A table, for the product of a step and the denominator may be above 2^32.
    ends = range(1, int(fields.total_steps / every) + 1)
    first = np.array([math.ceil(k * every) for k in ends], np.int32)

    def schedule(count: Any) -> jax.Array:
        decays = jnp.searchsorted(jnp.asarray(first), count, side="right")
        return rate * jnp.power(decay_rate, jnp.float32(decays))

    return schedule
