"""Exports a model with its weights as StableHLO, which needs only JAX, or ONNX: docs/export.md."""

if __name__ == "__main__":  # first, so that --help and a misspelt flag do not wait for JAX
    from xception_jax import commands

    commands.run("export")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xception_jax import serving
from xception_jax.errors import UsageError, nearest
from xception_jax.finetuning import decisions
from xception_jax.serving import ExportCheck, Pushed, card, check, inference, onnx_files, push
from xception_jax.serving.inference import Inference
from xception_jax.training.trained import Trained

__all__ = ["ExportCheck", "ExportResult", "Pushed", "check", "export_file", "export_run", "push"]

FORMATS = ("stablehlo", "onnx")
_KNOWN = ("cpu", "cuda", "rocm", "tpu")


@dataclass(frozen=True)
class ExportResult:
    """A completed export.

    Attributes:
      folder: has the program, `model.json`, README and `classify.py`.
      activation: `softmax` or `sigmoid`, which turns logits into probabilities.
      platforms: the platforms of a StableHLO program.
      class_names: the name of each output, in order.
      about: the content of `model.json`, see docs/export.md.
      notes: lines about the weights for the user.
    """

    folder: Path
    activation: str
    platforms: tuple[str, ...]
    class_names: tuple[str, ...]
    about: Mapping[str, object]
    notes: tuple[str, ...] = ()

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
    format: str = "stablehlo",
    scale: str = "inside",
) -> ExportResult:
    """Exports a checkpoint of a run.

    Args:
      workdir: the run's folder.
      output: the folder to create; it must be empty if it exists.
      step: `latest`, `best` or a number.
      weights: `ema` (averaged) or `raw`; None: averaged if the run has them.
      activation: `softmax` or `sigmoid`; None: as the run was trained.
      platforms: of StableHLO: any of `cpu`, `cuda`, `rocm`, `tpu`.
      resize: `inside`: the program crops and resizes any image as the run's evaluation does.
        `outside`: it takes images of the model's size. None: `inside` if `data.eval_preset` is
        `area`, and `outside` for ONNX.
      format: `stablehlo` or `onnx`.
      scale: of ONNX. `inside`: the input is uint8 `[batch, size, size, 3]`. `outside`: it is
        float32 `[batch, 3, size, size]`, from -1 to 1.

    Raises:
      UsageError: there is no such run, checkpoint or platform, the output is not empty, or the
        model cannot be written in this format.
      RunError: the checkpoint is damaged.
    """
    _check_target(platforms, output, format, resize, scale)
    model = inference.of_run(workdir, step, weights, activation)
    model = replace(model, source=model.source | _history(workdir, model.source))
    return _export(output, model, platforms, resize, format, scale)


def export_file(
    path: str | Path,
    output: Path,
    *,
    model: str | None = None,
    activation: str | None = None,
    platforms: Sequence[str] = serving.PLATFORMS,
    resize: str | None = None,
    format: str = "stablehlo",
    scale: str = "inside",
) -> ExportResult:
    """Exports a weights file, in float32.

    Args:
      path: a file of Keras, timm or `xception_jax.convert`.
      output: see `export_run`.
      model: the model's name; None: a converted file contains it.
      activation: `softmax` or `sigmoid`; None: from the file.
      platforms: see `export_run`.
      resize: see `export_run`.
      format: see `export_run`.
      scale: see `export_run`.

    Raises:
      UsageError: the file is damaged, not of this model or has no classifier, or its activation is
        unknown; there is no such platform, or the output is not empty.
    """
    _check_target(platforms, output, format, resize, scale)
    inferred = inference.of_file(path, model, activation)
    return _export(output, inferred, platforms, resize, format, scale)


def _history(workdir: Path, source: Mapping[str, Any]) -> dict[str, Any]:
    """What the model card of a checkpoint says of its training, see `card.facts_of`."""
    trained = Trained.find(workdir, str(source["step"]), source["weights"])
    facts, decided = card.facts_of(trained), decisions.read(workdir)
    kept = decided.result if decided is not None else None
    if kept and kept["tested"] and kept["step"] == trained.step and trained.is_evaluated:
        others = ("workdir", "finished", "step", "classes")
        tested = {name: value for name, value in kept.items() if name not in others}
        facts["results"] = [tested, *facts.get("results", ())]
    return facts


def _check_target(
    platforms: Sequence[str], output: Path, format: str, resize: str | None, scale: str
) -> None:
    """Refuses what cannot be made, or an output that is not empty, before any work."""
    if format not in FORMATS:
        raise UsageError(f"no format {format!r}; there are: {', '.join(FORMATS)}")
    if format == "onnx":
        if resize == "inside":
            raise UsageError("ONNX does not resize inside; leave out --resize, and resize before")
        onnx_files.check_installed()
    elif scale != "inside":
        raise UsageError("--scale=outside is of --format=onnx; StableHLO scales by itself")
    for platform in platforms:
        if platform not in _KNOWN:
            raise UsageError(
                f"no platform {platform!r}{nearest(platform, _KNOWN) or ';'} "
                f"There are: {', '.join(_KNOWN)}"
            )
    serving.check_output(output)


def _export(
    output: Path,
    model: Inference,
    platforms: Sequence[str],
    resize: str | None,
    format: str,
    scale: str,
) -> ExportResult:
    """Exports a model; see `serving.export`, `serving.describe` and `serving.onnx_files`."""
    if format == "onnx":
        about = onnx_files.write(output, model, scales=scale == "inside")
        return ExportResult(output, model.activation, (), model.class_names, about, model.notes)
    by = resize or ("inside" if model.images.eval_preset == "area" else "outside")
    exported = serving.export(
        model.graphdef,
        model.weights,
        model.images,
        activation=model.activation,
        temperature=model.temperature,
        resizes=by == "inside",
        platforms=tuple(platforms),
    )
    about = serving.describe(
        exported, model.images, activation=model.activation, class_names=model.class_names,
        source=model.source, crop_known=model.crop_known, mean=model.mean, std=model.std,
    )  # fmt: skip
    about = serving.write(output, exported, about)
    return ExportResult(
        output, model.activation, tuple(platforms), model.class_names, about, model.notes
    )
