"""Weights of other types than float32: the same result and the same note from every format."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.weights import builders
from xception_jax import weights
from xception_jax.weights import sources

NOTES = {
    "bfloat16": "converted to float32 from bfloat16",
    "float16": "converted to float32 from float16",
    "float32": None,
    "float64": "converted to float32 from float64, float64 rounded to the nearest",
}


def cast(path, dtype):
    """The tensors of a file of float32 in another type; in float64, between two of float32."""
    return {
        name: (array * np.float64(1 + 1e-9)).astype(dtype)
        for name, array in load_file(path).items()
    }


@pytest.mark.parametrize("dtype", NOTES)
def test_timms_safetensors(dtype, tmp_path):
    model = builders.create("xception41", middle_blocks=0)
    held = cast(builders.write_timm(model, tmp_path / "f32.safetensors"), np.dtype(dtype))
    save_file(held, tmp_path / "a.safetensors")
    weights.load(model, tmp_path / "a.safetensors")
    notes = sources.open_source(tmp_path / "a.safetensors").notes()
    assert notes == ([NOTES[dtype]] if NOTES[dtype] else [])
    kernel = held["head.fc.weight"].astype(np.float32).T
    np.testing.assert_array_equal(builders.arrays(model)["params.head.classifier.kernel"], kernel)


assert ml_dtypes.bfloat16  # registers the name with NumPy
