"""Reads the config of a Keras model: the layers before the backbone, the backbone, and the head.

The config is data: no part of it is executed, and no class is looked up. An unknown layer is
refused by name. In the head it is only reported, in `ParsedModel.problem`: heads can be replaced.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from xception_jax.weights.files import Refused
from xception_jax.weights.keras.calls import constants, histories, unusual
from xception_jax.weights.keras.graph import FEATURES, TRAITS, Node

_MODELS = ("Functional", "Sequential", "Model")
# Operations that scale images. Some layers have the same names, but take no numbers.
_OPERATIONS = ("TFOpLambda", "TrueDivide", "Divide", "Multiply", "Add", "Subtract")
_MAX_DEPTH = 32
_MAX_LAYERS = 20_000


@dataclass(eq=False)
class ConfigLayer(Node):
    """A layer of a config.

    Attributes:
      config: the layer's own config.
      arguments: the numbers that it is called with, in order, with None for each tensor.
      place: where Keras 3 stores its weights, as `("functional", "conv2d_3")`.
      path: the names of the models that contain it, and its own name.
      odd: why its output differs from what its class and config specify, or None.
    """

    config: dict[str, Any] = field(default_factory=dict)
    arguments: tuple[Any, ...] = ()
    place: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    odd: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} layer {'/'.join(self.path)!r}"


@dataclass
class ParsedModel:
    """A model as its config describes it.

    Attributes:
      backbone: a name in `graph.FEATURES`.
      layers: the backbone's layers by the names that Keras gives them in a new process.
      before: the layers between the images and the backbone, in order.
      head: the layers after the backbone, in order.
      image_size: the input's height and width, or None if not fixed.
      problem: why the head cannot be read, or None.
    """

    backbone: str
    layers: dict[str, ConfigLayer]
    before: list[ConfigLayer]
    head: list[ConfigLayer]
    image_size: tuple[int, int] | None
    problem: str | None = None

    @property
    def epsilon(self) -> float:
        """The epsilon of the backbone's batch normalization. Raises `Refused` if they differ."""
        norms = [layer for layer in self.layers.values() if layer.kind == "BatchNormalization"]
        found = {norm.config.get("epsilon", 1e-3) for norm in norms}
        if len(found) != 1:
            raise Refused(f"has batch normalization with different epsilons: {sorted(found)}")
        return float(found.pop())


def parse_model(config: Any) -> ParsedModel:
    """Reads a model's config.

    Args:
      config: parsed JSON of `config.json` or `model_config`.

    Raises:
      Refused: it is not a model with one input and one output around Keras' Xception or
        Inception V3; the message names the layer.
    """
    if not isinstance(config, dict) or config.get("class_name") not in _MODELS:
        kind = config.get("class_name") if isinstance(config, dict) else None
        raise Refused(f"has a model of class {kind!r}; only Functional and Sequential can be read")
    reader = _Reader()
    start = ConfigLayer("images", "Images")
    output = reader.model(config, [start], (), ())
    nodes = _upstream(output)
    kinds = Counter(node.kind for node in nodes)
    if not kinds["SeparableConv2D"] and kinds["Conv2D"] < 20:
        raise Refused("has a config that contains neither Keras' Xception nor its Inception V3")
    backbone = "xception" if kinds["SeparableConv2D"] else "inception_v3"
    end, layers, images = _located(backbone, nodes)
    head, problem = _chain(output, end)
    before, unlike = _chain(images, start)
    if unlike:
        raise Refused(f"{unlike} between the images and the backbone")
    return ParsedModel(backbone, layers, before, head, reader.image_size, problem)


class _Reader:
    """Builds one graph of a model and its nested models."""

    def __init__(self) -> None:
        self.count = 0
        self.image_size: tuple[int, int] | None = None
        # For each model around the current layer: how its call is unusual, if it is.
        self.called: list[str] = []

    def model(
        self, config: Any, inputs: list[Node], place: tuple[str, ...], path: tuple[str, ...]
    ) -> Node:
        """The output of a model on `inputs`."""
        if len(path) > _MAX_DEPTH:
            raise Refused(f"has models nested more than {_MAX_DEPTH} deep")
        if len(inputs) != 1:
            raise Refused(f"has a model {'/'.join(path)!r} of {len(inputs)} inputs; expected one")
        own = config["config"]
        layers = own["layers"] if isinstance(own, dict) else own  # a list in Keras 1 and 2.0
        self.count += len(layers)
        if self.count > _MAX_LAYERS:
            raise Refused(f"has a config of more than {_MAX_LAYERS:,} layers")
        placed = list(zip(layers, _places(layers), strict=True))
        if config["class_name"] == "Sequential":
            node: Node = inputs[0]
            for layer, key in placed:
                node = self.layer(layer, [node], (), (*place, key), path)
            return node
        return self._functional(own, placed, inputs, place, path)

    def _functional(
        self, own: dict[str, Any], placed: list[tuple[Any, str]], inputs: list[Node],
        place: tuple[str, ...], path: tuple[str, ...],
    ) -> Node:  # fmt: skip
        if len(histories(own["input_layers"])) != 1:
            raise Refused(f"has several inputs in the model {own.get('name')!r}; expected one")
        outputs = histories(own["output_layers"])
        done: dict[str, Node] = {}
        waiting = placed
        while waiting:
            left = []
            for layer, key in waiting:
                calls = layer.get("inbound_nodes") or []
                if len(calls) > 1:
                    raise Refused(f"applies the layer {layer.get('name')!r} {len(calls)} times")
                wanted = histories(calls)
                if all(name in done for name in wanted):
                    taken = [done[name] for name in wanted] or inputs
                    done[_name(layer)] = self.layer(
                        layer, taken, tuple(constants(calls)), (*place, key), path
                    )
                else:
                    left.append((layer, key))
            if len(left) == len(waiting):
                raise Refused(f"has a layer {_name(left[0][0])!r} without its input")
            waiting = left
        if len(outputs) != 1 or outputs[0] not in done:
            raise Refused(f"has {len(outputs)} outputs in the model {own.get('name')!r}; expected "
                          f"one")  # fmt: skip
        return done[outputs[0]]

    def layer(
        self, layer: Any, inputs: list[Node], arguments: tuple[Any, ...],
        place: tuple[str, ...], path: tuple[str, ...],
    ) -> Node:  # fmt: skip
        kind, path = str(layer["class_name"]), (*path, _name(layer))
        if not _is_of_keras(layer):
            raise Refused(f"has a layer {'/'.join(path)!r} of the custom class {kind}")
        own = unusual(layer.get("inbound_nodes") or [], is_operation=_is_operation(layer),
                      augments=kind.startswith("Random"))  # fmt: skip
        called = [f"is called with {own}"] if own else []
        if kind in _MODELS:
            within = [f"is in {'/'.join(path)!r}, which {each}" for each in called]
            self.called += within
            output = self.model(layer, inputs, place, path)
            del self.called[len(self.called) - len(within) :]
            return output
        config = layer["config"]
        if kind == "InputLayer":
            if not place[1:] or self.image_size is None:
                self._sized(config)
            return inputs[0]
        kind, config = _known(kind, config)
        traits = _traits(kind, config)
        odd = next(iter([*called, *self.called]), None) or _odd_dtype(config)
        return ConfigLayer(_name(layer), kind, traits, inputs, config, arguments, place, path, odd)

    def _sized(self, config: dict[str, Any]) -> None:
        shape = config.get("batch_shape") or config.get("batch_input_shape") or []
        if len(shape) == 4 and all(isinstance(side, int) for side in shape[1:3]):
            self.image_size = (shape[1], shape[2])


def _name(layer: Any) -> str:
    return str(layer.get("name") or layer["config"]["name"])


def _is_of_keras(held: dict[str, Any]) -> bool:
    """Whether a serialized object is of one of Keras' classes, according to its config."""
    module, registered = held.get("module"), held.get("registered_name")
    if module is None:
        # Keras before 3 writes no module for a custom class.
        return "module" not in held or registered is None
    return module.split(".")[0] in ("keras", "tensorflow", "tf_keras") \
        and ">" not in str(registered)  # fmt: skip


def _is_operation(layer: dict[str, Any]) -> bool:
    """Whether it is a function of tensors and numbers instead of a layer."""
    if "module" not in layer:  # in an .h5 file
        return layer["class_name"] in _OPERATIONS
    return layer["class_name"] == "TFOpLambda" or ".ops" in str(layer["module"])


def _odd_dtype(config: dict[str, Any]) -> str | None:
    """A description of a layer that computes in integers or with quantized weights, or None."""
    dtype = config.get("dtype")
    if isinstance(dtype, dict):
        kind, own = str(dtype.get("class_name")), dtype.get("config") or {}
        if kind not in ("DTypePolicy", "FloatDTypePolicy", "Policy"):
            return f"has a dtype policy of class {kind}"
        dtype = own.get("name")
    return None if dtype is None or "float" in str(dtype) else f"computes in {dtype}"


def _places(layers: list[Any]) -> Iterator[str]:
    """Each layer's class with its number in that class, as in Keras 3's files."""
    counts = Counter[str]()
    for layer in layers:
        name = re.sub(r"\W+", "", str(layer["class_name"]))
        name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
        name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
        yield f"{name}_{counts[name]}" if counts[name] else name
        counts[name] += 1


def _known(kind: str, config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A layer's class and config, with pure activation layers turned into `Activation`."""
    if kind == "ReLU" and not _changes(config):
        return "Activation", config | {"activation": "relu"}
    if kind == "Softmax" and config.get("axis", -1) in (-1, 1):
        return "Activation", config | {"activation": "softmax"}
    return kind, config


def _changes(config: dict[str, Any]) -> list[str]:
    """The settings of a ReLU layer that make it a different function."""
    return [
        f"{name}={config[name]}"
        for name, usual in (("max_value", None), ("negative_slope", 0), ("threshold", 0))
        if config.get(name) not in (None, usual)
    ]


def _traits(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a layer's config that `graph` compares."""
    traits = {name: _value(config.get(name, own)) for name, own in TRAITS.get(kind, {}).items()}
    if "activation" in traits:
        traits["activation"] = activation(config)
    if traits.get("axis") in (3, (3,), (-1,)):
        traits["axis"] = -1
    if "pool_size" in traits and traits["strides"] is None:
        traits["strides"] = traits["pool_size"]
    return traits


def activation(config: dict[str, Any]) -> str:
    """The name of a layer's activation, `linear` if it has none.

    An activation object gets the name of the function that it equals exactly. Otherwise its class
    and its unusual settings are returned, as `ReLU(max_value=6.0)`.
    """
    value = config.get("activation")
    if not isinstance(value, dict):
        return "linear" if value is None else str(value)
    kind, own = str(value.get("class_name")), value.get("config")
    if kind == "function" and isinstance(own, str):
        module = value.get("module")
        return own if module == "builtins" or _is_of_keras(value) else f"{module}.{own}"
    if isinstance(own, dict) and _is_of_keras(value):
        known, config = _known(kind, own)
        if known == "Activation":
            return activation(config)
        return f"{kind}({', '.join(_changes(own))})" if kind == "ReLU" else f"keras {kind}"
    return f"object of class {kind}"


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _upstream(output: Node) -> list[Node]:
    """All nodes that the output depends on."""
    seen, waiting = {id(output): output}, [output]
    while waiting:
        for node in waiting.pop().inputs:
            if id(node) not in seen:
                seen[id(node)] = node
                waiting.append(node)
    return list(seen.values())


class _Differs(Exception):  # noqa: N818  (turned into Refused)
    def __init__(self, matched: int, why: str):
        super().__init__(why)
        self.matched = matched


def _located(backbone: str, nodes: list[Node]) -> tuple[Node, dict[str, ConfigLayer], Node]:
    """The backbone's last node, its layers by Keras' names, and the node before the backbone."""
    wanted = FEATURES[backbone]()
    nearest = _Differs(-1, "")
    for node in nodes:
        if node.kind == wanted.kind:
            try:
                layers, images = _aligned(wanted, node)
            except _Differs as error:
                nearest = max(nearest, error, key=lambda each: each.matched)
            else:
                return node, layers, images
    raise Refused(f"is not Keras' {backbone}: {nearest or 'its last layer is missing'}")


def _aligned(wanted: Node, found: Node) -> tuple[dict[str, ConfigLayer], Node]:
    """Walks both graphs from their ends; raises `_Differs` at the first difference."""
    pairs: dict[int, Node] = {}
    layers: dict[str, ConfigLayer] = {}
    images, waiting = found, [(wanted, found)]
    while waiting:
        ours, theirs = waiting.pop()
        if id(ours) in pairs:
            if pairs[id(ours)] is not theirs:
                raise _Differs(len(pairs), f"expected {pairs[id(ours)]}, got {theirs}")
            continue
        if ours.kind == "Images":
            images = theirs
        elif not isinstance(theirs, ConfigLayer) or theirs.kind != ours.kind:
            raise _Differs(len(pairs), f"expected a {ours.kind} layer, got {_shown(theirs)}")
        elif theirs.odd:
            raise _Differs(len(pairs), f"{theirs} {theirs.odd}")
        elif theirs.traits != ours.traits or len(theirs.inputs) != len(ours.inputs):
            changed = [
                f"{name} {value!r}, not {ours.traits[name]!r}"
                for name, value in theirs.traits.items() if value != ours.traits[name]
            ] or ["another number of inputs"]  # fmt: skip
            raise _Differs(len(pairs), f"{theirs} has {changed[0]}")
        else:
            layers[ours.name] = theirs
        pairs[id(ours)] = theirs
        waiting += zip(ours.inputs, theirs.inputs, strict=ours.kind != "Images")
    return layers, images


def _shown(node: Node) -> str:
    return str(node) if isinstance(node, ConfigLayer) else "the input"


def _chain(end: Node, start: Node) -> tuple[list[ConfigLayer], str | None]:
    """The layers after `start` up to `end`, and None or the reason if they are not one chain."""
    found: list[ConfigLayer] = []
    node = end
    while node is not start:
        if len(node.inputs) != 1 or not isinstance(node, ConfigLayer):
            return [], f"has {_shown(node)} of {len(node.inputs)} inputs"
        found.append(node)
        node = node.inputs[0]
    return found[::-1], None
