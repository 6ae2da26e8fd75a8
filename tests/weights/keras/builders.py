"""Keras files made by hand with h5py, as Keras 3.15 lays them out, of narrow models."""

import json
import zipfile
from collections import Counter
from pathlib import Path

import h5py
import numpy as np

from tests.weights import builders
from xception_jax.weights.keras import names as keras_names
from xception_jax.weights.keras.graph import FEATURES
from xception_jax.weights.tensors import to_library


def layer(kind, name, source=None, calls=None, **config):
    """A layer of a config; `source` names the layer before it."""
    tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": [source, 0, 0]}}
    calls = calls or ([{"args": [tensor], "kwargs": {}}] if source else [])
    return {"module": "keras.layers", "class_name": kind, "name": name,
            "config": {"name": name} | config, "inbound_nodes": calls}  # fmt: skip


def images(name="images", size=32):
    return layer("InputLayer", name, batch_shape=[None, size, size, 3])


def functional(name, layers):
    return {
        "module": "keras", "class_name": "Functional", "name": name,
        "config": {"name": name, "layers": layers, "input_layers": [[layers[0]["name"], 0, 0]],
                   "output_layers": [[layers[-1]["name"], 0, 0]]},
    }  # fmt: skip


def backbone(name="xception"):
    """The layers of a backbone, its input first."""
    found = [images("input_layer")]
    names = {}

    def add(node):
        if id(node) in names:
            return names[id(node)]
        if node.kind == "Images":
            return "input_layer"
        sources = [add(source) for source in node.inputs]
        own = f"{node.name}_{len(found)}" if node.kind == node.name else node.name
        tensors = [
            {"class_name": "__keras_tensor__", "config": {"keras_history": [source, 0, 0]}}
            for source in sources
        ]
        calls = [{"args": [tensors] if len(tensors) > 1 else tensors, "kwargs": {}}]
        found.append(layer(node.kind, own, calls=calls, **node.traits))
        names[id(node)] = own
        return own

    add(FEATURES[name]())
    return found


def chain(layers, *head):
    """Layers and others after them, each on the one before; `(kind, name, config)`."""
    layers = list(layers)
    for kind, name, config in head:
        layers.append(layer(kind, name, layers[-1]["name"], **config))
    return layers


HEAD = [
    ("GlobalAveragePooling2D", "pool", {}),
    ("Dense", "predictions", {"activation": "softmax"}),
]


def config(*head, nested=False, name="xception", before=()):
    """Of a whole model with that head, or with `HEAD`."""
    head = head or HEAD
    own = backbone(name)
    if not nested:
        return functional("model", chain(own, *head))
    outer = chain([images("outer")], *before)
    call = layer("x", "x", outer[-1]["name"])["inbound_nodes"]
    outer.append(functional("base", own) | {"inbound_nodes": call})
    return functional("model", chain(outer, *head))


def tensors(model, extra=()):
    """Of a model of ours, by the names of Keras' layers; `extra` are those of other layers."""
    held = keras_names.layers(model)
    ours = builders.arrays(model)
    found = {one.name: list(to_library(one.tensors, ours).values()) for one in held}
    return found | dict(extra)


KEYS = {"BatchNormalization": "batch_normalization", "SeparableConv2D": "separable_conv2d"}


def write_weights(file, config, held, **options):
    """Keras 3's layout, by the classes and places of the config's layers; options of h5py."""

    def write(group, layers):
        counts = Counter()
        for each in layers:
            kind = KEYS.get(each["class_name"], each["class_name"].lower())
            key = f"{kind}_{counts[kind]}" if counts[kind] else kind
            counts[kind] += 1
            if "layers" in each["config"]:
                write(group.create_group(f"layers/{key}"), each["config"]["layers"])
                continue
            own = group.create_group(f"layers/{key}/vars")
            own.attrs["name"] = each["name"]
            for i, tensor in enumerate(held.get(each["name"], ())):
                own.create_dataset(str(i), data=tensor, **options)

    write(file, config["config"]["layers"])


def write_keras(path, config, held, *, text=None, members=(), compression=zipfile.ZIP_STORED):
    """A `.keras` file.

    Args:
      path: of the file.
      config: of the model.
      held: tensors by layer name.
      text: what stands in `config.json` instead of the config.
      members: more entries, `(name, content)`.
      compression: of all entries.
    """
    weights = Path(path).with_suffix(".tmp")
    with h5py.File(weights, "w") as file:
        write_weights(file, config, held)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config) if text is None else text)
        archive.write(weights, "model.weights.h5")
        for name, content in members:
            archive.writestr(name, content)
    weights.unlink()
    return path


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(0.5, 1.5, shape).astype(np.float32) for shape in shapes]
