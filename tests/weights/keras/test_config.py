"""Keras files that say how their layers are connected: what is taken, folded and refused.

The files are made by hand; test_keras_heads.py has Keras' own.
"""

import copy
import json
import re

import h5py
import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import builders
from tests.weights.keras import builders as keras_builders
from tests.weights.keras.builders import HEAD, config, drawn, write_keras
from xception_jax import weights
from xception_jax.errors import UsageError
from xception_jax.weights import converted, pretrained
from xception_jax.weights.keras import files as keras_files

CHANNELS = 104  # of the narrow model's features


@pytest.fixture(scope="module")
def model():
    return builders.create("xception", stem_stride=2)


@pytest.fixture(scope="module")
def held(model):
    return keras_builders.tensors(model)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)


def read(path):
    """A model of ours with the weights of a file."""
    source = pretrained.open_pretrained(path)
    source.check_head()
    built = builders.SMALL | {"stem_stride": 2} | source.overrides("xception")
    other = builders.create("xception", source.num_classes, seed=1, **built)
    weights.load(other, path)
    return other, source


@pytest.mark.parametrize(("name", "nested"), [("xception", True), ("inception_v3", False)])
def test_a_config_leads_to_the_weights(name, nested, tmp_path):
    model = builders.create(name)
    path = write_keras(tmp_path / "a.keras", config(name=name, nested=nested),
                       keras_builders.tensors(model))  # fmt: skip
    source = pretrained.open_pretrained(path)
    found = source.tensors(model, name)
    for key, array in builders.arrays(model).items():
        np.testing.assert_array_equal(array, found[key], err_msg=key)
    assert source.activation == "softmax"
    assert source.preprocessing["image_size"] == 32


REFUSED = [
    (("Flatten", "flat", {}), "has the Flatten layer 'flat' in its head"),
    (("AveragePooling2D", "pool2", {}), "has the AveragePooling2D layer 'pool2' in its head"),
    (("Mystery", "m", {}), "has the Mystery layer 'm' in its head"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_head_of_another_kind_is_refused_and_its_backbone_taken(change, said, held, tmp_path):
    path = write_keras(tmp_path / "a.keras", config(change, *HEAD), held)
    with pytest.raises(UsageError, match=re.escape(f"{path} {said}")):
        pretrained.open_pretrained(path).check_head()
    source = pretrained.open_pretrained(path)
    assert source.num_classes is None
    assert [note for note in source.notes() if said in note and "its head is not loaded" in note]
    headless = builders.create("xception", None, seed=1, stem_stride=2)
    weights.load(headless, path)
    with pytest.raises(UsageError, match=re.escape(said)):
        weights.load(builders.create("xception", stem_stride=2), path)


@pytest.mark.parametrize(
    ("name", "trait", "value"),
    [("block3_pool", "padding", "valid"), ("block5_sepconv2", "activation", "relu"),
     ("block1_conv1", "strides", [1, 1]), ("block2_sepconv1_bn", "axis", 1)],
)  # fmt: skip
def test_a_backbone_that_was_changed_is_refused_by_the_layer(name, trait, value, held, tmp_path):
    changed = config()
    [layer] = [
        x
        for x in changed["config"]["layers"]
        if x["name"] == name or (name == "block3_pool" and x["name"].startswith("MaxP"))
    ][:1]
    layer["config"][trait] = value
    path = write_keras(tmp_path / "a.keras", changed, held)
    with pytest.raises(UsageError, match=rf"{layer['name']}' has {trait} .*, not"):
        pretrained.open_pretrained(path)


def test_maximum_pooling_is_the_models_own(model, held, tmp_path):
    head = [("GlobalMaxPooling2D", "pool", {}), HEAD[1]]
    other, source = read(write_keras(tmp_path / "a.keras", config(*head, nested=True), held))
    assert source.overrides("xception")["pooling"] == "max"
    [features] = drawn((2, 3, 3, CHANNELS))
    np.testing.assert_array_equal(other.pool(jnp.asarray(features)), features.max((1, 2)))
    np.testing.assert_allclose(model.pool(jnp.asarray(features)), features.mean((1, 2)), rtol=1e-5)
    with pytest.raises(UsageError, match="pooling='max', but this one has 'average'"):
        weights.load(model, tmp_path / "a.keras")


def test_batch_normalization_of_a_head_is_folded(held, tmp_path):
    wide = drawn((CHANNELS, 6), (6,), seed=1)
    norms = {name: drawn(*[(n,)] * 4, seed=i) for i, (name, n) in
             enumerate((("n1", CHANNELS), ("n2", 6), ("n3", 6)))}  # fmt: skip
    wide[0] -= 1
    head = [
        ("GlobalAveragePooling2D", "pool", {}), ("BatchNormalization", "n1", {"epsilon": 0.1}),
        ("Dropout", "drop", {}), ("Dense", "wide", {"activation": None}),
        ("BatchNormalization", "n2", {}), ("ReLU", "relu", {}), ("BatchNormalization", "n3", {}),
        ("Dense", "last", {"activation": "sigmoid"}),
    ]  # fmt: skip
    last = drawn((6, 2), (2,), seed=2)
    path = write_keras(tmp_path / "a.keras", config(*head),
                       held | norms | {"wide": wide, "last": last})  # fmt: skip
    other, source = read(path)
    assert (source.activation, source.overrides("xception")["fc_units"]) == ("sigmoid", (6,))

    def norm(x, name, epsilon=1e-3):
        gamma, beta, mean, variance = norms[name]
        return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta

    [pooled] = drawn((2, CHANNELS), seed=9)
    x = norm(pooled, "n1", 0.1)
    x = norm(np.maximum(norm(x @ wide[0] + wide[1], "n2"), 0), "n3")
    np.testing.assert_allclose(
        other.classify(jnp.asarray(pooled)), x @ last[0] + last[1], rtol=1e-4
    )


def test_scaling_inside_the_model_is_folded(model, held, pictures, tmp_path):
    before = [("Rescaling", "scale", {"scale": 1 / 255, "offset": 0}),
              ("Normalization", "norm", {"axis": -1, "mean": [0.4, 0.5, 0.6],
                                         "variance": [0.04, 0.05, 0.06]})]  # fmt: skip
    path = write_keras(tmp_path / "a.keras", config(nested=True, before=before), held)
    other, source = read(path)
    seen = ((pictures + 1) / 2 - [0.4, 0.5, 0.6]) / np.sqrt([0.04, 0.05, 0.06])
    np.testing.assert_allclose(
        other.stem(jnp.asarray(pictures)),
        model.stem(jnp.asarray(seen, jnp.float32)),
        rtol=1e-4,
        atol=1e-5,
    )
    assert "another range" in "".join(source.notes())
    before = [("Rescaling", "scale", {"scale": 1 / 127.5, "offset": -1})]
    path = write_keras(tmp_path / "b.keras", config(nested=True, before=before), held)
    other, source = read(path)
    np.testing.assert_array_equal(other.stem.conv1.kernel, model.stem.conv1.kernel)
    assert source.notes() == []


@pytest.mark.parametrize("kind", ["Resizing", "CenterCrop", "Lambda", "RandomCrop"])
def test_what_does_more_than_scale_images_is_named(kind, held, tmp_path):
    changed = config(nested=True, before=[(kind, "early", {})])
    path = write_keras(tmp_path / "a.keras", changed, held)
    with pytest.raises(UsageError, match=f"has the {kind} layer 'early' before the backbone"):
        pretrained.open_pretrained(path).check_head()


@pytest.mark.parametrize("kind", ["TrueDivide", "Divide"])
@pytest.mark.parametrize("told", [True, False], ids=[".keras", ".h5"])
def test_pixels_are_divided_by_an_operation(kind, told, held, tmp_path):
    """The config in an .h5 file leaves the modules of operations out."""
    changed = config(nested=True, before=[(kind, "by", {}), ("Subtract", "less", {})])
    for layer, number in zip(changed["config"]["layers"][1:3], (127.5, 1.0), strict=True):
        layer["module"] = "keras.src.ops.numpy"
        if not told:
            del layer["module"]
        layer["inbound_nodes"][0]["args"].append(number)
    found = keras_files.read(write_keras(tmp_path / "a.keras", changed, held))
    np.testing.assert_array_equal(found.tensors["block1_conv1/0"], held["block1_conv1"][0])
    assert (found.problem, found.notes) == (None, [])


def test_one_sigmoid_unit_keeps_its_activation(model, held, tmp_path):
    head = [HEAD[0], ("Dense", "last", {"activation": "sigmoid"})]
    one = {"last": drawn((CHANNELS, 1), (1,))}
    path = write_keras(tmp_path / "a.keras", config(*head), held | one)
    assert pretrained.open_pretrained(path).about("xception").activation == "sigmoid"
    about = converted.About("xception", {}, 1, activation="sigmoid")
    converted.write(tmp_path / "b.safetensors", about, builders.arrays(model))
    assert pretrained.open_pretrained(tmp_path / "b.safetensors").activation == "sigmoid"


def test_weights_alone_say_what_was_assumed(model, held, tmp_path):
    path = builders.write_keras(model, tmp_path / "a.weights.h5")
    [note] = pretrained.open_pretrained(path).notes()
    assert note.endswith("assumed: images scaled to [-1, 1], average pooling, softmax")
    with h5py.File(tmp_path / "b.weights.h5", "w") as file:
        own = config(HEAD[0], ("Dense", "mine", {}), nested=True)
        keras_builders.write_weights(file, own, held | {"mine": held["predictions"]})
    source = pretrained.open_pretrained(tmp_path / "b.weights.h5")
    assert (source.num_classes, source.activation) == (3, None)
    weights.load(builders.create("xception", seed=1, stem_stride=2), tmp_path / "b.weights.h5")
    with h5py.File(tmp_path / "c.weights.h5", "w") as file:
        keras_builders.write_weights(file, own, held | {"mine": held["predictions"]})
        file.create_group("layers/global_max_pooling2d/vars")
    source = pretrained.open_pretrained(tmp_path / "c.weights.h5")
    with pytest.raises(
        UsageError, match="'global_max_pooling2d', which cannot be read from weights"
    ):
        source.check_head()


def test_a_layer_in_the_place_of_another_is_noticed(held, tmp_path):
    changed = config()
    path = write_keras(tmp_path / "a.keras", changed, held)
    swapped = copy.deepcopy(changed)
    layers = swapped["config"]["layers"]
    one, two = (next(x for x in layers if x["name"] == f"block{n}_sepconv1") for n in (5, 6))
    one["name"], two["name"] = two["name"], one["name"]
    path = write_keras(tmp_path / "a.keras", swapped, held, text=json.dumps(changed))
    with pytest.raises(UsageError, match="has the weights of 'block6_sepconv1' where its config"):
        keras_files.read(path)


def test_a_model_that_takes_two_images_is_refused(held, tmp_path):
    changed = config()
    changed["config"]["input_layers"].append(["other", 0, 0])
    path = write_keras(tmp_path / "a.keras", changed, held)
    with pytest.raises(UsageError, match="has several inputs in the model 'model'"):
        pretrained.open_pretrained(path)


def test_layers_of_a_whole_model_of_keras_2(model, held, tmp_path):
    """Inbound nodes as lists, in the attribute `model_config` of the older layout."""
    own = config(nested=True, before=[("Rescaling", "scale", {"scale": 1 / 127.5, "offset": -1})])

    def older(value):
        if isinstance(value, dict) and "inbound_nodes" in value:
            names = re.findall(r'"keras_history": \["(\w+)"', json.dumps(value["inbound_nodes"]))
            value = value | {"inbound_nodes": [[[name, 0, 0, {}] for name in names]]}
            value["inbound_nodes"] = value["inbound_nodes"] if names else []
        if isinstance(value, dict):
            return {key: older(part) if key != "inbound_nodes" else part
                    for key, part in value.items()}  # fmt: skip
        return [older(part) for part in value] if isinstance(value, list) else value

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(older(own))
        group = file.create_group("model_weights")
        inner = next(x for x in own["config"]["layers"] if x["name"] == "base")["config"]["layers"]
        group.attrs["layer_names"] = [x["name"].encode() for x in own["config"]["layers"]]
        for outer in own["config"]["layers"]:
            names = [x["name"] for x in inner] if outer["name"] == "base" else [outer["name"]]
            pairs = [
                (f"{name}/{part}:0", tensor)
                for name in names
                for part, tensor in zip(parts_of(held.get(name, ())), held.get(name, ()),
                                        strict=True)
            ]  # fmt: skip
            # Trained tensors first, then those that are not.
            pairs.sort(key=lambda pair: "moving" in pair[0])
            made = group.create_group(outer["name"])
            made.attrs["weight_names"] = [name.encode() for name, _ in pairs]
            for name, tensor in pairs:
                made[name] = tensor
    other, _ = read(tmp_path / "a.h5")
    for key, array in builders.arrays(model).items():
        np.testing.assert_array_equal(array, builders.arrays(other)[key], err_msg=key)


def parts_of(tensors):
    ranks = tuple(tensor.ndim for tensor in tensors)
    return {
        (): [], (4,): ["kernel"], (4, 4): ["depthwise_kernel", "pointwise_kernel"],
        (2, 1): ["kernel", "bias"], (1,) * 4: ["gamma", "beta", "moving_mean", "moving_variance"],
    }[ranks]  # fmt: skip
