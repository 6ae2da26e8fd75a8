"""Keras files that were made to read other files, to hang, to take all memory, or to crash.

As `tests.weights.hostile`: each case writes into a folder of its own and returns the path that a
user would give. `valid` is a file that converts; each case differs from it in one thing.
"""

import functools
import json
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from tests.weights.keras import builders as keras_builders
from tests.weights.keras import test_hdf5
from tests.weights.keras.builders import HEAD, config
from xception_jax.weights.keras import names as keras_names
from xception_jax.weights.tensors import abstract

CASES: dict[str, Callable[[Path], Path]] = {}


def case(make):
    CASES[make.__name__] = make
    return make


@functools.cache
def held():
    """Tensors of zeros of a whole Xception of three classes."""
    model = abstract("xception", 3, {})
    return {
        layer.name: [np.zeros(tensor.library_shape, np.float32) for tensor in layer.tensors]
        for layer in keras_names.layers(model)
    }


@functools.cache
def valid() -> bytes:
    """A `.weights.h5` that is whole: of zeros, deflated."""
    with tempfile.TemporaryDirectory() as folder:
        with h5py.File(Path(folder, "a.h5"), "w") as file:
            keras_builders.write_weights(file, config(), held(), compression="gzip")
        return Path(folder, "a.h5").read_bytes()


def opened(folder, name="a.weights.h5"):
    path = folder / name
    path.write_bytes(valid())
    return path, h5py.File(path, "a")


def changed(place, make):
    """A whole file, with another thing where a tensor was."""

    def write(folder):
        path, file = opened(folder)
        with file:
            del file[place]
            make(file, place, folder)
        return path

    return write


KERNEL = "layers/conv2d/vars/0"


def _secret(folder):
    """What must not be opened: a pipe without a writer, which would wait."""
    other = folder / "secret"
    if not other.exists():
        os.mkfifo(other)
    return other


for _make in test_hdf5.OUTWARD:

    def _outward(folder, make=_make):
        path = folder / "a.weights.h5"
        with h5py.File(path, "w") as file:
            make(file, _secret(folder))
        return path

    CASES[f"h5_with_{_make.__name__}"] = _outward


@case
def h5_with_external_storage_of_a_real_file(folder):
    def make(file, place, folder):
        (folder / "secret").write_bytes(bytes(3456))
        file.create_dataset(
            place, (3, 3, 3, 32), "f4", external=[(str(folder / "secret"), 0, 3456)]
        )

    return changed(KERNEL, make)(folder)


@case
def zip_with_a_link_in_its_weights(folder):
    path, file = opened(folder, "inner.h5")
    with file:
        del file[KERNEL]
        file[KERNEL] = h5py.ExternalLink(str(_secret(folder)), "/x")
    return zipped(folder, path.read_bytes())


def zipped(folder, weights, text=None, members=(), compression=zipfile.ZIP_STORED):
    path = folder / "a.keras"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("config.json", json.dumps(config()) if text is None else text)
        archive.writestr("model.weights.h5", weights)
        for name, content in members:
            archive.writestr(name, content)
    return path


# More than is stored.


def tensors_of(name, make):
    CASES[name] = changed(KERNEL, make)


def inflating(size):
    """A raw deflate stream of about `size` zeros, made of one block over and over."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 22)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size >> 22) + packer.flush()


def _inflating(file, place, folder):
    made = file.create_dataset(place, (3, 3, 3, 32), "f4", chunks=(3, 3, 3, 32), compression="gzip")
    made.id.write_direct_chunk((0, 0, 0, 0), b"\x78\xda" + inflating(3 << 30) + bytes(4))


tensors_of("h5_of_an_inflating_chunk", _inflating)
tensors_of("h5_of_a_terabyte", lambda f, p, _: f.create_dataset(p, (1 << 38,), "f4"))
tensors_of("h5_of_a_sparse_terabyte", lambda f, p, _: f.create_dataset(
    p, (1 << 38,), "f4", chunks=(1 << 20,), compression="gzip"))  # fmt: skip
tensors_of("h5_of_tiny_chunks", lambda f, p, _: f.create_dataset(
    p, (400, 1000), "f4", chunks=(1, 1), compression="gzip"))  # fmt: skip
tensors_of("h5_of_huge_chunks", lambda f, p, _: f.create_dataset(
    p, (3, 3, 3, 32), "f4", chunks=(256, 256, 256, 32), maxshape=(None,) * 4))  # fmt: skip
tensors_of("h5_of_another_filter", lambda f, p, _: f.create_dataset(
    p, data=np.zeros((3, 3, 3, 32), "f4"), compression="lzf"))  # fmt: skip
tensors_of("h5_of_texts", lambda f, p, _: f.create_dataset(p, data=["a", "b"]))
tensors_of("h5_of_pairs", lambda f, p, _: f.create_dataset(
    p, data=np.zeros((3, 3, 3, 32), [("a", "f4"), ("b", "f4")])))  # fmt: skip
tensors_of("h5_of_complex_numbers", lambda f, p, _: f.create_dataset(
    p, data=np.zeros((3, 3, 3, 32), "c8")))  # fmt: skip
tensors_of("h5_of_a_number", lambda f, p, _: f.create_dataset(p, data=1.0))
tensors_of("h5_of_nothing", lambda f, p, _: f.create_dataset(p, dtype="f4", shape=None))
tensors_of("h5_of_a_group_for_a_tensor", lambda f, p, _: f.create_group(p))
tensors_of("h5_of_a_type_for_a_tensor", lambda f, p, _: f.__setitem__(p, np.dtype("f4")))
tensors_of("h5_of_not_a_number", lambda f, p, _: f.create_dataset(
    p, data=np.full((3, 3, 3, 32), np.nan, "f4")))  # fmt: skip
tensors_of("h5_of_a_missing_tensor", lambda f, p, _: None)


@case
def h5_of_many_groups(folder):
    path, file = opened(folder)
    with file:
        held = file.create_group("optimizer").id
        for i in range(60_000):
            held.links.create_hard(f"{i}".encode(), held, b".")
    return path


@case
def h5_of_a_deep_model(folder):
    path = folder / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_group("layers/functional/" * 3000)
    return path


@case
def h5_of_a_model_in_itself(folder):
    path, file = opened(folder)
    with file:
        file["layers/functional/layers"] = file["layers"]
    return path


@case
def h5_of_a_billion_classes(folder):
    path, file = opened(folder)
    with file:
        for i, shape in enumerate(((2048, 1 << 30), (1 << 30,))):
            del file[f"layers/dense/vars/{i}"]
            file.create_dataset(f"layers/dense/vars/{i}", shape, "f4")
    return path


@case
def h5_of_many_classes_that_deflate(folder):
    path, file = opened(folder)
    with file:
        for i, shape in enumerate(((2048, 1 << 16), (1 << 16,))):
            del file[f"layers/dense/vars/{i}"]
            file.create_dataset(f"layers/dense/vars/{i}", shape, "f4", compression="gzip",
                                chunks=shape)  # fmt: skip
            raw = zlib.compress(bytes(4 * int(np.prod(shape))), 1)
            file[f"layers/dense/vars/{i}"].id.write_direct_chunk((0,) * len(shape), raw)
    return path


def config_of(name, text):
    CASES[f"zip_of_a_config_{name}"] = lambda folder: zipped(folder, valid(), text)

    def attribute(folder):
        path = folder / "a.h5"
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = text
            file.create_group("model_weights").attrs["layer_names"] = [b"a"]
        return path

    CASES[f"h5_of_a_config_{name}"] = attribute


DEEP = 100_000
config_of("nested_in_lists", "[" * DEEP + "]" * DEEP)
config_of("nested_in_objects", '{"a":' * DEEP + "1" + "}" * DEEP)
config_of("that_never_ends", "[" * DEEP)
config_of("of_a_huge_number", "1" * 1_000_000)
config_of("that_is_a_list", "[]")
config_of("without_layers", '{"class_name": "Functional", "config": {}}')
config_of("of_wrong_types", '{"class_name": "Functional", "config": {"layers": 3, "name": []}}')
config_of("of_a_class_with_escapes", json.dumps({"class_name": "\x1b[31mred", "config": {}}))
config_of("of_no_text", "\udcff".encode("utf-8", "surrogatepass").decode("latin1"))


@case
def zip_of_a_layer_with_escapes(folder):
    changed = config(("\x1b]0;title\x07Dense", "\x1b[2J\n" * 50, {}))
    return zipped(folder, valid(), json.dumps(changed))


@case
def zip_of_a_circle(folder):
    changed = config()
    layers = changed["config"]["layers"]
    layers[1] = keras_builders.layer("Conv2D", layers[1]["name"], layers[-1]["name"])
    return zipped(folder, valid(), json.dumps(changed))


@case
def zip_of_models_in_models(folder):
    layers = config()
    for i in range(40):
        layers = {"class_name": "Sequential", "config": {"name": f"m{i}", "layers": [layers]}}
    return zipped(folder, valid(), json.dumps(layers))


@case
def zip_of_a_lambda(folder):
    code = {"class_name": "__lambda__", "config": {"code": "4wEAAAA=", "defaults": None}}
    changed = config(("Lambda", "run", {"function": code}), *HEAD)
    return zipped(folder, valid(), json.dumps(changed))


def _inflating_member(path, name):
    """Makes a stored member, the archive's last, one that is deflated and has 3 GB."""
    content = bytearray(path.read_bytes())
    local = content.rindex(b"PK\x03\x04")
    central = content.rindex(b"PK\x01\x02")
    assert content[central + 46 : central + 46 + len(name)] == name
    for place in (local + 8, central + 10):
        content[place] = zipfile.ZIP_DEFLATED
    for place in (local + 22, central + 24):
        content[place : place + 4] = struct.pack("<I", 3 << 30)
    path.write_bytes(content)


@case
def zip_of_an_inflating_config(folder):
    path = folder / "a.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", valid())
        archive.writestr("config.json", inflating(3 << 30))
    _inflating_member(path, b"config.json")
    return path


@case
def zip_of_inflating_weights(folder):
    path = zipped(folder, inflating(3 << 30))
    _inflating_member(path, b"model.weights.h5")
    return path


@case
def zip_of_more_than_it_declares(folder):
    """A member of 32 MB that is said to have as many bytes as its neighbour."""
    path = zipped(folder, bytes(1 << 25), compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<I", 1000)
    path.write_bytes(content)
    return path


@case
def zip_of_many_entries(folder):
    path = zipped(folder, valid())
    with zipfile.ZipFile(path, "a") as archive:
        for i in range(80_000):
            archive.writestr(f"assets/{i:064}", b"")
    return path


@case
def zip_that_is_encrypted(folder):
    path = zipped(folder, valid())
    content = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(magic)
        while place >= 0:
            content[place + at] |= 1
            place = content.find(magic, place + 4)
    path.write_bytes(content)
    return path


def _entries(name, *members, **options):
    CASES[name] = lambda folder: zipped(folder, valid(), members=members, **options)


_entries("zip_with_a_path_upwards", ("../../escaped", b"x"))
_entries("zip_with_a_path_upwards_of_windows", ("..\\escaped", b"x"))
_entries("zip_with_a_path_from_the_root", ("/escaped", b"x"))
_entries("zip_of_lzma", compression=zipfile.ZIP_LZMA)
_entries("zip_of_bzip2", compression=zipfile.ZIP_BZIP2)


@case
def zip_with_two_configs(folder):
    path = zipped(folder, valid())
    content = path.read_bytes().replace(b"config.jsoX", b"config.json")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.jsoX", "{}")
    content = path.read_bytes().replace(b"config.jsoX", b"config.json")
    path.write_bytes(content)
    return path


@case
def zip_without_weights(folder):
    path = folder / "a.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config()))
    return path


@case
def zip_without_a_config(folder):
    path = folder / "a.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", valid())
    return path


@case
def zip_of_no_hdf5(folder):
    return zipped(folder, b"no HDF5" * 1000)


@case
def zip_that_is_cut(folder):
    path = zipped(folder, valid())
    path.write_bytes(path.read_bytes()[:-3000])
    return path


@case
def h5_of_tiny_chunks_of_the_right_shape(folder):
    """A kernel of 1.5 million numbers, of which each is a chunk."""

    def make(file, place, folder):
        made = file.create_dataset(place, (1, 1, 1536, 2048), "f4", chunks=(1, 1, 1, 1),
                                   compression="gzip")  # fmt: skip
        made.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(4)))

    return changed("layers/separable_conv2d_33/vars/1", make)(folder)


@case
def h5_that_is_cut(folder):
    path = folder / "a.weights.h5"
    path.write_bytes(valid()[:-3000])
    return path


@case
def h5_that_is_empty(folder):
    path = folder / "a.h5"
    path.touch()
    return path


@case
def h5_that_is_sparse(folder):
    path = folder / "a.weights.h5"
    path.write_bytes(valid())
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    return path


def _special(name, make):
    def write(folder, make=make):
        make(folder / name)
        return folder / name

    CASES[f"{make.__name__.strip('_')}_{name}"] = write


def _pipe(path):
    os.mkfifo(path)


def _zero(path):
    path.symlink_to("/dev/zero")


def _folder(path):
    path.mkdir()


for _name in ("a.h5", "a.keras"):
    for _each in (_pipe, _zero, _folder):
        _special(_name, _each)
