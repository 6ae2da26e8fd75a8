"""Exports a model with its weights as a StableHLO program, which needs only JAX: docs/export.md."""

if __name__ == "__main__":  # first, so that --help and a misspelt flag do not wait for JAX
    from xception_jax import commands

    commands.run("export")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax import serving
from xception_jax.data import splits
from xception_jax.data.render.decode import Images
from xception_jax.errors import UsageError, nearest
from xception_jax.serving import ExportCheck, check
from xception_jax.training import build, sharding, state
from xception_jax.training.state import Tree
from xception_jax.training.trained import Trained
from xception_jax.weights import pretrained
from xception_jax.weights.tensors import abstract, variables

__all__ = ["ExportCheck", "ExportResult", "check", "export_file", "export_run"]

_KNOWN = ("cpu", "cuda", "rocm", "tpu")


@dataclass(frozen=True)
class ExportResult:
    """A completed export.

    Attributes:
      folder: has the program, `model.json`, README and `classify.py`.
      activation: `softmax` or `sigmoid`, which turns logits into probabilities.
      platforms: the platforms of the program.
      class_names: the name of each output, in order.
      about: the content of `model.json`, see docs/export.md.
    """

    folder: Path
    activation: str
    platforms: tuple[str, ...]
    class_names: tuple[str, ...]
    about: Mapping[str, object]

    def to_json(self) -> dict[str, object]:
        """The output of `--json`."""
        return dict(self.about)


def export_run(
    workdir: Path,
    output: Path,
    *,
    step: str = "latest",
    weights: str | None = None,
    activation: str | None = None,
    platforms: Sequence[str] = serving.PLATFORMS,
    resize: str | None = None,
) -> ExportResult:
    """Exports a checkpoint of a run.

    Args:
      workdir: the run's folder.
      output: the folder to create; it must be empty if it exists.
      step: `latest`, `best` or a number.
      weights: `ema` (averaged) or `raw`; None: averaged if the run has them.
      activation: `softmax` or `sigmoid`; None: as the run was trained.
      platforms: any of `cpu`, `cuda`, `rocm`, `tpu`.
      resize: `inside`: the program crops and resizes any image as the run's evaluation does.
        `outside`: it takes images of the model's size. None: `inside` if `data.eval_preset` is
        `area`.

    Raises:
      UsageError: there is no such run, checkpoint or platform, or the output is not empty.
      RunError: the checkpoint is damaged.
    """
    _check_target(platforms, output)
    trained = Trained.find(workdir, step, weights)
    meta, config = trained.meta, trained.config
    data = config.data
    return _export(
        output,
        build.build_graphdef(config, len(meta.class_names)),
        trained.weights(sharding.replicated(sharding.make_mesh(1))),
        Images(
            data.image_size, eval_preset=data.eval_preset, eval_crop=data.eval_crop,
            exif=config_lib.applies_exif(config),
        ),
        activation=activation or _activation_of(config, trained.metrics),
        platforms=platforms,
        resize=resize,
        class_names=meta.class_names,
        source={
            "model": config.model.name, "step": trained.step, "weights": trained.kind,
            "data": meta.dataset,
        },
    )  # fmt: skip


def export_file(
    path: Path,
    output: Path,
    *,
    model: str | None = None,
    activation: str | None = None,
    platforms: Sequence[str] = serving.PLATFORMS,
    resize: str | None = None,
) -> ExportResult:
    """Exports a weights file, in float32.

    Args:
      path: a file of Keras, timm or `xception_jax.convert`.
      output: see `export_run`.
      model: the model's name; None: a converted file contains it.
      activation: `softmax` or `sigmoid`; None: from the file.
      platforms: see `export_run`.
      resize: see `export_run`.

    Raises:
      UsageError: the file is damaged, not of this model or has no classifier, or its activation is
        unknown; there is no such platform, or the output is not empty.
    """
    _check_target(platforms, output)
    file = pretrained.open_pretrained(path)
    file.check_head()
    name, classes, made_for = model or file.model, file.num_classes, file.preprocessing
    if name is None:
        raise UsageError(f"--model is needed: {path} does not name its model, one of "
                         f"{', '.join(pretrained.model_names(file.format))}")  # fmt: skip
    if classes is None:
        raise UsageError(f"--input={path} has no classifier, so there are no probabilities")
    if not {"image_size", "eval_preset"} <= made_for.keys():
        raise UsageError(f"--input={path} does not specify the images for its weights")
    activation = activation or _activation_of_file(file)
    about = file.about(name)
    built = {key: value for key, value in about.overrides.items() if value is not None}
    network = abstract(name, classes, built)
    tensors = file.tensors(network, name)
    for key, variable in variables(network).items():
        variable.set_value(jnp.asarray(tensors[key]))
    network.matmul_precision = "float32"
    graphdef, params, batch_stats = state.split(network)
    return _export(
        output,
        graphdef,
        {"params": params, "batch_stats": batch_stats},
        Images(made_for["image_size"], eval_preset=made_for["eval_preset"],
               eval_crop=made_for.get("eval_crop", file.usual_crop(name)),
               exif=made_for.get("exif", made_for["eval_preset"] == "area")),
        crop_known="eval_crop" in made_for,
        activation=activation,
        platforms=platforms,
        resize=resize,
        class_names=file.class_names or tuple(map(str, range(classes))),
        source={"model": name, **about.source},
    )  # fmt: skip


def _check_target(platforms: Sequence[str], output: Path) -> None:
    """Refuses an unknown platform or an output that is not empty, before any work."""
    for platform in platforms:
        if platform not in _KNOWN:
            raise UsageError(
                f"no platform {platform!r}{nearest(platform, _KNOWN) or ';'} "
                f"There are: {', '.join(_KNOWN)}"
            )
    serving.check_output(output)


def _export(
    output: Path,
    graphdef: Any,
    weights: Tree,
    images: Images,
    *,
    crop_known: bool = True,
    activation: str,
    platforms: Sequence[str],
    resize: str | None,
    class_names: tuple[str, ...],
    source: dict[str, Any],
) -> ExportResult:
    """Exports a model; see `serving.export` and `serving.describe`."""
    if activation == "softmax" and len(class_names) == 1:
        raise UsageError("softmax over one class is 1.0 for every image; give --activation=sigmoid")

    exported = serving.export(
        graphdef,
        weights,
        images,
        activation=activation,
        resizes=(resize or ("inside" if images.eval_preset == "area" else "outside")) == "inside",
        platforms=tuple(platforms),
    )
    about = serving.describe(
        exported, images, activation=activation, class_names=class_names, source=source,
        crop_known=crop_known,
    )  # fmt: skip
    about = serving.write(output, exported, about)
    return ExportResult(output, activation, tuple(platforms), class_names, about)


def _activation_of(config: ConfigDict, metrics: Mapping[str, float] | None) -> str:
    """The activation that turns logits into probabilities, which depends on the loss.

    The metrics of an evaluated checkpoint show whether the data has several labels per image.
    Without metrics, the data is opened.
    """
    if metrics is not None or config.loss.name != "auto":
        return config_lib.loss_name(config, "map" in (metrics or {}))
    source = splits.open_split(config, config.data.eval_split)
    return config_lib.loss_name(config, source.multilabel)


def _activation_of_file(file: pretrained.Pretrained) -> str:
    """The activation of a weights file.

    Raises:
      UsageError: neither the file nor the library of its weights determines it.
    """
    if file.activation is not None:
        return str(file.activation)
    origin = file.origin
    while "of" in origin:
        origin = origin["of"]
    if "step" in origin:
        raise UsageError(f"--input={file.path} is from a run, but does not contain its loss: give "
                         f"--activation=softmax or sigmoid")  # fmt: skip
    if origin.get("format") == "keras":
        raise UsageError(f"--input={file.path} is from a Keras file without an activation: give "
                         f"--activation=softmax (one correct class) or sigmoid (several)"
                         )  # fmt: skip
    return "softmax"
