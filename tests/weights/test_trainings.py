"""torch's files as people pass them around: other programs' checkpoints, names and shapes.

They are made by hand, without torch; test_against_libraries.py has the libraries' own.
"""

import collections
import datetime
import decimal
import fractions
import io
import pickle
import time
import types
import uuid
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.weights import builders, pickled
from tests.weights.pickled import Call, Global
from xception_jax.errors import UsageError
from xception_jax.weights import pretrained
from xception_jax.weights.timm import pickles

NUMPY_SCALAR = Call(
    Global("numpy._core.multiarray", "scalar"),
    (Call(Global("numpy", "dtype"), ("f8", False, True)),
     Call(Global("_codecs", "encode"), ("\0" * 8, "latin1"))),
)  # fmt: skip
FLAGS = Call(Global("argparse", "Namespace"), ())
LIGHTNING = {
    "epoch": 3,
    "pytorch-lightning_version": "2.4.0",
    "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": NUMPY_SCALAR}},
    "hyper_parameters": Call(
        Global("pytorch_lightning.utilities.parsing", "AttributeDict"), ({"rate": 0.1},)
    ),
    "optimizer_states": [],
}


@pytest.fixture(scope="module")
def model():
    return builders.create("legacy_xception", 3, middle_blocks=0)


@pytest.fixture(scope="module")
def held(model, tmp_path_factory):
    """Its tensors by timm's names."""
    return load_file(builders.write_timm(model, tmp_path_factory.mktemp("a") / "a.safetensors"))


def load(path, model, name="legacy_xception"):
    source = pretrained.open_pretrained(path)
    return source.tensors(model, name), source


def check(path, model):
    """The file holds the model; gives the notes."""
    tensors, source = load(path, model)
    for name, array in builders.arrays(model).items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)
    return source.notes()


@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.", "module.", "model._orig_mod."])
def test_a_lightning_checkpoint(prefix, model, held, tmp_path):
    state, storages = pickled.state({prefix + name: array for name, array in held.items()})
    path = pickled.zipped(tmp_path / "a.ckpt", LIGHTNING | {"state_dict": state}, storages)
    assert check(path, model) == []


def test_what_else_a_lightning_module_holds_is_named(model, held, tmp_path):
    more = {f"model.{name}": array for name, array in held.items()}
    more["criterion.weight"] = np.ones(3, np.float32)
    state, storages = pickled.state(more)
    path = pickled.zipped(tmp_path / "a.ckpt", LIGHTNING | {"state_dict": state}, storages)
    with pytest.raises(UsageError, match=r"it also has criterion.weight"):
        load(path, model)
    state["conv1.weight"] = state["model.conv1.weight"]
    path = pickled.zipped(tmp_path / "a.ckpt", {"state_dict": state}, storages)
    with pytest.raises(UsageError, match=r"has conv1.weight twice"):
        load(path, model)


def test_a_training_checkpoint_of_timms(model, held, tmp_path):
    state, storages = pickled.state(held)
    whole = {"epoch": 3, "args": FLAGS, "metric": NUMPY_SCALAR, "state_dict": {"fc.bias": 3}}
    path = pickled.zipped(tmp_path / "a.pth.tar", whole | {"state_dict_ema": state}, storages)
    assert check(path, model) == ["uses the averaged weights of the checkpoint "
                                  "(state_dict_ema)"]  # fmt: skip


@pytest.mark.parametrize(
    "key",
    ["ema_state_dict", "model_ema", "params_ema", "state_dict", "model_state_dict", "model", "net",
     "params", "weights"],
)  # fmt: skip
def test_a_checkpoint_names_its_weights(key, model, held, tmp_path):
    """As in torch's tutorials and other programs, beside what else they save."""
    state, storages = pickled.state(held)
    whole = {"epoch": 3, "optimizer_state_dict": {"lr": NUMPY_SCALAR}, key: state}
    if key == "net":
        whole["model"] = {"name": "xception"}  # no tensors
    notes = check(pickled.zipped(tmp_path / "a.pth", whole, storages), model)
    averaged = [f"uses the averaged weights of the checkpoint ({key})"]
    assert notes == (averaged if "ema" in key else [])


def test_averaged_weights_come_first_and_a_note_says_which_were_taken(model, held, tmp_path):
    twice = {f"module.{name}": array for name, array in held.items()}
    other = {f"raw.{name}": array + 1 for name, array in held.items()}
    state, storages = pickled.state(twice | other | {"n_averaged": np.array(3)})
    averaged = {name: tensor for name, tensor in state.items() if not name.startswith("raw.")}
    raw = {name[4:]: tensor for name, tensor in state.items() if name.startswith("raw.")}
    whole = {"net": raw, "model_ema": averaged, "state_dict": raw}
    notes = check(pickled.zipped(tmp_path / "a.pth", whole, storages), model)
    assert notes == ["uses the averaged weights of the checkpoint (model_ema), not those of "
                     "state_dict, net"]  # fmt: skip
    whole = {"net": raw, "model_state_dict": averaged}
    notes = check(pickled.zipped(tmp_path / "a.pth", whole, storages), model)
    assert notes == ["uses the weights of model_state_dict, not those of net"]


def test_a_file_without_known_weights_lists_its_keys(held, tmp_path):
    state, storages = pickled.state(held)
    whole = {"epoch": 3, "\x1b[2J": 1, "generator": state, "a": 1, "b": 2, "c": 3}
    path = pickled.zipped(tmp_path / "a.pth", whole, storages)
    listed = r"its keys are 'epoch', '\\x1b\[2J', 'generator', 'a', 'b', \.\.\.; expected a"
    with pytest.raises(UsageError, match=listed + ".* model_state_dict"):
        pretrained.open_pretrained(path)
    for empty, keys in (({}, "its keys are none"), ([], "it is a list")):
        pickled.zipped(path, empty)
        with pytest.raises(UsageError, match=f"has no state_dict.*: {keys}"):
            pretrained.open_pretrained(path)


def _pickle(value, protocol=2):
    """What pickle writes of it, in a dict of `pickled`."""
    return pickled.Raw(pickle.dumps(value, protocol)[2:-1])


BESIDE = {
    "range": range(3), "long": 2**70, "date": datetime.date(2024, 2, 29),
    "when": datetime.datetime(2024, 2, 29, 1, tzinfo=datetime.UTC), "time": datetime.time(1),
    "took": datetime.timedelta(hours=1), "last": collections.deque([1, 2], 3),
    "price": decimal.Decimal("1.5"), "share": fractions.Fraction(1, 3), "id": uuid.UUID(int=7),
    "chain": collections.ChainMap({}), "space": types.SimpleNamespace(x=1), "rest": ...,
    "clock": time.gmtime(0), "type": int,
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_plain_values_beside_weights(name, model, held, tmp_path):
    """As pickle writes them in protocol 2, which torch.save uses: with Python 2's names."""
    state, storages = pickled.state(held)
    whole = {name: _pickle(BESIDE[name]), "state_dict": state}
    assert check(pickled.zipped(tmp_path / "a.pth", whole, storages), model) == []


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_pickle(protocol):
    data = pickle.dumps({"first": 1, "beside": BESIDE, "end": [2]}, protocol)
    held = pickles.parse(io.BytesIO(data))
    assert (held["first"], held["end"]) == (1, [2])
    assert held["beside"].keys() == BESIDE.keys()
    took = held["beside"]["took"]
    assert (took.name, took.args) == ("datetime.timedelta", (0, 3600, 0))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04cuuid\nUUID\nK\x07\x85}\x92.",  # NEWOBJ_EX
        b"\x80\x02cuuid\nUUID\nK\x07\x85\x81.",  # NEWOBJ
        b"(cuuid\nUUID\nK\x07o.",  # OBJ
        b"(K\x07iuuid\nUUID\n.",  # INST
        b"cuuid\nUUID\n(K\x07tR.",  # REDUCE
    ],
)
def test_every_call_of_pickle(data):
    found = pickles.parse(io.BytesIO(data))
    assert (found.name, found.args) == ("uuid.UUID", (7,))


@pytest.mark.parametrize("name", ["xrange", "unicode", "long", "basestring", "int"])
def test_types_of_python_2(name, model, held, tmp_path):
    state, storages = pickled.state(held)
    whole = {"args": Call(Global("__builtin__", name), (3,)), "state_dict": state}
    assert check(pickled.zipped(tmp_path / "a.pth", whole, storages), model) == []


def test_cadenes_xception(model, held, tmp_path):
    """Of pretrained-models.pytorch: an old pickle, `last_linear`, pointwise kernels of two axes."""
    theirs = {
        name.replace("fc.", "last_linear."): array[:, :, 0, 0] if "pointwise" in name else array
        for name, array in held.items()
    }
    assert theirs["block1.rep.0.pointwise.weight"].ndim == 2
    path = pickled.legacy(tmp_path / "xception-b5690688.pth", *pickled.state(theirs, (None,)))
    assert check(path, model) == ["reads Cadene's last_linear as timm's fc"]


def test_a_file_of_python_2(model, held, tmp_path):
    """Its OrderedDict comes as pairs; and parameters as they hold gradients."""
    state, storages = pickled.state(held, (None,))
    pairs = [
        [name, Call(Global("torch._utils", "_rebuild_parameter"), (tensor, True, {}))]
        for name, tensor in state.items()
    ]
    whole = Call(Global("collections", "OrderedDict"), (pairs,))
    assert check(pickled.legacy(tmp_path / "a.pth", whole, storages), model) == []


def test_one_channel_becomes_three(model, held, tmp_path):
    """A grey image has the same sums; more channels are refused by name."""
    one = held | {"conv1.weight": held["conv1.weight"].sum(1, keepdims=True)}
    save_file(one, tmp_path / "a.safetensors")
    tensors, source = load(tmp_path / "a.safetensors", model)
    assert source.notes() == ["adapted from one channel to three (in_chans=1); logits are "
                              "the same for grey images"]  # fmt: skip
    kernel = tensors["params.stem.conv1.kernel"]
    assert kernel.shape[2] == 3
    expected = one["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(kernel.sum(2, keepdims=True), expected, rtol=1e-6)
    np.testing.assert_array_equal(kernel[:, :, 0], kernel[:, :, 2])
    save_file(
        held | {"conv1.weight": np.ones((8, 4, 3, 3), np.float32)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(UsageError, match=r"conv1.weight has 4 input channels \(in_chans\)"):
        load(tmp_path / "a.safetensors", model)


def test_features_only(held, tmp_path):
    """A backbone alone: timm's `body.` of the legacy model, and flat names of the aligned ones."""
    save_file({f"body.{name}": array for name, array in held.items() if "fc" not in name},
              tmp_path / "a.safetensors")  # fmt: skip
    model = builders.create("legacy_xception", None, middle_blocks=0)
    assert load(tmp_path / "a.safetensors", model)[1].num_classes is None
    aligned = builders.create("xception41", None, middle_blocks=0)
    theirs = load_file(builders.write_timm(aligned, tmp_path / "b.safetensors"))
    flat = {
        name.replace("stem.", "stem_").replace("blocks.", "blocks_"): array
        for name, array in theirs.items()
    }
    assert "blocks_0.stack.conv1.conv_dw.weight" in flat
    save_file(flat, tmp_path / "b.safetensors")
    tensors, _ = load(tmp_path / "b.safetensors", aligned, "xception41")
    for name, array in builders.arrays(aligned).items():
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


@pytest.mark.parametrize("fault", ["constants.pkl", "byteorder", "pickle"])
def test_an_archive_that_is_refused_is_closed(fault, held, tmp_path):
    state, storages = pickled.state(held)
    more = {} if fault == "pickle" else {fault: b"big"}
    whole = pickled.Raw(b"\xff") if fault == "pickle" else state
    path = pickled.zipped(tmp_path / "a.pth", whole, storages, more=more)
    with pytest.raises(UsageError, match="cannot be read") as refused:
        pretrained.open_pretrained(path)
    opened = [file.resolve() for file in Path("/proc/self/fd").iterdir()]
    assert path not in opened, refused  # whose traceback holds on to what was open


def test_a_flipped_bit_of_an_archive_is_named(model, held, tmp_path):
    path = pickled.zipped(tmp_path / "a.pth", *pickled.state(held))
    data = bytearray(path.read_bytes())
    data[data.index(held["fc.weight"].tobytes()) + 5] ^= 4
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"a.pth is damaged: fc.weight: Bad CRC"):
        load(path, model)
