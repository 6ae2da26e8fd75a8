"""Files that were made to hang, to take all memory, to run code, or to end in a traceback.

Each case writes into a folder of its own and returns the path that a user would give. None of them
is large: what is large is what they claim.
"""

import json
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.weights.pickled import Call, Global, Raw, encode, legacy, storage, tensor, whole, zipped

CASES: dict[str, Callable[[Path], Path]] = {}
# Cases that take seconds to write or to refuse, except one of each kind.
SLOW = {
    "legacy_of_nested_tuples", "legacy_of_a_nested_key", "legacy_of_a_nested_set",
    "legacy_of_many_dicts_of_one_list", "legacy_of_ten_million_entries", "zip_of_a_nested_set",
    "zip_of_nested_tuples", "zip_of_ten_million_entries", "safetensors_of_a_million_tensors",
}  # fmt: skip
TERABYTE = 1 << 40


def case(make):
    CASES[make.__name__] = make
    return make


# Not files.


def _special(name, make):
    def write(folder):
        path = folder / name
        make(path)
        return path

    CASES[f"{make.__name__.strip('_')}_{name}"] = write


def _pipe(path):
    os.mkfifo(path)


def _folder(path):
    path.mkdir()


def _socket(path):
    held = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        held.bind(path.name)
    finally:
        os.chdir(here)
        held.close()


def _zero(path):
    path.symlink_to("/dev/zero")


def _loop(path):
    path.symlink_to(path)


for _name in ("a.pth", "a.ckpt", "a.safetensors"):
    for _make in (_pipe, _folder, _socket, _zero, _loop):
        _special(_name, _make)


def _huge(path):
    with path.open("wb") as file:
        file.truncate(TERABYTE)


for _name in ("a.pth", "a.safetensors"):
    _special(_name, _huge)


# .safetensors


def safetensors(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def _entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


_DEEP = b"[" * 100_000 + b"]" * 100_000
_HEADERS = {
    "nested": (b'{"a":' + _DEEP + b"}", b""),
    "not_json": (b"{" * 50, b""),
    "overlapping": ({"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}, b"\0" * 12),
    "with_a_gap": ({"a": _entry([1], 0, 4), "b": _entry([1], 8, 12)}, b"\0" * 12),
    "beyond_the_end": ({"a": _entry([1 << 38], 0, TERABYTE)}, b"\0" * 8),
    "of_an_overflowing_shape": ({"a": _entry([1 << 40, 1 << 40], 0, 0)}, b""),
    "of_a_negative_shape": ({"a": _entry([-1], 0, 4)}, b"\0" * 4),
    "of_an_unknown_type": ({"fc.bias": _entry([2], 0, 1, "F4")}, b"\0"),
    "of_whole_numbers": ({"fc.bias": _entry([1], 0, 8, "I64")}, b"\0" * 8),
    "of_a_name_that_writes_to_the_terminal": ({"\x1b[2Ja": _entry([1], 0, 4)}, b"\0" * 4),
    "of_a_list": (b"[1, 2]", b""),
}


for _name, (_header, _data) in _HEADERS.items():
    CASES[f"safetensors_{_name}"] = lambda folder, header=_header, data=_data: safetensors(
        folder / "a.safetensors", header, data
    )


@case
def safetensors_whose_header_is_longer_than_the_file(folder):
    return safetensors(folder / "a.safetensors", {}, length=1 << 62)


@case
def safetensors_whose_header_is_a_hundred_megabytes_of_spaces(folder):
    return safetensors(folder / "a.safetensors", b"{}" + b" " * 99_000_000)


@case
def safetensors_of_a_million_tensors(folder):
    names = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
                     for i in range(1_000_000))  # fmt: skip
    return safetensors(folder / "a.safetensors", f"{{{names}}}".encode())


# timm's config.json beside the weights


def _beside(write):
    def make(folder):
        write(folder / "config.json")
        return safetensors(folder / "a.safetensors", {"fc.bias": _entry([1], 0, 4)}, b"\0" * 4)

    return make


CASES["config_json_is_a_pipe"] = _beside(_pipe)
CASES["config_json_is_endless"] = _beside(_zero)
CASES["config_json_is_a_terabyte"] = _beside(_huge)
CASES["config_json_is_nested"] = _beside(lambda path: path.write_bytes(_DEEP))
CASES["config_json_of_wrong_types"] = _beside(
    lambda path: path.write_text('{"pretrained_cfg": {"mean": {"a": 1}, "input_size": {}}}')
)


# Our own header

_ABOUT = {
    "model": "xception", "overrides": {}, "num_classes": 2, "class_names": None,
    "preprocessing": {}, "source": {},
}  # fmt: skip
_OURS = {
    "with_rngs": {"overrides": {"rngs": 3}},
    "with_an_argument_of_training": {"overrides": {"freeze": "block3"}},
    "with_a_billion_blocks": {"overrides": {"middle_blocks": 10**9}},
    "of_infinite_width": {"overrides": {"width": 1e308}},
    "with_text_for_a_number": {"overrides": {"bn_epsilon": "0.001"}},
    "with_a_number_for_overrides": {"overrides": 3},
    "of_a_list_of_models": {"model": ["xception"]},
    "of_minus_two_classes": {"num_classes": -2},
    "of_true_classes": {"num_classes": True},
    "of_too_many_names": {"class_names": ["a", "b", "c"]},
    "of_names_that_are_numbers": {"class_names": [1, 2]},
    "with_another_entry": {"more": 1},
    "of_another_range": {"preprocessing": {"range": [0, "a"]}},
    "of_an_endless_image": {"preprocessing": {"image_size": 1e400}},
    "with_text_for_exif": {"preprocessing": {"exif": "yes"}},
    "with_no_crop": {"preprocessing": {"eval_crop": None}},
    "with_text_for_a_source": {"source": "x"},
    "nested": {"source": {"of": _DEEP.decode()}},
}
for _name, _change in _OURS.items():
    _text = json.dumps(_ABOUT | _change).replace(f'"{_DEEP.decode()}"', _DEEP.decode())
    CASES[f"ours_{_name}"] = lambda folder, text=_text: safetensors(
        folder / "a.safetensors",
        {"__metadata__": {"xception_jax": text, "sha256": "0"}, "a": _entry([1], 0, 4)},
        b"\0" * 4,
    )


# What torch pickles

_MEMO = b"q\x01"  # keeps the top of the stack as 1
_GET = b"h\x01"
_CODE = Call(Global("os", "system"), ("touch executed",))
_HEX = encode(Global("_codecs", "encode"))


def _doubled(times):
    """The same bytes, encoded again and again, twice as long each time."""
    start = b"X\x04\0\0\0AAAAX\x05\0\0\0ascii\x86R"
    return _HEX * (times + 1) + start + b"X\x03\0\0\0hex\x86R" * times


def _laughs(depth):
    """A list of ten times the list before, and so on."""
    return b"]" + (_MEMO + b"0](" + _GET * 10 + b"e") * depth


_PICKLES = {
    "that_runs_a_command": {"fc.bias": _CODE},
    "that_runs_a_command_beside": {"state_dict": {}, "callbacks": _CODE},
    "that_imports_by_getattr": Call(Global("builtins", "getattr"), (Global("os", "x"), "system")),
    "of_a_whole_model": Call(Global("timm.models.xception", "Xception"), ()),
    "that_doubles": Raw(_doubled(60)),
    "of_a_billion_laughs": {"fc.bias": Raw(_laughs(40))},
    "of_a_terabyte_of_nothing": {"fc.bias": Call(Global("builtins", "bytearray"), (TERABYTE,))},
    "of_a_terabyte_of_text": Raw(b"\x8d" + struct.pack("<Q", TERABYTE)),
    "of_a_huge_place_in_the_memo": Raw(b"Nr\xff\xff\xff\x7f"),
    "of_nested_tuples": {"fc.bias": Raw(b")" + b"\x85" * 300_000)},
    "of_a_nested_key": Raw(b"})" + b"\x85" * 300_000 + b"Ns"),
    "of_a_nested_set": Raw(b"\x8f()" + b"\x85" * 300_000 + b"\x90"),
    "of_many_dicts_of_one_list": Raw(
        b"](" + b"NN\x86" * 9_000 + b"e" + _MEMO + b"0]("
        + (encode(Global("collections", "OrderedDict")) + _GET + b"\x85R") * 9_000 + b"e"
    ),
    "of_ten_million_entries": Raw(b"](" + b"}" * 10_000_000 + b"e"),
    "of_integer_keys": {3: tensor("0", "float32", (2,)), "fc.bias": tensor("0", "float32", (2,))},
    "of_a_number": 3,
    "of_nothing": {},
    "that_does_not_end": Raw(b"]" * 1000),
    "of_an_unknown_operation": Raw(b"\xff"),
    "with_an_empty_stack": Raw(b"tuR"),
    "of_a_name_that_writes_to_the_terminal": {"\x1b[2J": 3},
    "of_a_global_that_writes_to_the_terminal": Global("\x1b[2J", "\x1b]0;x\x07"),
}  # fmt: skip
for _name, _value in _PICKLES.items():
    CASES[f"zip_{_name}"] = lambda folder, value=_value: zipped(
        folder / "a.pth", value, {"0": b"\0" * 8}
    )
    CASES[f"legacy_{_name}"] = lambda folder, value=_value: legacy(
        folder / "a.pth", value, {"0": b"\0" * 8}
    )


# Tensors that contradict the file

_UTILS = "torch._utils"
_DENSE = storage("0", "float32", 2)
_TENSORS = {
    "sparse": Call(Global(_UTILS, "_rebuild_sparse_tensor"), (None, ())),
    "quantised": Call(Global(_UTILS, "_rebuild_qtensor"), (_DENSE, 0, (2,), (1,), (), False, {})),
    "of_the_device_meta": Call(Global(_UTILS, "_rebuild_meta_tensor_no_storage"), (None, (2,))),
    "of_a_subclass": Call(Global(_UTILS, "_rebuild_wrapper_subclass"), (None, (2,))),
    "of_an_expanded_terabyte": tensor("0", "float32", (1 << 38,), strides=(0,), count=2),
    "that_overlaps_itself": tensor("0", "float32", (2, 2), strides=(0, 1), count=2),
    "beyond_its_storage": tensor("0", "float32", (4,), count=4),
    "with_an_offset_beyond": tensor("0", "float32", (2,), offset=1 << 40),
    "with_a_negative_offset": tensor("0", "float32", (2,), offset=-1),
    "with_negative_strides": tensor("0", "float32", (2,), strides=(-1,)),
    "with_too_few_strides": tensor("0", "float32", (1, 2), strides=(1,)),
    "of_a_huge_shape": tensor("0", "float32", (1 << 47, 1 << 47), count=1 << 60),
    "without_a_storage": tensor("missing", "float32", (2,)),
    "of_an_unknown_storage": tensor("0", "EvilStorage", (2,)),
    "without_arguments": Call(Global(_UTILS, "_rebuild_tensor_v2"), ()),
    "of_a_number": Call(Global(_UTILS, "_rebuild_tensor_v2"), (1, 2, 3, 4)),
    "that_is_a_parameter_of_itself": Call(Global(_UTILS, "_rebuild_parameter"), (None,)),
    "out_of_the_archive": tensor("../../a", "float32", (2,)),
}
for _name, _value in _TENSORS.items():
    CASES[f"tensor_{_name}"] = lambda folder, value=_value: zipped(
        folder / "a.pth", {"fc.bias": value}, {"0": b"\0" * 8}
    )


# Archives

_GOOD = {"fc.bias": tensor("0", "float32", (2,))}


@case
def zip_bomb_of_a_storage(folder):
    count = 1 << 24
    path = zipped(folder / "a.pth", {"fc.bias": tensor("0", "float32", (count,))})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"\0" * 4 * count)
    return path


@case
def zip_bomb_of_the_pickle(folder):
    pickle = whole(Raw(b"](" + b"N" * 50_000_000 + b"e"))
    return zipped(folder / "a.pth", pickle, compression=zipfile.ZIP_DEFLATED)


@case
def zip_of_a_long_directory(folder):
    path = zipped(folder / "a.pth", _GOOD, {"0": b"\0" * 8})
    data = path.read_bytes()
    start = data.index(b"PK\1\2")
    entry = b"PK\1\2" + b"\0" * 24 + struct.pack("<HHHHHII", 5, 0, 0, 0, 0, 0, 0) + b"abcde"
    table = entry * 2_000_000
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65535, 65535, len(table), start, 0)
    path.write_bytes(data[:start] + table + end)
    return path


@case
def zip_of_a_program(folder):
    return zipped(folder / "a.pth", _GOOD, {"0": b"\0" * 8}, more={"constants.pkl": whole(())})


@case
def zip_of_big_endian_numbers(folder):
    return zipped(folder / "a.pth", _GOOD, {"0": b"\0" * 8}, more={"byteorder": b"big"})


@case
def zip_without_a_pickle(folder):
    path = folder / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/x", b"x")
    return path


@case
def zip_that_is_cut_off(folder):
    path = zipped(folder / "a.pth", _GOOD, {"0": b"\0" * 8})
    path.write_bytes(path.read_bytes()[:-30])
    return path


@case
def legacy_of_a_storage_beyond_the_end(folder):
    return legacy(folder / "a.pth", _GOOD, {"0": b"\0" * 8}, counts={"0": 1 << 60})


@case
def legacy_of_a_negative_storage(folder):
    return legacy(folder / "a.pth", _GOOD, {"0": b"\0" * 8}, counts={"0": -5})


@case
def legacy_that_is_cut_off(folder):
    path = legacy(folder / "a.pth", _GOOD, {"0": b"\0" * 8})
    path.write_bytes(path.read_bytes()[:-20])
    return path


@case
def tar_of_the_oldest_torch(folder):
    import tarfile

    path = folder / "a.pth"
    (folder / "storages").write_bytes(b"\x80\x02K\x00.")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(folder / "storages", "storages")
    (folder / "storages").unlink()
    return path


@case
def bytes_of_chance(folder):
    path = folder / "a.pth"
    path.write_bytes(np.random.default_rng(0).bytes(100_000))
    return path


@case
def nothing_at_all(folder):
    path = folder / "a.pth"
    path.touch()
    return path
