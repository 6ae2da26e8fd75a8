"""The state of a run: its parts, its initial value and its frozen parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict
from rich.table import Table

from xception_jax import config as config_lib
from xception_jax import models
from xception_jax.errors import UsageError
from xception_jax.utils.console import table

Tree = Any  # a pytree of arrays

# Makes the key of the initial weights different from the keys of steps, which count from 0.
_INITIAL = 2**32 - 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and updates. It has no random state and no input state.

    Attributes:
      step: int32, the number of completed steps; also the position in the data.
      params: float32 weights.
      batch_stats: float32 running means and variances of batch normalization.
      opt_state: Optax's state.
      ema: the moving averages of `{"params", "batch_stats"}`, or None.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    ema: Tree | None

    def weights(self) -> Tree:
        """The weights for evaluation: the averages if the run has them."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def model_maker(config: ConfigDict, num_classes: int) -> Callable[[nnx.Rngs], nnx.Module]:
    """A function that builds the config's model from the `nnx.Rngs` of the initial weights."""
    dtype = jnp.dtype(config_lib.compute_dtype(config.model.dtype))
    overrides = config_lib.model_overrides(config)
    pixels = config.data.mean, config.data.std

    def make(rngs: nnx.Rngs) -> nnx.Module:
        model: Any = models.create(
            config.model.name,
            num_classes=num_classes,
            rngs=rngs,
            dtype=dtype,
            matmul_precision=config_lib.matmul_precision(config),
            **overrides,
        )
        model.mean, model.std = (tuple(each) if each else config_lib.HALF for each in pixels)
        made: nnx.Module = model
        return made

    return make


def split(model: nnx.Module) -> tuple[Any, Tree, Tree]:
    """A model as its graph definition, weights and batch statistics; the last two as dicts."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def graphdef_of(make_model: Callable[[nnx.Rngs], nnx.Module], image_size: int) -> Any:
    """The model's NNX graph definition, without creating its weights.

    Raises:
      UsageError: the images are too small for the model.
    """
    model: Any = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
    if image_size < model.min_image_size:
        raise UsageError(
            f"config.data.image_size is {image_size}; the model takes at least "
            f"{model.min_image_size}: add --config.data.image_size={model.min_image_size}"
        )
    return split(model)[0]


def create_weights(make_model: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> Tree:
    """New `{"params", "batch_stats"}`."""
    _, params, batch_stats = split(make_model(nnx.Rngs(params=key)))
    return {"params": params, "batch_stats": batch_stats}


def frozen_parts(graphdef: Any, weights: Tree) -> tuple[str, ...]:
    """The paths of the parts that are not trained, see `models.network.Network.frozen`."""
    model: Any = nnx.merge(graphdef, weights["params"], weights["batch_stats"], copy=True)
    return tuple(model.frozen())


def is_frozen(name: str, frozen: tuple[str, ...]) -> bool:
    """Whether a leaf of the params or the batch statistics, given by its path, is frozen."""
    return name.startswith(tuple(f"{part}." for part in frozen))


def partition(tree: Tree, frozen: tuple[str, ...]) -> Tree:
    """Params or batch statistics with None for the frozen leaves."""

    def keep(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return None if is_frozen(name, frozen) else leaf

    return jax.tree_util.tree_map_with_path(keep, tree)


def keep_frozen(tree: Tree, before: Tree, frozen: tuple[str, ...]) -> Tree:
    """The tree with the frozen leaves of `before`, because averaging has rounded them."""
    return combine(partition(tree, frozen), before)


def combine(tree: Tree, other: Tree) -> Tree:
    """The tree with each None replaced by the leaf of `other`; the inverse of `partition`."""
    return jax.tree.map(
        lambda leaf, other: other if leaf is None else leaf,
        tree, other, is_leaf=lambda leaf: leaf is None,
    )  # fmt: skip


def create(
    make_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    with_ema: bool,
    key: jax.Array,
) -> TrainState:
    """The state at step 0; call it traced, see `shapes_of` and `initialize`."""
    graphdef, *made = split(make_model(nnx.Rngs(params=key)))
    weights: Tree = dict(zip(("params", "batch_stats"), made, strict=True))
    trained = partition(weights["params"], frozen_parts(graphdef, weights))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        opt_state=optimizer.init(trained),
        ema=weights if with_ema else None,
        **weights,
    )


def shapes_of(init: Callable[[jax.Array], Tree]) -> Tree:
    """Shapes and dtypes of `init(key)`, without running it."""
    return jax.eval_shape(init, jax.random.key(0))


def initialize(init: Callable[[jax.Array], TrainState], seed: int, shardings: Any) -> TrainState:
    """Creates the state at step 0 with its shardings (a tree, or one for all)."""
    # The program runs once; without optimization it compiles in 3 s, not 13 (a small Xception).
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    jitted = jax.jit(init, out_shardings=shardings, compiler_options=options)
    state: TrainState = jitted(jax.random.fold_in(jax.random.key(seed), _INITIAL))
    return state


def parameter_counts(params: Tree) -> dict[str, int]:
    """The number of parameters of each part of the network, in the model's order of names."""
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = [str(entry.key) for entry in path]
        name = ".".join(keys[:2]) if len(keys) > 1 and keys[1].isdigit() else keys[0]
        counts[name] = counts.get(name, 0) + leaf.size
    return counts


def parameter_table(name: str, params: Tree, frozen: tuple[str, ...] = ()) -> Table:
    """A table of the named model's parameters: number and share of each part, and the total.

    If parts are frozen (see `frozen_parts`), the table also has the number of trained parameters.
    """
    parts, trained = parameter_counts(params), parameter_counts(partition(params, frozen))
    total, left = sum(parts.values()), sum(trained.values())
    rows = [
        (
            part,
            f"{count:,}",
            f"{count / total:.1%}",
            f"{trained[part]:,}" if part in trained else "frozen",
        )
        for part, count in parts.items()
    ]
    rows.append(("all", f"{total:,}", "100.0%", f"{left:,}"))
    header = ("part", "parameters", "share", "trained")
    shown = len(header) if frozen else len(header) - 1
    return table(name, header[:shown], [row[:shown] for row in rows])
