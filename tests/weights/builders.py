"""Small models with weights of their own, as files of every kind."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from xception_jax.weights.keras import files as keras_files
from xception_jax.weights.keras import names as keras_names
from xception_jax.weights.tensors import abstract, to_library, variables
from xception_jax.weights.timm import files as timm_files
from xception_jax.weights.timm import names as timm_names

SMALL = {"width": 0.05, "stem_stride": 1}


def create(
    name: str, num_classes: int | None = 3, seed: int = 0, **overrides: object
) -> nnx.Module:
    """A narrow model; no two of its tensors are alike, and its logits are of a moderate size."""
    options = {**SMALL, **overrides}
    model = abstract(name, num_classes, options)
    rng = np.random.default_rng(seed)
    for key, variable in variables(model).items():
        if key.endswith("kernel"):
            values = rng.normal(0, np.prod(variable.shape[:-1]) ** -0.5, variable.shape)
        else:
            values = rng.uniform(0.5, 1.5, variable.shape)
        variable.set_value(jnp.asarray(values, jnp.float32))
    return model


def arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    return {name: np.asarray(variable[...]) for name, variable in variables(model).items()}


def write_keras(model: nnx.Module, path: Path) -> Path:
    layers = keras_names.layers(model)
    theirs = to_library([tensor for layer in layers for tensor in layer.tensors], arrays(model))
    keras_files.write(path, path.name, layers, theirs)
    return path


def write_timm(model: nnx.Module, path: Path) -> Path:
    timm_files.write(path, path.name, to_library(timm_names.tensor_map(model), arrays(model)))
    return path
