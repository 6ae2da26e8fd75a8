"""Layers of a config that compute something else than their class says: each refused by name.

The files are made by hand; test_keras_heads.py has Keras' own.
"""

import re

import h5py
import numpy as np
import pytest

from tests.weights import builders
from tests.weights.keras import builders as keras_builders
from tests.weights.keras.builders import HEAD, config, drawn, write_keras
from xception_jax import weights
from xception_jax.errors import UsageError
from xception_jax.weights import pretrained
from xception_jax.weights.keras import files as keras_files

CHANNELS = 104  # of the narrow model's features
MASK = {"class_name": "__numpy__", "config": {"value": [True], "dtype": "bool"}}
QUANTIZED = {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8"}}


@pytest.fixture(scope="module")
def held():
    return keras_builders.tensors(builders.create("xception", stem_stride=2))


def layers(config):
    """All layers of a config, those of nested models too."""
    for layer in config["config"]["layers"]:
        yield layer
        if "layers" in layer["config"]:
            yield from layers(layer)


def called(config, name, *args, **kwargs):
    """The config with a layer that is called with more than its tensor."""
    [layer] = [each for each in layers(config) if each["name"] == name]
    [call] = layer["inbound_nodes"]
    call["args"] += args
    call["kwargs"] |= kwargs
    return config


DROPPED = [HEAD[0], ("Dropout", "drop", {}), HEAD[1]]


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [((), {"training": True}, "training=True"), ((True,), {}, "True as an extra argument"),
     ((), {"mask": MASK}, "mask=a structured value"), ((), {"mystery": 3}, "mystery=3")],
)  # fmt: skip
def test_an_unusual_call_is_refused_by_the_layer(args, kwargs, said, held, tmp_path):
    for name, nested in (("block5_sepconv2_bn", False), ("base", True)):
        changed = called(config(*DROPPED, nested=nested), name, *args, **kwargs)
        path = write_keras(tmp_path / "a.keras", changed, held)
        with pytest.raises(UsageError, match=f"{name}.* is called with {re.escape(said)}"):
            pretrained.open_pretrained(path)
    path = write_keras(
        tmp_path / "a.keras", called(config(*DROPPED), "drop", *args, **kwargs), held
    )
    with pytest.raises(
        UsageError, match=f"'drop' in its head, which is called with {re.escape(said)}"
    ):
        pretrained.open_pretrained(path).check_head()
    before = config(*DROPPED, nested=True, before=[("GaussianNoise", "noise", {})])
    path = write_keras(tmp_path / "a.keras", called(before, "noise", *args, **kwargs), held)
    with pytest.raises(UsageError, match="'noise' before the backbone, which is called with"):
        pretrained.open_pretrained(path)


def test_a_usual_call_is_read(held, tmp_path):
    changed = called(config(*DROPPED, nested=True), "base", training=False, mask=None)
    changed = called(changed, "drop", None, training=False)
    pretrained.open_pretrained(write_keras(tmp_path / "a.keras", changed, held)).check_head()


def test_the_default_of_augmentation_is_no_unusual_call(held, tmp_path):
    """Keras 3 writes `training=True` into each of its augmentation layers' calls."""
    changed = config(*DROPPED, nested=True, before=[("RandomFlip", "flip", {})])
    path = write_keras(tmp_path / "a.keras", called(changed, "flip", training=True), held)
    pretrained.open_pretrained(path).check_head()
    [flip] = [each for each in layers(changed) if each["name"] == "flip"]
    flip["inbound_nodes"] = [[["outer", 0, 0, {"training": True}]]]
    with pytest.raises(UsageError, match="'flip' before the backbone, which is called with"):
        pretrained.open_pretrained(write_keras(tmp_path / "b.keras", changed, held))


def test_a_call_of_keras_2_is_refused_too(held, tmp_path):
    changed = config(*DROPPED)
    [drop] = [each for each in layers(changed) if each["name"] == "drop"]
    drop["inbound_nodes"] = [[["pool", 0, 0, {"training": True}]]]
    path = write_keras(tmp_path / "a.keras", changed, held)
    with pytest.raises(UsageError, match="'drop' in its head, which is called with training=True"):
        pretrained.open_pretrained(path).check_head()
    drop["inbound_nodes"] = [[["pool", 0, 0, {"training": False}]]]
    pretrained.open_pretrained(write_keras(tmp_path / "b.keras", changed, held)).check_head()


@pytest.mark.parametrize("kind", ["Conv2D", "SeparableConv2D", "DepthwiseConv2D", "Dense"])
def test_weights_before_the_backbone_are_refused_by_name(kind, held, tmp_path):
    own = {"activation": "linear", "kernel_size": [3, 3], "padding": "same"}
    changed = config(nested=True, before=[(kind, "colours", own)])
    path = write_keras(tmp_path / "a.keras", changed, held)
    with pytest.raises(UsageError, match=f"has the {kind} layer 'colours' before the backbone"):
        pretrained.open_pretrained(path)


def relu(**own):
    return {"module": "keras.layers", "class_name": "ReLU", "config": {"name": "r"} | own}


@pytest.mark.parametrize(
    ("activation", "said"),
    [(relu(max_value=6.0), "ReLU(max_value=6.0)"),
     (relu(negative_slope=0.1, max_value=None), "ReLU(negative_slope=0.1)"),
     (relu(threshold=0.5), "ReLU(threshold=0.5)"),
     ({"class_name": "LeakyReLU", "config": {}}, "keras LeakyReLU"),
     ({"class_name": "Softmax", "config": {"axis": 0}}, "keras Softmax"),
     ({"module": "mine", "class_name": "ReLU", "config": {}}, "object of class ReLU"),
     ({"module": "mine", "class_name": "function", "config": "relu"}, "mine.relu"),
     ({"module": "builtins", "class_name": "function", "config": "my>relu"}, "my>relu"),
     ({"value": ["4wEA", None, None]}, "object of class None")],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["Dense", "Activation"])
def test_an_activation_is_what_its_whole_config_says(kind, activation, said, held, tmp_path):
    head = [HEAD[0], ("Dense", "wide", {"activation": activation if kind == "Dense" else None}),
            ("Activation", "act", {"activation": activation if kind != "Dense" else None}),
            HEAD[1]]  # fmt: skip
    wide = {"wide": drawn((CHANNELS, CHANNELS), (CHANNELS,))}
    path = write_keras(tmp_path / "a.keras", config(*head), held | wide)
    with pytest.raises(UsageError, match=re.escape(f"has the activation {said!r} in the {kind}")):
        pretrained.open_pretrained(path).check_head()


@pytest.mark.parametrize(
    "activation",
    ["relu", relu(), relu(max_value=None, negative_slope=0.0, threshold=0),
     {"class_name": "function", "config": "relu"},
     {"module": "builtins", "class_name": "function", "config": "relu",
      "registered_name": "function"}],
)  # fmt: skip
def test_a_plain_relu_is_read_however_it_is_written(activation, held, tmp_path):
    head = [HEAD[0], ("Dense", "wide", {"activation": activation}), HEAD[1]]
    wide = {"wide": drawn((CHANNELS, CHANNELS), (CHANNELS,))}
    source = pretrained.open_pretrained(
        write_keras(tmp_path / "a.keras", config(*head), held | wide)
    )
    source.check_head()
    assert source.overrides("xception")["fc_units"] == (CHANNELS,)


@pytest.mark.parametrize(
    ("head", "said"),
    [([(HEAD[0][0], "pool", {"data_format": "channels_first"}), HEAD[1]],
      "has the GlobalAveragePooling2D layer 'pool' in its head"),
     ([HEAD[0], ("Dense", "predictions", {"use_bias": False})], "but use_bias=False"),
     ([HEAD[0], ("Dense", "predictions", {"dtype": QUANTIZED})],
      "'predictions' in its head, which has a dtype policy of class QuantizedDTypePolicy"),
     ([HEAD[0], ("Dropout", "drop", {"dtype": "int8"}), HEAD[1]], "which computes in int8")],
)  # fmt: skip
def test_a_head_that_computes_otherwise_is_refused(head, said, held, tmp_path):
    path = write_keras(tmp_path / "a.keras", config(*head), held)
    with pytest.raises(UsageError, match=re.escape(said)):
        pretrained.open_pretrained(path).check_head()


def test_half_precision_is_read(held, tmp_path):
    policy = {"class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}
    head = [HEAD[0], ("Dense", "predictions", {"dtype": policy, "activation": "softmax"})]
    pretrained.open_pretrained(write_keras(tmp_path / "a.keras", config(*head), held)).check_head()


def test_a_model_of_two_outputs_is_refused_by_name(held, tmp_path):
    changed = config()
    changed["config"]["output_layers"].append(["pool", 0, 0])
    path = write_keras(tmp_path / "a.keras", changed, held)
    with pytest.raises(UsageError, match="has 2 outputs in the model 'model'; expected one"):
        pretrained.open_pretrained(path)


def test_what_changes_the_images_is_refused_without_a_head_too(held, tmp_path):
    """Else the backbone would see other images than the file's."""
    headless = builders.create("xception", None, seed=1, stem_stride=2)
    for kind, own in (("Rescaling", {"scale": 0.5}), ("Resizing", {}), ("Conv2D", {})):
        changed = config(nested=True, before=[(kind, "early", own)])
        path = write_keras(tmp_path / "a.keras", changed, held)
        with pytest.raises(UsageError, match=f"{kind} layer 'early'"):
            weights.load(headless, path)


def test_scaling_is_folded_where_the_head_is_left_out(held, tmp_path):
    """The same backbone with and without a head that our models cannot express."""
    before = [("Rescaling", "scale", {"scale": 1 / 255})]
    found = []
    for i, head in enumerate((HEAD, [("Flatten", "flat", {}), HEAD[1]])):
        path = write_keras(tmp_path / f"{i}.keras", config(*head, nested=True, before=before), held)
        found.append(keras_files.read(path))
    whole, headless = found
    assert (whole.problem, headless.dense) == (None, [])
    assert "Flatten" in headless.problem
    for name in ("block1_conv1/0", "block1_conv1_bn/2"):
        np.testing.assert_array_equal(headless.tensors[name], whole.tensors[name], err_msg=name)
    np.testing.assert_allclose(headless.tensors["block1_conv1/0"], held["block1_conv1"][0] / 2)


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1), (1, 2)])
@pytest.mark.parametrize("kind", ["Multiply", "TFOpLambda", "Rescaling"])
def test_numbers_that_are_no_channels_are_refused(kind, shape, held, tmp_path):
    numbers = np.full(shape, 2.0).tolist()
    own = {"scale": numbers, "function": "math.multiply"}
    changed = config(nested=True, before=[(kind, "early", own)])
    if kind == "Multiply":
        array = {"class_name": "__numpy__", "config": {"value": numbers, "dtype": "float32"}}
        changed = called(changed, "early", array)
        [early] = [each for each in layers(changed) if each["name"] == "early"]
        early["module"] = "keras.src.ops.numpy"
    if kind == "TFOpLambda":
        [early] = [each for each in layers(changed) if each["name"] == "early"]
        early["inbound_nodes"] = [[["outer", 0, 0, {"y": numbers, "name": None}]]]
    path = write_keras(tmp_path / "a.keras", changed, held)
    with pytest.raises(UsageError, match=f"has the {kind} layer 'early'"):
        pretrained.open_pretrained(path)


def test_channels_are_read_from_any_array_with_one_axis(held, tmp_path):
    array = {"class_name": "__numpy__", "config": {"value": [[[[2.0, 1.0, 0.5]]]]}}
    changed = config(nested=True, before=[("Rescaling", "to", {"scale": 1 / 255}),
                                          ("Multiply", "early", {})])  # fmt: skip
    changed = called(changed, "early", array)
    [early] = [each for each in layers(changed) if each["name"] == "early"]
    early["module"] = "keras.src.ops.numpy"
    path = write_keras(tmp_path / "a.keras", changed, held)
    found = keras_files.read(path).tensors["block1_conv1/0"]
    expected = held["block1_conv1"][0] * np.array([1, 0.5, 0.25], np.float32)[:, None]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_weights_alone_that_change_the_images_are_refused_without_a_head_too(held, tmp_path):
    headless = builders.create("xception", None, seed=1, stem_stride=2)
    norm = {"early": drawn(*[(3,)] * 4)}
    for kind, own in (("Rescaling", {}), ("Conv2D", {"early": drawn((3, 3, 1, 3), (3,))}),
                      ("BatchNormalization", norm)):  # fmt: skip
        changed = config(nested=True, before=[(kind, "early", {})])
        with h5py.File(tmp_path / "a.weights.h5", "w") as file:
            keras_builders.write_weights(file, changed, held | own)
        with pytest.raises(UsageError, match="'early', which cannot be read from weights without"):
            weights.load(headless, tmp_path / "a.weights.h5")


def test_weights_alone_with_another_head_give_the_backbone(held, tmp_path):
    headless = builders.create("xception", None, seed=1, stem_stride=2)
    changed = config(("BatchNormalization", "late", {}), HEAD[1], nested=True)
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        keras_builders.write_weights(file, changed, held | {"late": drawn(*[(CHANNELS,)] * 4)})
    with pytest.raises(UsageError, match="'late', which cannot be read from weights without"):
        pretrained.open_pretrained(path).check_head()
    weights.load(headless, path)
