"""Files of every kind to models and back, and what is wrong with some of them.

The files of Keras' layout are made here by hand where the writer should not vouch for the reader;
test_against_libraries.py has the libraries' own.
"""

import json
import re
import zipfile

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.weights import builders
from tests.weights.keras import builders as keras_builders
from xception_jax import weights
from xception_jax.errors import UsageError
from xception_jax.weights import converted, pretrained
from xception_jax.weights.keras import files as keras_files
from xception_jax.weights.keras import names as keras_names
from xception_jax.weights.tensors import abstract
from xception_jax.weights.timm import names as timm_names

TIMM = {
    "legacy_xception": {},
    "inception_v3": {"bn_scale": True, "count_padding": True},
    "xception41": {},
    "xception41p": {},
}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)


@pytest.mark.parametrize(("classes", "ending"), [(3, ".weights.h5"), (None, ".h5")])
@pytest.mark.parametrize("name", ["xception", "inception_v3"])
def test_keras_files_load_as_they_were_written(name, classes, ending, tmp_path):
    model = builders.create(name, classes)
    path = builders.write_keras(model, tmp_path / f"a{ending}")
    other = builders.create(name, classes, seed=1)
    weights.load(other, path)
    assert_same(builders.arrays(model), builders.arrays(other))


@pytest.mark.parametrize("name", TIMM)
def test_timm_files_load_as_they_were_written(name, tmp_path):
    model = builders.create(name, **TIMM[name])
    path = builders.write_timm(model, tmp_path / "a.safetensors")
    other = builders.create(name, seed=1, **TIMM[name])
    weights.load(other, path)
    assert_same(builders.arrays(model), builders.arrays(other))


def test_a_model_without_a_head_takes_the_rest(tmp_path):
    model = builders.create("xception")
    other = builders.create("xception", None, seed=1)
    weights.load(other, builders.write_keras(model, tmp_path / "a.h5"))
    rest = {n: a for n, a in builders.arrays(model).items() if not n.startswith("params.head")}
    assert_same(rest, builders.arrays(other))


def test_an_old_file_of_other_made_up_names_goes_by_place(tmp_path):
    """Keras 2 wrote all layers, those without weights too, and numbered on from what was there."""
    model, path = builders.create("xception"), tmp_path / "old.h5"
    found = keras_files.read(builders.write_keras(model, tmp_path / "new.weights.h5")).tensors
    with h5py.File(path, "w") as file:
        names = ["input_1"]
        for i, layer in enumerate(keras_names.layers(model)):
            name = layer.name if layer.given else f"{layer.key.rstrip('_0123456789')}_{500 - i}"
            names += [name, f"{name}_act"]
            file.create_group(name).attrs["weight_names"] = [
                f"{name}_1/x{j}:0".encode() for j in range(len(layer.tensors))
            ]
            for j, tensor in enumerate(layer.tensors):
                file[name][f"{name}_1/x{j}:0"] = found[tensor.library_name]
        for name in names:
            if name not in file:
                file.create_group(name).attrs["weight_names"] = []
        file.attrs["layer_names"] = [name.encode() for name in names]
    other = builders.create("xception", seed=1)
    weights.load(other, path)
    assert_same(builders.arrays(model), builders.arrays(other))


def test_inceptions_layers_are_where_keras_has_them():
    """The first module's, as Keras 3.15 lists `InceptionV3().layers`: deepest branch first."""
    names = [layer.name for layer in keras_names.layers(abstract("inception_v3", None, {}))]
    convs = [name for name in names if name.startswith("conv2d")][5:12]
    assert convs == [f"conv2d_{i}" for i in (8, 6, 9, 5, 7, 10, 11)]


def test_names_of_timm():
    model = abstract("xception41p", 3, {})
    names = {tensor.library_name: tensor.library_shape for tensor in timm_names.tensor_map(model)}
    assert names["stem.1.weight"] == (64, 32, 3, 3)
    assert names["blocks.0.stack.conv1.conv_dw.weight"] == (64, 1, 3, 3)
    assert names["blocks.0.shortcut.weight"] == (128, 64, 1, 1)
    assert names["head.fc.weight"] == (3, 2048)


def test_a_checkpoint_of_a_torch_training_is_unwrapped(tmp_path):
    torch = pytest.importorskip("torch")
    model = builders.create("legacy_xception")
    state = load_file(builders.write_timm(model, tmp_path / "a.safetensors"))
    state = {f"module.{name}": torch.from_numpy(array) for name, array in state.items()}
    torch.save({"state_dict_ema": state, "state_dict": {}, "epoch": 3}, tmp_path / "b.pth")
    other = builders.create("legacy_xception", seed=1)
    weights.load(other, tmp_path / "b.pth")
    assert_same(builders.arrays(model), builders.arrays(other))


class Evil:
    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (pathlib.Path("executed"),)


def test_a_pickle_that_would_run_code_does_not(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.bias": torch.zeros(3), "evil": Evil()}, "evil.pth")
    with pytest.raises(UsageError, match="no code in it was run"):
        pretrained.open_pretrained(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


def _timm(tmp_path):
    model = builders.create("legacy_xception")
    path = builders.write_timm(model, tmp_path / "a.safetensors")
    return model, path, load_file(path)


def test_a_missing_a_surplus_and_a_misshaped_tensor_are_named(tmp_path):
    model, path, held = _timm(tmp_path)
    for change, said in (
        ({"bn1.bias": None, "bn2.bias": None}, "lacks bn1.bias (here params.stem.bn1.bias) and 1 "
         "more"),
        ({"more": np.zeros(2, np.float32)}, "it also has more"),
        ({"conv1.weight": np.zeros((8, 3, 5, 5), np.float32)},
         "conv1.weight is [8, 3, 5, 5], not [8, 3, 3, 3]"),
        ({"bn1.bias": np.zeros(8, np.int32)}, "bn1.bias is int32; weights can be bfloat16"),
        ({"bn1.bias": np.full(8, np.nan, np.float32)}, "bn1.bias is not finite"),
        ({"bn1.bias": np.full(8, 1e300)}, "bn1.bias is not finite in float32"),
    ):  # fmt: skip
        changed = {name: array for name, array in (held | change).items() if array is not None}
        save_file(changed, path)
        with pytest.raises(UsageError, match=re.escape(said)):
            weights.load(model, path)


def test_a_truncated_file_is_damaged(tmp_path):
    model = builders.create("xception")
    builders.write_keras(model, tmp_path / "a.h5")
    builders.write_keras(model, tmp_path / "model.weights.h5")
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(keras_builders.config()))
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
    weights.load(builders.create("xception", seed=1), tmp_path / "a.keras")
    _, path, _ = _timm(tmp_path)
    for file in (tmp_path / "a.h5", tmp_path / "a.keras", path):
        file.write_bytes(file.read_bytes()[:-2000])
        with pytest.raises(UsageError, match="damaged"):
            weights.load(model, file)


def test_layers_that_have_changed_places_are_named(tmp_path):
    model, path = builders.create("xception"), tmp_path / "a.h5"
    builders.write_keras(model, path)
    with h5py.File(path, "a") as file:
        names = list(file.attrs["layer_names"])
        i, j = (names.index(f"block{n}_sepconv1") for n in (5, 6))
        names[i], names[j] = names[j], names[i]
        file.attrs["layer_names"] = names
    with pytest.raises(UsageError, match="expected layer block5_sepconv1, got block6_sepconv1"):
        weights.load(model, path)


def test_weights_for_another_epsilon_or_padding_are_refused(tmp_path):
    _, path, _ = _timm(tmp_path)
    with pytest.raises(UsageError, match="bn_epsilon=1e-05, but this one"):
        weights.load(builders.create("xception"), path)
    with pytest.raises(UsageError, match="pool_padding='symmetric', but this one has 'same'"):
        weights.load(builders.create("xception", bn_epsilon=1e-5), path)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ('{"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}',
         ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ('{"mean": 0.25, "std": [0.125]}', ((0.25,) * 3, (0.125,) * 3)),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1]}', ((0, 0, 0), (1, 1, 1))),
        ('{"mean": 0, "std": 1}', ((0, 0, 0), (1, 1, 1))),
        ("{}", ((0.5,) * 3, (0.5,) * 3)),
        ('{"mean": [0.5, 0.5]}', "mean is (0.5, 0.5); it takes 3 numbers"),
        ('{"std": 0}', "std is (0, 0, 0); it takes at least 0.001"),
        ('{"mean": "0.5"}', "it takes numbers"),
        ('{"mean": true}', "it takes numbers"),
        ('{"std": {"r": 1}}', "it takes"),
    ],
)  # fmt: skip
def test_a_config_beside_the_file_says_how_pixels_are_scaled(said, found, tmp_path):
    _, path, _ = _timm(tmp_path)
    (tmp_path / "config.json").write_text(f'{{"pretrained_cfg": {said}}}')
    if isinstance(found, str):
        with pytest.raises(UsageError, match=re.escape(found)):
            pretrained.open_pretrained(path)
        return
    source = pretrained.open_pretrained(path)
    assert (source.mean, source.std) == found
    about = source.about("legacy_xception").preprocessing
    assert ("range" in about) == (found == ((0.5,) * 3, (0.5,) * 3))


def test_a_converted_file_says_what_it_holds_and_a_flipped_bit_shows(tmp_path):
    model, path = builders.create("xception", bn_epsilon=1e-4), tmp_path / "a.safetensors"
    about = converted.About("xception", {"bn_epsilon": 1e-4, "fc_units": ()}, 3, ("a", "b", "c"))
    converted.write(path, about, builders.arrays(model))
    assert converted.read_about(path) == about
    other = builders.create("xception", seed=1, bn_epsilon=1e-4)
    weights.load(other, path)
    assert_same(builders.arrays(model), builders.arrays(other))
    whole = path.read_bytes()
    for place in (-5, whole.index(b"0.0001"), whole.index(b"class_names") + 20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place:][1:])
        with pytest.raises(UsageError, match="damaged"):
            pretrained.open_pretrained(path).read()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("exif", "on", "exif is neither true nor false"),
        ("exif", 1, "exif is neither true nor false"),
        ("exif", None, "exif is null"),
        ("image_size", None, "image_size is null"),
        ("image_size", 0, "data.image_size is 0; it takes at least 1"),
        ("eval_crop", 2.0, "data.eval_crop is 2.0; it takes"),
        ("eval_preset", "tim", "data.eval_preset is 'tim'; did you mean 'timm'?"),
    ],
)
def test_a_header_says_how_images_were_made_or_is_damaged(name, value, said, tmp_path):
    path = tmp_path / "a.safetensors"
    for right in (True, False):
        made_for = {"image_size": 96, "eval_preset": "area", "eval_crop": 0.9, "exif": right}
        converted.write(path, converted.About("xception", {}, None, None, made_for), {})
        assert converted.read_about(path).preprocessing == made_for
    made_for[name] = value
    converted.write(path, converted.About("xception", {}, None, None, made_for), {})
    with pytest.raises(UsageError, match=re.escape(f"{path} is damaged: its header: {said}")):
        converted.read_about(path)


def test_what_is_no_file_of_weights_is_said(tmp_path):
    for name, said in (("a.h5", "there are no weights"), ("b.txt", "expected a name that ends in"),
                       ("run", "has no config.json")):  # fmt: skip
        if name == "run":
            (tmp_path / name).mkdir()
        elif name == "b.txt":
            (tmp_path / name).touch()
        with pytest.raises(UsageError, match=said):
            pretrained.open_pretrained(tmp_path / name)
    with pytest.raises(UsageError, match=r"is not a keras file; .* suggest timm"):
        pretrained.open_pretrained(_timm(tmp_path)[1], format="keras")
