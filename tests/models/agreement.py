"""A model of ours beside a reference implementation that has the same weights."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from xception_jax import models

# A member's own size, and two whose maps are odd and even in other places.
SIZES = (299, 150, 101)


def create(name: str, **overrides: object) -> nnx.Module:
    """The model with a classifier of 1000 classes; the test replaces its weights."""
    make = jax.jit(
        lambda: nnx.split(models.create(name, num_classes=1000, rngs=nnx.Rngs(0), **overrides))[1],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    shapes = nnx.eval_shape(
        lambda: models.create(name, num_classes=1000, rngs=nnx.Rngs(0), **overrides)
    )
    return nnx.merge(nnx.graphdef(shapes), make())


def batch_statistics(rng: np.random.Generator, channels: int) -> dict[str, np.ndarray]:
    """Random parameters and statistics of a batch normalization, none of them as initialized."""
    return {
        "scale": rng.uniform(0.5, 1.5, channels).astype(np.float32),
        "bias": rng.normal(0, 0.1, channels).astype(np.float32),
        "mean": rng.normal(0, 0.1, channels).astype(np.float32),
        "var": rng.uniform(0.7, 1.7, channels).astype(np.float32),
    }


def kernel(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int, name: str) -> np.ndarray:
    """A random kernel of the named model, by which the image neither fades away nor outgrows the
    biases on its way through the layers.

    A ReLU halves the variance, and Inception V3's average pooling takes more; a depthwise
    convolution, of few inputs, has no ReLU before its pointwise one.
    """
    gain = 1 if fan_in == 9 else 3 if name == "inception_v3" else 2
    variance = gain / fan_in
    return rng.normal(0, np.sqrt(variance), shape).astype(np.float32)


def logits(model: nnx.Module, images: np.ndarray) -> np.ndarray:
    """The model's, by one program: operation by operation there would be hundreds."""
    graphdef, weights = nnx.split(model)
    compiled = jax.jit(lambda weights, images: nnx.merge(graphdef, weights)(images))
    return np.asarray(compiled(weights, images))


def assert_agrees(
    model: nnx.Module, reference: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> None:
    """Features and logits within 1e-4 of their standard deviation, at all of `SIZES`.

    Args:
      model: ours.
      reference: takes images `[batch, height, width, 3]` to features in our layout and to logits.
    """
    graphdef, weights = nnx.split(model)

    @jax.jit
    def ours(weights, images):
        model = nnx.merge(graphdef, weights)
        return model.features(images), model(images)

    for size in SIZES:
        rng = np.random.default_rng(size)
        colours, noise = (
            rng.uniform(-0.6, 0.6, (2, 1, 1, 3)),
            rng.uniform(-1, 1, (2, size, size, 3)),
        )
        images = np.float32(colours + 0.4 * noise)
        expected = reference(images)
        apart = np.abs(expected[1][0] - expected[1][1]).mean() / expected[1].std()
        assert apart > 0.01, "the logits hardly depend on the image"
        for kind, a, b in zip(("features", "logits"), ours(weights, images), expected, strict=True):
            assert a.shape == b.shape
            off = np.abs(np.asarray(a) - b).max() / b.std()
            print(f"{kind} at {size}: off by {off:.1e} of their standard deviation")
            assert off <= 1e-4, f"{kind} at {size}"
