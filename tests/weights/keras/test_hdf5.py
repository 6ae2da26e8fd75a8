"""HDF5 files that reach out of themselves, or that are more than they say."""

import os
import re
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from xception_jax.errors import UsageError
from xception_jax.weights import files, pretrained
from xception_jax.weights.keras import hdf5


def external_storage(file, other):
    file.create_dataset("layers/dense/vars/0", (4,), "f4", external=[(str(other), 0, 16)])


def external_storage_elsewhere(file, other):
    file["layers/dense/vars/0"] = np.zeros(4, np.float32)
    file.create_dataset("optimizer/vars/0", (4,), "f4", external=[(str(other), 0, 16)])


def external_link(file, other):
    file["layers/dense/vars/0"] = h5py.ExternalLink(str(other), "/x")


def soft_link(file, other):
    file["layers/dense/vars/0"] = h5py.SoftLink("/elsewhere")


def user_defined_link(file, other):
    """An external link, whose class is 64, as one of class 65."""
    file["layers/dense/vars/zzzz"] = h5py.ExternalLink(str(other), "/x")
    path = Path(file.filename)
    file.close()
    content = path.read_bytes()
    # A link message: version, flags, class, maybe a character set, the name's length, the name.
    [place] = [m.start() for m in re.finditer(b"\x01.\x40.?\x04zzzz", content, re.DOTALL)]
    path.write_bytes(content[: place + 2] + b"\x41" + content[place + 3 :])


def virtual_dataset(file, other):
    layout = h5py.VirtualLayout((4,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(other), "x", (4,))
    file.create_virtual_dataset("layers/dense/vars/0", layout)


def growing_virtual_dataset(file, other):
    """Its shape is that of the other file."""
    layout = h5py.VirtualLayout((4,), dtype="f4", maxshape=(None,))
    source = h5py.VirtualSource(str(other), "x", (4,), maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    file.create_virtual_dataset("layers/dense/vars/0", layout)


OUTWARD = {
    external_storage: "has external storage at '/layers/dense/vars/0'",
    external_storage_elsewhere: "has external storage at '/optimizer/vars/0'",
    external_link: "has an external link at '/layers/dense/vars/0'",
    soft_link: "has a soft link at '/layers/dense/vars/0'",
    user_defined_link: "has a user-defined link at '/layers/dense/vars/zzzz'",
    virtual_dataset: "has a virtual dataset at '/layers/dense/vars/0'",
    growing_virtual_dataset: "has a virtual dataset at '/layers/dense/vars/0'",
}


@pytest.mark.parametrize("make", OUTWARD, ids=lambda make: make.__name__)
def test_a_file_that_points_at_another_one_is_refused(make, tmp_path):
    """The other one is a pipe without a writer: to open it would wait without end."""
    path, other = tmp_path / "a.weights.h5", tmp_path / "pipe"
    os.mkfifo(other)
    with h5py.File(path, "w") as file:
        make(file, other)
    with pytest.raises(UsageError) as raised:
        pretrained.open_pretrained(path)
    assert str(raised.value) == f"{path} {OUTWARD[make]}; only data in the file itself is read"


@pytest.mark.parametrize(
    "options",
    [{}, {"chunks": (7, 5)}, {"compression": "gzip", "shuffle": True, "fletcher32": True}],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32"])
def test_an_array_is_read_as_it_was_written(dtype, options, tmp_path):
    array = np.arange(20 * 13).reshape(20, 13).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=array, **options)
    with hdf5.open_file(tmp_path / "a.h5") as file:
        read = hdf5.Dataset(file["x"], tmp_path / "a.h5")
        assert (read.shape, read.dtype, read.nbytes) == (array.shape, array.dtype, array.nbytes)
        np.testing.assert_array_equal(np.asarray(read), array)


def test_bfloat16_is_read_as_keras_writes_it(tmp_path):
    import ml_dtypes

    array = np.arange(6).astype(ml_dtypes.bfloat16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=array)
    with hdf5.open_file(tmp_path / "a.h5") as file:
        read = np.asarray(hdf5.Dataset(file["x"], tmp_path / "a.h5"))
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read, array)


def inflating(file):
    """16 MB that take 16 kB, in a chunk of 4 kB."""
    held = file.create_dataset("x", (1024,), "f4", chunks=(1024,), compression="gzip")
    held.id.write_direct_chunk((0,), zlib.compress(bytes(2**24), 9))


def deflated_twice(file):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1024,))
    plist.set_deflate(9)
    plist.set_deflate(9)
    kind, space = h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((1024,))
    h5py.h5d.create(file.id, b"x", kind, space, plist)


HOSTILE = {
    inflating: "a chunk in '/x' that is not 4,096 bytes inflated|a chunk of 16,",
    deflated_twice: r"has filters \[1, 1\] at '/x'",
    lambda file: file.create_dataset("x", (10**12,), "f4"): "declares 4,000,000,000,000 bytes",
    lambda file: file.create_dataset("x", (10**9,), "f4", chunks=(1000,), compression="gzip"): (
        "declares 4,000,000,000 bytes at '/x' and stores 0"
    ),
    lambda file: file.create_dataset("x", data=np.zeros(200_000, "f4"), chunks=(1,)): (
        r"stores '/x' of \[200000\] in chunks of \[1\]"
    ),
    lambda file: [file.create_group(f"{i}") for i in range(50_001)]: "has more than 50,000 objects",
}


@pytest.mark.parametrize("make", HOSTILE)
def test_a_file_that_takes_more_than_it_says_is_refused(make, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(UsageError, match=HOSTILE[make]):
        read(path)


def read(path):
    with files.explained(path, "HDF5 file"), hdf5.open_file(path) as file:
        return np.asarray(hdf5.Dataset(file["x"], path))


def test_a_group_that_holds_itself_is_walked_once(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/b"] = file["/"]
    assert list(hdf5.open_file(tmp_path / "a.h5")) == ["a"]


def test_a_pipe_is_no_file_of_weights(tmp_path):
    os.mkfifo(tmp_path / "a.h5")
    with pytest.raises(UsageError, match=r"a\.h5 is a named pipe"):
        pretrained.open_pretrained(tmp_path / "a.h5")
