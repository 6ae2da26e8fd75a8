"""Opens weights: a Keras or timm file, a converted file, or a checkpoint of a run."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax import config as config_lib
from xception_jax import models
from xception_jax.errors import UsageError
from xception_jax.training import sharding
from xception_jax.training.trained import Trained
from xception_jax.utils import paths
from xception_jax.utils.text import printable
from xception_jax.weights import converted, files, remote, safetensors_files
from xception_jax.weights.converted import About
from xception_jax.weights.keras import files as keras_files
from xception_jax.weights.keras import names as keras_names
from xception_jax.weights.tensors import (
    Tensor,
    Tensors,
    flatten,
    from_library,
    type_notes,
    variables,
)
from xception_jax.weights.timm import files as timm_files
from xception_jax.weights.timm import names as timm_names

FORMATS = ("keras", "timm", "xception_jax")

_MAPS = {"keras": keras_names.tensor_map, "timm": timm_names.tensor_map}
_PREPROCESSING: dict[str, dict[str, Any]] = {
    "keras": {"image_size": 299, "eval_preset": "keras", "eval_crop": 1.0,
              "interpolation": "nearest"},
    "timm": {"image_size": 299, "eval_preset": "timm", "interpolation": "bicubic"},
}  # fmt: skip
_INTERPOLATIONS = {made["eval_preset"]: made["interpolation"] for made in _PREPROCESSING.values()}
_PIXELS = {"mean": [*config_lib.HALF], "std": [*config_lib.HALF]}


@dataclass(frozen=True)
class Pretrained:
    """Weights that can be read.

    Attributes:
      path: the file, or the folder of the run.
      format: one of `FORMATS`.
      num_classes: None without a classifier.
      read: returns the tensors under the names of the format.
      origin: the `About.source` of these weights.
      class_names: None if unknown.
      model: the model's name if the source specifies it, else None.
      unknown_model: the library's name of a model that is not one of those here, else None.
      held_overrides: the model overrides that the source specifies.
      keras: the contents of a Keras file.
      said: notes of the reader about what was adapted or left out.
      preprocessing: see `About`.
      activation: see `About`.
      types: the types of the tensors, as `array.dtype.name`.
    """

    path: Path
    format: str
    num_classes: int | None
    read: Callable[[], Tensors]
    origin: dict[str, Any]
    class_names: tuple[str, ...] | None = None
    model: str | None = None
    unknown_model: str | None = None
    held_overrides: dict[str, Any] = field(default_factory=dict)
    keras: keras_files.Contents | None = None
    said: tuple[str, ...] = ()
    preprocessing: dict[str, Any] = field(default_factory=dict)
    activation: str | None = None
    types: frozenset[str] = frozenset()

    def model_name(self, asked: str | None = None) -> str:
        """The model's name.

        Args:
          asked: the user's name for it, which is used if given.

        Raises:
          UsageError: the source does not name it, or names a model that is not here.
        """
        if (name := asked or self.model) is not None:
            return name
        path, known = self.origin.get("name", self.path), ", ".join(model_names(self.format))
        if self.unknown_model is not None:
            raise UsageError(f"{path} holds {self.format}'s {printable(self.unknown_model, 80)}, "
                             f"which is not one of the models here: {known}")  # fmt: skip
        raise UsageError(f"--model is needed: {path} does not name its model, one of {known}")

    def overrides(self, name: str) -> dict[str, Any]:
        """The overrides that the named model needs for these weights.

        Raises:
          UsageError: the source holds another model, or its library has no such model.
        """
        if self.model not in (None, name):
            raise UsageError(f"{self.path} holds {self.model}, not {name}; use model {self.model}")
        return library_overrides(self.format, name) | self.held_overrides

    def tensors(
        self, model: Any, name: str, *, without_head: bool = False
    ) -> dict[str, np.ndarray]:
        """A model's tensors by this package's names.

        Args:
          model: the model that the source must hold, of arrays or of shapes.
          name: the model's name.
          without_head: whether to leave out the source's head.

        Raises:
          UsageError: a tensor is missing, unexpected or of another shape.
        """
        source = f"{self.path} is not a {self.format} {name}"
        expected, found = tensor_map(self.format, model), self.read()
        if self.keras is not None:
            keras_files.check_order(keras_names.layers(model), self.keras.layer_names, source)
            expected = keras_names.tensor_map(model, by_name=self.keras.by_name)
        if without_head:
            heads = _heads(self.format, name)
            found = {key: array for key, array in found.items() if not key.startswith(heads)}
        return from_library(expected, found, source)

    def about(self, name: str) -> About:
        """The description of these weights for a converted file."""
        built = effective(name, self.overrides(name))
        digest = {"sha256": _sha256(self.path)} if self.path.is_file() else {}
        pixels = {"mean": [*self.mean], "std": [*self.std]}
        scaled = pixels | ({"range": [-1, 1]} if pixels == _PIXELS else {})
        return About(name, built, self.num_classes, self.class_names,
                     {**self.preprocessing, **scaled}, self.origin | digest,
                     activation=self.activation)  # fmt: skip

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the pixels, see `models.network.Network.normalize`."""
        return tuple(self.preprocessing.get("mean", config_lib.HALF))

    @property
    def std(self) -> tuple[float, ...]:
        """Of the pixels, see `models.network.Network.normalize`."""
        return tuple(self.preprocessing.get("std", config_lib.HALF))

    def usual_crop(self, name: str) -> float:
        """The `eval_crop` for the named model if the weights do not specify it.

        It is timm's for weights that timm wrote, even if they were converted later.
        """
        origin, preset = self.origin, self.preprocessing.get("eval_preset", "area")
        while isinstance(origin.get("of"), dict):
            origin = origin["of"]
        theirs = models.elsewhere("timm").get(name)
        if origin.get("format") == preset == "timm" and theirs and theirs.crop is not None:
            return theirs.crop
        return config_lib.own_crop(preset)

    def notes(self) -> list[str]:
        """Notes for the user about the source."""
        said = [*self.said, *type_notes(self.types)]
        ours = _INTERPOLATIONS.get(self.preprocessing.get("eval_preset", ""))
        asked = self.preprocessing.get("interpolation", ours)
        if ours is not None and asked != ours:
            said.append(f"NOTE: the weights expect images resized with interpolation "
                        f"{printable(asked, 40)}; eval_preset "
                        f"{self.preprocessing['eval_preset']} resizes {ours}")  # fmt: skip
        if self.keras is not None and self.keras.problem:
            said.append(f"NOTE: {self.path} {self.keras.problem}; its head is not loaded")
        return said

    def check_head(self) -> None:
        """Raises `UsageError` if the weights have a head that the models here cannot express."""
        if self.keras is not None and self.keras.problem:
            raise UsageError(f"{self.path} {self.keras.problem}")


def tensor_map(format: str, model: Any) -> list[Tensor]:
    """A model's tensors with their names and shapes in a format."""
    if format in _MAPS:
        return _MAPS[format](model)
    return [Tensor(name, name, tuple(v.shape)) for name, v in variables(model).items()]


def library_overrides(format: str, name: str) -> dict[str, Any]:
    """The overrides that make a model here compute the same as the library's model.

    Raises:
      UsageError: the library has no such model.
    """
    models.overrides(name)
    if format not in _MAPS:
        return {}
    known = models.elsewhere(format)
    if name not in known:
        raise UsageError(f"{format} has no {name}; it has: {', '.join(known)}")
    return dict(known[name].overrides)


def model_names(format: str) -> list[str]:
    """The names of the models that a format can hold."""
    return sorted(models.elsewhere(format)) if format in _MAPS else models.names()


def _heads(format: str, name: str) -> tuple[str, ...]:
    """The prefixes of a model's head tensors in a format."""
    if format == "timm":
        return (f"{models.elsewhere(format)[name].classifier}.",)
    return {"keras": ("dense/", "dense_"), "xception_jax": ("params.head.",)}[format]


def effective(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """All of a model's overrides that matter for its weights, with the given changes applied."""
    built = models.overrides(name) | changes
    return {key: built[key] for key in converted.architecture(name)}


def open_pretrained(
    path: str | Path,
    *,
    format: str | None = None,
    step: str = "latest",
    weights: str | None = None,
) -> Pretrained:
    """Opens weights.

    Args:
      path: a file, a run's folder, `RUN/checkpoints/STEP`, or a name, see `weights.remote`.
      format: one of `FORMATS`; None detects it from the file's name and content.
      step: the checkpoint of a run, see `xception_jax.evaluate`.
      weights: which weights of a run, see `xception_jax.evaluate`.

    Raises:
      UsageError: the path has no readable weights.
      RunError: weights with a name cannot be downloaded.
    """
    if paths.is_weights_name(name := str(path)):
        return _from_download(remote.download(name), format)
    path = Path(path)
    run = run_of(path, step)
    if run is None:
        files.check_file(path)
    found = _format_of(path)
    if format not in (None, found):
        raise UsageError(f"{path} is not a {format} file; its name and content suggest {found}")
    if run is not None:
        return _from_run(*run, weights)
    origin = {"format": found, "file": path.name}
    return {"keras": _from_keras, "timm": _from_timm, "xception_jax": _from_converted}[found](
        path, origin
    )


def _from_download(download: remote.Download, format: str | None) -> Pretrained:
    opened = open_pretrained(download.path, format=format)
    return replace(
        opened,
        origin=opened.origin | download.source,
        model=opened.model or download.model,
        activation=opened.activation or download.activation,
        said=(download.summary(), *opened.said),
    )


def run_of(path: Path, step: str = "latest") -> tuple[Path, str] | None:
    """The folder and the checkpoint of the run at a path; None if the path is a file.

    Args:
      path: a file, a run's folder, or `RUN/checkpoints/STEP`.
      step: `latest`, `best` or a number.

    Raises:
      UsageError: path and step name two different checkpoints, or the path is an export.
    """
    if not path.is_dir():
        return None
    if (path / "model.bin").exists() and not (path / "config.json").exists():
        raise UsageError(
            f"{path} is an exported program with its weights as constants; give the run or the "
            f"weights file from which it was exported"
        )
    if path.parent.name != "checkpoints" or not path.name.isdecimal():
        return path, step
    if step not in ("latest", path.name):
        raise UsageError(f"{path} is the checkpoint {path.name}; leave out --step={step}")
    return path.parents[1], path.name


def _format_of(path: Path) -> str:
    if path.is_dir():
        return "xception_jax"
    if path.suffix in keras_files.SUFFIXES:
        return "keras"
    if path.suffix in timm_files.PICKLED:
        return "timm"
    if path.suffix == ".safetensors":
        return "timm" if converted.read_about(path) is None else "xception_jax"
    known = ", ".join((*keras_files.SUFFIXES, *timm_files.SUFFIXES))
    raise UsageError(f"{path} is not a weights file; expected a name that ends in {known}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _types(found: Tensors) -> frozenset[str]:
    return frozenset(array.dtype.name for array in found.values())


def _from_keras(path: Path, origin: dict[str, Any]) -> Pretrained:
    held = keras_files.read(path)
    overrides: dict[str, Any] = {} if held.epsilon is None else {"bn_epsilon": held.epsilon}
    if held.pooling != "average":
        overrides["pooling"] = held.pooling
    if held.dense[:-1]:
        overrides["fc_units"] = tuple(held.dense[:-1])
    made_for = dict(_PREPROCESSING["keras"])
    if held.image_size is not None and held.image_size[0] == held.image_size[1]:
        made_for["image_size"] = held.image_size[0]
    elif held.image_size is not None:
        height, width = held.image_size
        held.notes.append(
            f"NOTE: it was made for images of {height} x {width} pixels, but the models here take "
            f"square images"
        )
    return Pretrained(
        path, "keras", held.dense[-1] if held.dense else None, lambda: held.tensors, origin,
        held_overrides=overrides, keras=held, said=tuple(held.notes), preprocessing=made_for,
        activation=held.activation, types=_types(held.tensors),
    )  # fmt: skip


def _from_timm(path: Path, origin: dict[str, Any]) -> Pretrained:
    found, notes = timm_files.read(path)
    biases = [found[name].shape for name in timm_names.classifier_biases() if name in found]
    classes = math.prod(biases[0]) if biases else None
    described = timm_files.read_config(path)
    names = described.class_names
    model = next((ours for ours, timm in models.elsewhere("timm").items()
                  if timm.name == described.architecture), None)  # fmt: skip
    return Pretrained(
        path, "timm", classes, lambda: found, origin,
        class_names=names if names is not None and len(names) == classes else None,
        model=model, unknown_model=None if model else described.architecture,
        said=tuple(notes),
        preprocessing=_PREPROCESSING["timm"] | described.preprocessing,
        types=_types(found),
    )  # fmt: skip


def _from_converted(path: Path, origin: dict[str, Any]) -> Pretrained:
    about = converted.read_about(path)
    assert about is not None, "that is how it was recognized"
    origin["of"] = about.source
    stored, _ = safetensors_files.read(path)
    return Pretrained(
        path, "xception_jax", about.num_classes, lambda: converted.read(path), origin,
        class_names=about.class_names, model=about.model, held_overrides=about.overrides,
        preprocessing=about.preprocessing, activation=about.activation, types=_types(stored),
    )  # fmt: skip


def _from_run(path: Path, step: str, weights: str | None) -> Pretrained:
    trained = Trained.find(path, step, weights)
    config, data = trained.config, trained.config.data

    def read() -> Tensors:
        return flatten(trained.weights(sharding.replicated(sharding.make_mesh())))

    return Pretrained(
        path, "xception_jax", len(trained.meta.class_names), read,
        {"format": "xception_jax", "step": trained.step, "weights": trained.kind},
        class_names=trained.meta.class_names, model=config.model.name,
        held_overrides=effective(config.model.name, config_lib.model_overrides(config)),
        preprocessing={"image_size": data.image_size, "eval_preset": data.eval_preset,
                       "eval_crop": data.eval_crop, "mean": [*data.mean], "std": [*data.std],
                       "exif": config_lib.applies_exif(config),
                       **({"white_level": data.white_level} if data.white_level else {})},
    )  # fmt: skip
