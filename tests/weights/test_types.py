"""Weights of other types than float32: the same result and the same note from every format."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.weights import builders, pickled
from xception_jax.errors import UsageError
from xception_jax.weights import converted, pretrained
from xception_jax.weights.tensors import abstract

NOTES = {
    "bfloat16": ["converted to float32 from bfloat16"],
    "float16": ["converted to float32 from float16"],
    "float32": [],
    "float64": ["converted to float32 from float64, float64 rounded to nearest"],
}
SMALL = {"width": 0.05, "middle_blocks": 0}
BIAS = "params.head.classifier.bias"


@pytest.fixture(scope="module")
def model():
    return builders.create("xception41", 3, **SMALL)


def cast(held, dtype):
    """Tensors in another type; in float64, between two numbers of float32."""
    finer = np.float64(1 + 1e-9)
    return {name: (array * finer).astype(np.dtype(dtype)) for name, array in held.items()}


def write_safetensors(held, folder):
    save_file(held, folder / "a.safetensors")
    return folder / "a.safetensors"


def write_zip(held, folder):
    return pickled.zipped(folder / "a.pth", *pickled.state(held))


def write_legacy(held, folder):
    width = next(iter(held.values())).dtype.itemsize
    return pickled.legacy(folder / "a.pth", *pickled.state(held, (None,)), width=width)


def found(path, shapes):
    source = pretrained.open_pretrained(path)
    return source.tensors(shapes, "xception41"), source.notes()


@pytest.mark.parametrize("dtype", NOTES)
def test_every_format_of_timms_gives_the_same(dtype, model, tmp_path):
    shapes = abstract("xception41", 3, {"stem_stride": 1, **SMALL})
    held = cast(load_file(builders.write_timm(model, tmp_path / "f32.safetensors")), dtype)
    expected = held["head.fc.weight"].astype(np.float32).T
    for write in (write_safetensors, write_zip, write_legacy):
        tensors, notes = found(write(held, tmp_path), shapes)
        assert notes == NOTES[dtype]
        np.testing.assert_array_equal(tensors["params.head.classifier.kernel"], expected)
        assert {array.dtype for array in tensors.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("dtype", NOTES)
def test_a_file_of_our_own(dtype, model, tmp_path):
    held = cast(builders.arrays(model), dtype)
    path = tmp_path / "a.safetensors"
    about = converted.About("xception41", {"stem_stride": 1, **SMALL}, 3)
    converted.write(path, about, held)
    tensors, notes = found(path, model)
    assert notes == NOTES[dtype]
    np.testing.assert_array_equal(tensors[BIAS], held[BIAS].astype(np.float32))


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "complex64", "bool"])
def test_other_types_are_refused(dtype, model, tmp_path):
    held = load_file(builders.write_timm(model, tmp_path / "a.safetensors"))
    changed = held | {"head.fc.bias": np.ones(3, np.dtype(dtype))}
    said = rf"head.fc.bias is {dtype}; weights can be bfloat16, float16, float32, float64"
    with pytest.raises(UsageError, match=said):
        found(write_safetensors(changed, tmp_path), model)


assert ml_dtypes.bfloat16  # with it NumPy knows the names
