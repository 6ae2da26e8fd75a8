"""A trained model as it is applied: weights that are read, and how images are made for it."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.data import imagenet, splits
from xception_jax.data.render.decode import Images
from xception_jax.errors import UsageError
from xception_jax.serving import calibration
from xception_jax.serving.calibration import ACTIVATIONS, probabilities_of
from xception_jax.training import build, sharding, state
from xception_jax.training.state import Tree
from xception_jax.training.trained import Trained
from xception_jax.weights import pretrained
from xception_jax.weights.pretrained import Pretrained
from xception_jax.weights.tensors import abstract, variables

# Images of a batch on each device, unless there are fewer.
BATCH = 32


@dataclass(frozen=True)
class Inference:
    """A model that can be asked.

    Attributes:
      graphdef: see `state.graphdef_of`.
      weights: `{"params", "batch_stats"}`, of a run on the first device, of a file on the host.
      images: how evaluation makes an image of a picture.
      activation: what makes probabilities of the logits: `softmax` or `sigmoid`.
      class_names: in the order of the logits.
      source: of the weights, for `model.json`.
      notes: lines about the weights for the user.
      crop_known: whether the weights say their `images.eval_crop`.
      mean, std: of the pixels, see `models.network.Network.normalize`.
      temperature: divides the logits before the activation, see `serving.calibration`.
      thresholds: of a calibrated sigmoid model, one per class: a label is there from it on.
    """

    graphdef: Any
    weights: Tree
    images: Images
    activation: str
    class_names: tuple[str, ...]
    source: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    crop_known: bool = True
    mean: tuple[float, ...] = config_lib.HALF
    std: tuple[float, ...] = config_lib.HALF
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()


def _checked(activation: str, classes: int) -> str:
    """The activation; `UsageError` where it does not exist or does not fit."""
    if activation not in ACTIVATIONS:
        raise UsageError(f"no activation {activation!r}; there are: {', '.join(ACTIVATIONS)}")
    if activation == "softmax" and classes == 1:
        raise UsageError("softmax over one class is 1.0 for every image; give --activation=sigmoid")
    return activation


def of_run(
    workdir: Path, step: str = "latest", weights: str | None = None, activation: str | None = None
) -> Inference:
    """The model of a checkpoint of a run.

    Args:
      workdir: the run's folder.
      step: `latest`, `best` or a number.
      weights: `ema` or `raw`; unless given, `ema` if the run has averaged weights.
      activation: in place of the loss' own.

    Raises:
      UsageError: there is no such run, checkpoint or kind of weights.
      RunError: the checkpoint is damaged.
    """
    trained = Trained.find(workdir, step, weights)
    meta, config, data = trained.meta, trained.config, trained.config.data
    activation = activation or activation_of(config, trained.metrics)
    fitted = calibration.read(trained)
    if fitted is not None and fitted.activation != activation:
        fitted = None
    return Inference(
        build.build_graphdef(config, len(meta.class_names)),
        trained.weights(sharding.replicated(sharding.make_mesh(1))),
        Images(
            data.image_size, eval_preset=data.eval_preset, eval_crop=data.eval_crop,
            exif=config_lib.applies_exif(config), white=data.white_level,
        ),
        _checked(activation, len(meta.class_names)),
        meta.class_names,
        {
            "model": config.model.name, "step": trained.step, "weights": trained.kind,
            "data": meta.dataset, **({"calibration": fitted.to_json()} if fitted else {}),
        },
        mean=tuple(data.mean), std=tuple(data.std),
        temperature=fitted.temperature if fitted else 1.0,
        thresholds=tuple(fitted.thresholds) if fitted else (),
    )  # fmt: skip


def of_file(path: str | Path, model: str | None = None, activation: str | None = None) -> Inference:
    """The model of a file of weights, in float32.

    Args:
      path: of Keras, timm or `xception_jax.convert`.
      model: its name; a converted file knows it.
      activation: where the file does not say it, or in its place.

    Raises:
      UsageError: it is no file of weights of that model, is damaged or has no classifier, or does
        not say its images or its activation.
    """
    file = pretrained.open_pretrained(path)
    file.check_head()
    name, classes, made_for = file.model_name(model), file.num_classes, file.preprocessing
    if classes is None:
        raise UsageError(f"--input={path} has no classifier, so there are no probabilities")
    if not {"image_size", "eval_preset"} <= made_for.keys():
        raise UsageError(f"--input={path} does not specify the images for its weights")
    activation = _checked(activation or _activation_of_file(file), classes)
    about = file.about(name)
    built = {key: value for key, value in about.overrides.items() if value is not None}
    network = abstract(name, classes, built)
    tensors = file.tensors(network, name)
    for key, variable in variables(network).items():
        variable.set_value(tensors[key])  # of NumPy: later, all go to the devices at once
    network.matmul_precision = "float32"
    network.mean, network.std = file.mean, file.std
    graphdef, params, batch_stats = state.split(network)
    return Inference(
        graphdef,
        {"params": params, "batch_stats": batch_stats},
        Images(
            made_for["image_size"], eval_preset=made_for["eval_preset"],
            eval_crop=made_for.get("eval_crop", file.usual_crop(name)),
            exif=made_for.get("exif", made_for["eval_preset"] == "area"),
            white=made_for.get("white_level", 0),
        ),
        activation,
        file.class_names or _names_of(file, classes),
        {"model": name, **about.source},
        crop_known="eval_crop" in made_for,
        mean=file.mean, std=file.std, notes=tuple(file.notes()),
    )  # fmt: skip


def answers(
    graphdef: Any,
    weights: Tree,
    pixels: jax.Array,
    *,
    activation: str,
    temperature: float = 1.0,
    flip: bool = False,
    explain: bool = False,
) -> dict[str, jax.Array]:
    """Runs the model on pixels, as evaluation does.

    Args:
      graphdef: see `state.graphdef_of`.
      weights: `{"params", "batch_stats"}`.
      pixels: uint8 `[batch, size, size, 3]`, RGB.
      activation: of `ACTIVATIONS`.
      temperature: divides the logits before the activation.
      flip: average the probabilities of each image and its mirror image.
      explain: compute `heat` too.

    Returns:
      Float32 arrays: `logits` and `probabilities`, `[batch, classes]`; `features`, `[batch,
      features]`, which the head takes; `heat`, `[batch, height, width]`, see `heat_of`, of the
      most probable class. All but the probabilities are of the image as it is.
    """
    model: Any = nnx.merge(graphdef, weights["params"], weights["batch_stats"], copy=True)
    asked = model.matmul_precision
    with jax.default_matmul_precision(asked) if asked else contextlib.nullcontext():
        maps = model.features(model.normalize(pixels))
        pooled = model.pool(maps)
        logits = model.classify(pooled)
        probabilities = probabilities_of(logits, activation, temperature)
        if flip:
            mirrored = model.pool(model.features(model.normalize(pixels[:, :, ::-1])))
            probabilities += probabilities_of(model.classify(mirrored), activation, temperature)
            probabilities /= 2
        found = {"logits": logits, "probabilities": probabilities, "features": pooled}
        if explain:
            found["heat"] = heat_of(model, maps, jnp.argmax(probabilities, axis=1))
    return found


def heat_of(model: Any, maps: jax.Array, classes: jax.Array) -> jax.Array:
    """Where an image speaks for a class: Grad-CAM (arXiv:1610.02391, equations 1 and 2).

    Args:
      model: a `network.Network` with a head.
      maps: its last feature maps, `[batch, height, width, channels]`.
      classes: int `[batch]`.

    Returns:
      Float32 `[batch, height, width]`, at least 0 and not scaled.
    """

    def score(maps: jax.Array) -> jax.Array:
        logits = model.classify(model.pool(maps))
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum()

    importance = jax.grad(score)(maps).astype(jnp.float32).mean((1, 2))
    weighted = jnp.einsum("bhwc,bc->bhw", maps.astype(jnp.float32), importance)
    return jax.nn.relu(weighted)


def _names_of(file: Pretrained, classes: int) -> tuple[str, ...]:
    """Names for weights without names: ImageNet's for its published weights, else numbers."""
    name = str(origin_of(file.origin).get("name", ""))
    published = re.fullmatch(r"keras:\w+|hf:timm/\w+\.\w*in1k(@.*)?", name)
    if classes == imagenet.CLASSES and published:
        return imagenet.class_names()
    return tuple(map(str, range(classes)))


def origin_of(source: dict[str, Any]) -> dict[str, Any]:
    """The source of weights before they were converted, see `converted.About`."""
    while "of" in source:
        source = source["of"]
    return source


def batch_size_of(devices: int, examples: int, asked: int = 0) -> int:
    """Over all devices, a multiple of their number: as asked, or `BATCH` for each device.

    Args:
      devices: their number.
      examples: there are no more.
      asked: 0: `BATCH` for each device.
    """
    size = min(asked or BATCH * devices, examples)
    return -(-size // devices) * devices


def activation_of(config: ConfigDict, metrics: Mapping[str, float] | None) -> str:
    """The activation that turns logits into probabilities, which depends on the loss.

    The metrics of an evaluated checkpoint show whether the data has several labels per image.
    Without metrics, the data is opened.
    """
    if metrics is not None or config.loss.name != "auto":
        return config_lib.loss_name(config, "map" in (metrics or {}))
    source = splits.open_split(config, config.data.eval_split)
    return config_lib.loss_name(config, source.multilabel)


def _activation_of_file(file: Pretrained) -> str:
    """The activation of a weights file.

    Raises:
      UsageError: neither the file nor the library of its weights determines it.
    """
    if file.activation is not None:
        return file.activation
    origin = origin_of(file.origin)
    if "step" in origin:
        raise UsageError(f"--input={file.path} is from a run, but does not contain its loss: give "
                         f"--activation=softmax or sigmoid")  # fmt: skip
    if origin.get("format") == "keras":
        raise UsageError(f"--input={file.path} is from a Keras file without an activation: give "
                         f"--activation=softmax (one correct class) or sigmoid (several)"
                         )  # fmt: skip
    return "softmax"
