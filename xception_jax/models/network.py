"""The common base of the models: a sequence of blocks, global pooling and a head."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from xception_jax.config import HALF
from xception_jax.errors import UsageError, nearest
from xception_jax.models.layers import Layers

# Takes the name of a layer of the head and its output `[batch, units]`; returns the output with a
# sharding constraint.
Place = Callable[[str, jax.Array], jax.Array]


class Head(nnx.Module):
    """Pooled features to logits: fully connected layers with ReLU, dropout, logistic regression."""

    def __init__(
        self,
        channels_in: int,
        num_classes: int,
        *,
        fc_units: Sequence[int],
        dropout: float,
        layers: Layers,
    ):
        widths = [channels_in, *fc_units]
        self.fc = nnx.List(layers.linear(before, after) for before, after in pairwise(widths))
        self.dropout = nnx.Dropout(dropout)
        # Always in float32, for the precision of the loss.
        self.classifier = nnx.Linear(widths[-1], num_classes, rngs=layers.rngs)

    def __call__(
        self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None, place: Place | None
    ) -> jax.Array:
        for i, layer in enumerate(self.fc):
            x = nnx.relu(layer(x))
            x = place(f"fc.{i}", x) if place else x
        x = self.dropout(x.astype(jnp.float32), deterministic=not train, rngs=rngs)
        logits = self.classifier(x)
        return place("classifier", logits) if place else logits


def scaled(channels: int, width: float) -> int:
    """The number of channels times `width`, rounded to a multiple of 8; at least 8."""
    return max(8, round(channels * width / 8) * 8)


def _remat(block: nnx.Module, x: jax.Array, *, train: bool) -> jax.Array:
    applied: jax.Array = nnx.remat(lambda block, x: block(x, train=train))(block, x)
    return applied


def _scan(blocks: Sequence[nnx.Module], x: jax.Array, *, train: bool, remat: bool) -> jax.Array:
    """Applies blocks of the same structure in turn, by a loop over their stacked weights."""
    graphdef = nnx.graphdef(blocks[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, blocks))

    def body(x: jax.Array, weights: Any) -> tuple[jax.Array, Any]:
        block: Any = nnx.merge(graphdef, weights)
        x = _remat(block, x, train=train) if remat else block(x, train=train)
        return x, nnx.state(block, nnx.BatchStat)

    x, batch_stats = jax.lax.scan(body, x, stacked)
    for i, block in enumerate(blocks):
        nnx.update(block, jax.tree.map(lambda leaf, i=i: leaf[i], batch_stats))
    return x


class Network(nnx.Module):
    """A model with a sequence of blocks, and the options that models share.

    A model takes these as `**shared`. An argument with the same name gives another default.

    Args:
      dtype: compute dtype; None: float32. Parameters, batch statistics and logits are always
        float32.
      width: factor of all numbers of channels, which are rounded to a multiple of 8.
      pooling: `average` or `max`, of the last feature maps.
      fc_units: sizes of fully connected layers before the classifier.
      dropout: dropout rate before the classifier.
      bn_epsilon: see `layers.BatchNorm`.
      bn_momentum: see `layers.BatchNorm`.
      bn_virtual_batch: see `layers.BatchNorm`.
      freeze: the name of the last frozen block or flow (`entry_flow`); None: everything is trained.
        Frozen blocks have no gradient. Their batch normalization always uses its running
        statistics, which do not change.
      remat: whether to recompute the inside of each block for its gradient instead of storing it:
        less memory, more time.

    Attributes:
      head: computes the logits, or None.
      min_image_size: the smallest side of an image, in pixels.
      mean, std: of each channel of the pixels, R, G and B, on a scale of 0 to 1, see `normalize`.
      matmul_precision: the precision of products and convolutions. `training.step.apply` passes it
        to `jax.default_matmul_precision`. None: JAX's default, on a TPU bfloat16 even for float32.
      scan_middle: whether to compile one block of `middle_flow`, whose blocks are equal, and loop
        over it: faster compilation, more memory. A model with such a flow can set it.
    """

    head: Head | None
    middle_flow: Sequence[nnx.Module]
    min_image_size: int
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    matmul_precision: str | None = None
    scan_middle: bool = False

    def __init__(
        self,
        dtype: DTypeLike | None = None,
        *,
        width: float = 1.0,
        pooling: str = "average",
        fc_units: Sequence[int] = (),
        dropout: float = 0.0,
        bn_epsilon: float = 1e-3,
        bn_momentum: float = 0.99,
        bn_virtual_batch: int | None = None,
        freeze: str | None = None,
        remat: bool = False,
    ):
        if pooling not in ("average", "max"):
            raise UsageError(f"pooling is {pooling!r}; it takes average or max")
        self.dtype = jnp.float32 if dtype is None else dtype
        self.width, self.pooling = width, pooling
        self.fc_units, self.dropout = tuple(fc_units), dropout
        self.bn_epsilon, self.bn_momentum = bn_epsilon, bn_momentum
        self.bn_virtual_batch = bn_virtual_batch
        self.freeze, self.remat = freeze, remat

    def make_layers(self, rngs: nnx.Rngs, **options: Any) -> Layers:
        """The builder of layers with the model's options; `options` are others of `Layers`."""
        return Layers(
            rngs, self.dtype, self.bn_epsilon, self.bn_momentum, self.bn_virtual_batch, **options
        )

    def make_head(self, channels_in: int, num_classes: int | None, layers: Layers) -> Head | None:
        """The head with the model's options, or None without `num_classes`."""
        if num_classes is None:
            return None
        units, dropout = self.fc_units, self.dropout
        return Head(channels_in, num_classes, fc_units=units, dropout=dropout, layers=layers)

    def blocks(self) -> Iterator[tuple[str, nnx.Module]]:
        """The blocks in order, each with its name in the model's source."""
        raise NotImplementedError

    def frozen(self) -> tuple[str, ...]:
        """The paths of the frozen blocks' weights, as `("stem", "entry_flow.0")`.

        Raises:
          UsageError: `freeze` is not a block or flow.
        """
        if self.freeze is None:
            return ()
        held = {id(block) for _, block in list(self.blocks())[: self._frozen_blocks(self.freeze)]}
        paths = (path for path, module in nnx.iter_modules(self) if id(module) in held)
        return tuple(".".join(map(str, path)) for path in paths)

    def _frozen_blocks(self, freeze: str) -> int:
        """The number of frozen blocks, up to the block or flow with that name."""
        names, blocks = zip(*self.blocks(), strict=True)
        ends = {name: i for i, name in enumerate(names, start=1)}
        for flow in ("entry_flow", "middle_flow", "exit_flow"):
            if held := list(getattr(self, flow, ())):
                ends[flow] = ends[names[[block is held[-1] for block in blocks].index(True)]]
        if freeze not in ends:
            raise UsageError(
                f"freeze is {freeze!r}{nearest(freeze, ends) or ';'} The blocks are: "
                f"{', '.join(ends)}"
            )
        return ends[freeze]

    def normalize(self, pixels: jax.Array) -> jax.Array:
        """Scales pixels from 0 to 255 as the weights expect them: `(pixels / 255 - mean) / std`.

        With the default `mean` and `std` the result is in [-1, 1].

        Args:
          pixels: `[..., 3]`, R, G and B.

        Returns:
          Float32 of the same shape, for `features` and `__call__`.
        """
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        factor, offset = (255 * std).astype(np.float32), (mean / std).astype(np.float32)
        if len(set(self.mean)) == len(set(self.std)) == 1:
            factor, offset = factor[0], offset[0]
        images: jax.Array = pixels.astype(jnp.float32) / factor - offset
        return images

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """The last feature map, `[batch, height_out, width_out, channels]` in `dtype`."""
        if min(images.shape[1:3]) < self.min_image_size:
            raise UsageError(
                f"images of {images.shape[1]}x{images.shape[2]} pixels are too small for this "
                f"model; the smallest side is {self.min_image_size}"
            )
        x, blocks = images.astype(self.dtype), self.blocks()
        if self.freeze is not None:
            frozen = islice(blocks, self._frozen_blocks(self.freeze))
            # Without a gradient here, XLA removes the backward pass of the frozen blocks.
            x = jax.lax.stop_gradient(self._run(frozen, x, train=False))
        return self._run(blocks, x, train=train)

    def frozen_output(self, images: jax.Array) -> jax.Array:
        """The output of the frozen blocks, which `after_frozen` takes.

        Float32 `[batch, channels]`, pooled, if all blocks are frozen. Otherwise
        `[batch, height, width, channels]` in `dtype`.
        """
        assert self.freeze is not None
        blocks = self.blocks()
        frozen = islice(blocks, self._frozen_blocks(self.freeze))
        x = self._run(frozen, images.astype(self.dtype), train=False)
        return self.pool(x) if next(blocks, None) is None else x

    def after_frozen(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """The pooled features of images, see `pool`, from their `frozen_output`."""
        if x.ndim == 2:  # pooled already
            return x
        assert self.freeze is not None
        rest = islice(self.blocks(), self._frozen_blocks(self.freeze), None)
        return self.pool(self._run(rest, x, train=train))

    def _run(
        self, blocks: Iterable[tuple[str, nnx.Module]], x: jax.Array, *, train: bool
    ) -> jax.Array:
        """Applies some of the blocks in turn."""
        middle: list[nnx.Module] = []
        if self.scan_middle:
            blocks, all_middle = list(blocks), list(self.middle_flow)
            middle = [block for _, block in blocks if block in all_middle]
        for name, block in blocks:
            # Traces and compiled programs have the names of the paper's or library's modules.
            if middle and block is middle[0]:
                with jax.named_scope("middle_flow"):
                    x = _scan(middle, x, train=train, remat=self.remat)
            elif block not in middle:
                with jax.named_scope(name):
                    x = _remat(block, x, train=train) if self.remat else block(x, train=train)
        return x

    def __call__(
        self, images: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Logits, float32 `[batch, num_classes]`.

        Args:
          images: `[batch, height, width, 3]`, from `normalize`.
          train: whether to normalize by batch statistics, update the running ones, and use dropout.
          rngs: the stream `dropout`, needed in training if `dropout` is above 0.
        """
        pooled = self.pool(self.features(images, train=train))
        return self.classify(pooled, train=train, rngs=rngs)

    def pool(self, features: jax.Array) -> jax.Array:
        """The mean or maximum of each feature map, float32 `[batch, channels]`.

        Args:
          features: `[batch, height, width, channels]`, see `features`.
        """
        if self.pooling == "max":
            return features.max((1, 2)).astype(jnp.float32)
        return features.mean((1, 2), dtype=jnp.float32)

    def classify(
        self,
        pooled: jax.Array,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        place: Place | None = None,
    ) -> jax.Array:
        """The logits of `pooled`, or `pooled` itself without a head."""
        if self.head is None:
            return pooled
        return self.head(pooled, train=train, rngs=rngs, place=place)
