"""Learning-rate schedules and optimizers by name, assembled from Optax's transformations."""

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
from ml_collections import ConfigDict

from xception_jax.config.fields import Duration, Field
from xception_jax.config.registry import Registry
from xception_jax.config.schema import SCHEMA
from xception_jax.errors import UsageError

# Takes the fields listed in `register_schedule`; steps are counted from the end of the warmup.
MakeSchedule = Callable[[Any], optax.Schedule]


# What every schedule gets or `make_schedule` takes, and every optimizer or `make_optimizer`.
_OF_SCHEDULES = (
    "name", "learning_rate", "steps", "total_steps", "warmup_steps", "decay_rate", "decay_steps",
)  # fmt: skip
_OF_OPTIMIZERS = (
    "momentum", "nesterov", "beta1", "beta2", "epsilon", "initial_squares", "weight_decay",
    "decay_mode", "decay_all", "clip_norm",
)  # fmt: skip


def _option_fields(
    owner: str, options: Mapping[str, Field], reserved: tuple[str, ...]
) -> dict[str, Field]:
    """The config fields of options; raises `UsageError` for a name that all of a kind get."""
    for key in options:
        if key in reserved:
            raise UsageError(f"{owner} cannot have an option {key!r}, which all get; rename it")
    return {f"optimizer.{key}": field for key, field in options.items()}


@dataclass(frozen=True)
class _Schedule:
    make: MakeSchedule
    options: Mapping[str, Field]


_SCHEDULES = Registry[_Schedule]("schedule", "optimizer.schedule")


def register_schedule(
    name: str, *, options: Mapping[str, Field] | None = None, until_end: bool = False
) -> Callable[[MakeSchedule], MakeSchedule]:
    """Decorates a function that creates a schedule for `config.optimizer.schedule`.

    The function gets an object with `learning_rate`, the maximum; `steps`, the steps after the
    warmup, at least 1; `total_steps`, including the warmup; `decay_rate` and `decay_steps`; and its
    own options. A duration is given in steps, as a fraction; None and `auto` stay.

    Args:
      name: the schedule's name.
      options: additional fields of `config.optimizer`, by their names.
      until_end: whether the rate depends on the length of the run. If so, a started run cannot
        change its duration.

    Raises:
      UsageError: the name, a field or an option is already used.
    """

    def decorate(make: MakeSchedule) -> MakeSchedule:
        own = options or {}
        fields = _option_fields(f"schedule {name!r}", own, _OF_SCHEDULES)
        fixes = ("duration",) if until_end else ()
        _SCHEDULES.add(name, _Schedule(make, own), make, fields, fixes)
        return make

    return decorate


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


@register_schedule("constant")
def _constant(fields: Any) -> optax.Schedule:
    return optax.constant_schedule(fields.learning_rate)


@register_schedule("cosine", until_end=True)
def _cosine(fields: Any) -> optax.Schedule:
    return optax.cosine_decay_schedule(fields.learning_rate, fields.steps)


@register_schedule("staircase")
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


def decayed(params: Any) -> Any:
    """True for the leaves with weight decay: kernels, but not biases or batch norm."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _scale_by_trust_ratio(mask: Callable[[Any], Any] | None) -> optax.GradientTransformation:
    """LAMB's factor |w| / |update| where the mask is true; other updates do not change.

    The state has the same structure as Optax's, so that older runs can continue.
    """
    trust_ratio = optax.scale_by_trust_ratio()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        scaled, state = trust_ratio.update(updates, state, params)
        if mask is not None:
            scaled = jax.tree.map(
                lambda keep, new, old: new if keep else old, mask(params), scaled, updates
            )
        return scaled, state

    return optax.GradientTransformation(trust_ratio.init, update)


@dataclass(frozen=True)
class Parts:
    """The parts of an optimizer in the order in which they are applied.

    Attributes:
      direction: turns the gradient into a direction. Decoupled weight decay follows.
      step: turns the direction into a step by the learning rate; None: times minus the rate.
    """

    direction: list[optax.GradientTransformation]
    step: list[optax.GradientTransformation] | None = None


# Takes the fields listed in `register`, and the schedule.
MakeParts = Callable[[Any, optax.Schedule], "Parts | optax.GradientTransformation"]


@dataclass(frozen=True)
class _Entry:
    make: MakeParts
    decay_mode: str
    options: Mapping[str, Field]


_OPTIMIZERS = Registry[_Entry]("optimizer", "optimizer.name")


def register(
    name: str, *, options: Mapping[str, Field] | None = None, decay_mode: str = "decoupled"
) -> Callable[[MakeParts], MakeParts]:
    """Decorates a function that creates an optimizer for `config.optimizer.name`.

    The function gets an object and the schedule. The object has these fields of `config.optimizer`:
    `momentum`, `nesterov`, `beta1`, `beta2`, `epsilon`, `initial_squares`, `decay_mode`, where
    `auto` is resolved, `decay_all`, and its own options. A duration is given in steps, as a
    fraction; None and `auto` stay.

    It returns a transformation of the gradient into a direction, as `optax.scale_by_adam`, or
    `Parts`. Clipping, weight decay and the learning rate are added.

    Args:
      name: the optimizer's name.
      options: additional fields of `config.optimizer`, by their names.
      decay_mode: the meaning of `auto` in `config.optimizer.decay_mode`: `l2` or `decoupled`.

    Raises:
      UsageError: the name, a field or an option is already used, or `decay_mode` is another.
    """

    def decorate(make: MakeParts) -> MakeParts:
        own = options or {}
        modes = [one for one in SCHEMA["optimizer.decay_mode"].choices if one != "auto"]
        if decay_mode not in modes:
            raise UsageError(
                f"optimizer {name!r}: decay_mode is {decay_mode!r}; it takes: {', '.join(modes)}"
            )
        fields = _option_fields(f"optimizer {name!r}", own, _OF_OPTIMIZERS)
        _OPTIMIZERS.add(name, _Entry(make, decay_mode, own), make, fields)
        return make

    return decorate


@register("sgd", decay_mode="l2")
def _sgd(fields: Any, schedule: optax.Schedule) -> Parts:
    return Parts([optax.trace(fields.momentum, fields.nesterov)])


@register("rmsprop", decay_mode="l2")
def _rmsprop(fields: Any, schedule: optax.Schedule) -> Parts:
    """RMSprop; momentum sums steps, as in TensorFlow, and decoupled decay bypasses it."""
    by_rate, momentum = optax.scale_by_learning_rate(schedule), optax.trace(fields.momentum)
    rms = optax.scale_by_rms(fields.beta2, fields.epsilon, fields.initial_squares, eps_in_sqrt=True)
    if fields.decay_mode == "l2":
        return Parts([rms], [by_rate, momentum])
    return Parts([rms, momentum])


@register("adamw")
def _adamw(fields: Any, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.scale_by_adam(fields.beta1, fields.beta2, fields.epsilon)


@register("lamb")
def _lamb(fields: Any, schedule: optax.Schedule) -> Parts:
    trust = _scale_by_trust_ratio(None if fields.decay_all else decayed)
    adam = optax.scale_by_adam(fields.beta1, fields.beta2, fields.epsilon)
    return Parts([adam], [trust, optax.scale_by_learning_rate(schedule)])


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    initial_squares: float = 0.0,
    weight_decay: float = 0.0,
    decay_mode: str = "auto",
    decay_all: bool = False,
    clip_norm: float = 0.0,
    **options: Any,
) -> optax.GradientTransformation:
    """A registered optimizer (`sgd`, `rmsprop`, `adamw`, `lamb` etc.) with clipping and decay.

    LAMB (arXiv:1904.00962) scales the steps of kernels by its trust ratio, but not those of biases
    and batch norm, as in timm. RMSprop's step is `rate * g / sqrt(squares + epsilon)`, and its
    momentum sums steps, as in TensorFlow.

    Args:
      initial_squares: the initial running mean of squared gradients in RMSprop. TensorFlow's 1
        makes the first steps small; 0 makes them `rate / sqrt(1 - beta2)` for each weight.
      decay_mode: `l2` adds `weight_decay * w` to the gradient, the gradient of the paper's loss
        term; momentum and scaling apply to it. `decoupled` adds it after them, so that the step is
        `-learning_rate * weight_decay * w` (arXiv:1711.05101). `auto` is `l2` for sgd and rmsprop,
        `decoupled` for adamw and lamb.
      decay_all: whether batch-norm parameters and biases also get decay and LAMB's trust ratio.
      clip_norm: the maximum norm of the loss's gradient, before any decay; 0: no clipping.
      **options: the fields that a registered optimizer has declared, durations in steps.

    Raises:
      UsageError: there is no such optimizer.
    """
    entry = _OPTIMIZERS.find(name)
    mode = entry.decay_mode if decay_mode == "auto" else decay_mode
    fields = SimpleNamespace(
        momentum=momentum, nesterov=nesterov, beta1=beta1, beta2=beta2, epsilon=epsilon,
        initial_squares=initial_squares, decay_mode=mode, decay_all=decay_all, **options,
    )  # fmt: skip
    made = entry.make(fields, schedule)
    parts = made if isinstance(made, Parts) else Parts([made])
    step = [optax.scale_by_learning_rate(schedule)] if parts.step is None else parts.step
    mask = None if decay_all else decayed
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    decay = [optax.add_decayed_weights(weight_decay, mask)] if weight_decay else []
    if mode == "l2":
        return optax.chain(*clip, *decay, *parts.direction, *step)
    return optax.chain(*clip, *parts.direction, *decay, *step)


def from_config(
    config: ConfigDict, epoch: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer and the schedule of a config, for `epoch` training examples."""
    opt, size = config.optimizer, {"batch_size": config.data.batch_size, "epoch": epoch}
    scale = config.data.batch_size / opt.reference_batch if opt.reference_batch else 1.0

    def steps(duration: str) -> Fraction:
        return Fraction(Duration.parse(duration).examples(**size), config.data.batch_size)

    def own(options: Mapping[str, Field]) -> dict[str, Any]:
        return {
            name: steps(opt[name])
            if field.duration and opt[name] not in (None, "auto")
            else opt[name]
            for name, field in options.items()
        }

    schedule = make_schedule(
        opt.schedule,
        learning_rate=opt.learning_rate * scale,
        total_steps=Duration.parse(config.duration).steps(**size),
        warmup_steps=Duration.parse(opt.warmup).steps(**size),
        decay_rate=opt.decay_rate,
        decay_steps=steps(opt.decay_every),
        **own(_SCHEDULES.find(opt.schedule).options),
    )
    fields = {name: opt[name] for name in _OF_OPTIMIZERS} | own(_OPTIMIZERS.find(opt.name).options)
    return make_optimizer(opt.name, schedule, **fields), schedule
