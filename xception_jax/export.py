"""A model as a program that JAX alone runs: StableHLO, weights included. See docs/export.md."""

if __name__ == "__main__":  # first: --help and a misspelt flag need not wait for JAX
    from xception_jax import commands

    commands.run("export")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xception_jax import serving
from xception_jax.errors import UsageError, nearest
from xception_jax.serving import ExportCheck, check, inference
from xception_jax.serving.inference import Inference

__all__ = ["ExportCheck", "ExportResult", "check", "export_file", "export_run"]

_KNOWN = ("cpu", "cuda", "rocm", "tpu")


@dataclass(frozen=True)
class ExportResult:
    """An export that was written.

    Attributes:
      folder: holds the program, `model.json`, README and `classify.py`.
      activation: `softmax` or `sigmoid`, which makes probabilities of the logits.
      platforms: that the program is for.
      class_names: what each output means, in order.
      about: all that `model.json` says, see docs/export.md.
    """

    folder: Path
    activation: str
    platforms: tuple[str, ...]
    class_names: tuple[str, ...]
    about: Mapping[str, object]

    def to_json(self) -> dict[str, object]:
        """What `--json` prints."""
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
      output: the folder to make; one that holds something is refused.
      step: `latest`, `best` or a number.
      weights: `ema` (averaged) or `raw`; None: averaged if the run has them.
      activation: `softmax` or `sigmoid`; None: as the run was trained.
      platforms: that the program is for: of `cpu`, `cuda`, `rocm`, `tpu`.
      resize: `inside`: the program crops and resizes any image as the run's evaluation;
        `outside`: it takes images of the model's size. None: `inside` if `data.eval_preset` is
        `area`.

    Raises:
      UsageError: there is no such run, checkpoint or platform, or the output is in use.
      RunError: the checkpoint is damaged.
    """
    _check_target(platforms, output)
    model = inference.of_run(workdir, step, weights, activation)
    return _export(output, model, platforms=platforms, resize=resize)


def export_file(
    path: Path,
    output: Path,
    *,
    model: str | None = None,
    activation: str | None = None,
    platforms: Sequence[str] = serving.PLATFORMS,
    resize: str | None = None,
) -> ExportResult:
    """Exports a file of weights, in float32; otherwise as `export_run`.

    Args:
      path: of Keras, timm or `xception_jax.convert`.
      model: its name; a converted file knows it.

    Raises:
      UsageError: it is no file of weights of that model, is damaged or has no classifier, or nobody
        can tell the activation; there is no such platform, or the output is in use.
    """
    _check_target(platforms, output)
    inferred = inference.of_file(path, model, activation)
    return _export(output, inferred, platforms=platforms, resize=resize)


def _check_target(platforms: Sequence[str], output: Path) -> None:
    """Refuses an unknown platform, and an output that holds something, before any work."""
    for platform in platforms:
        if platform not in _KNOWN:
            raise UsageError(
                f"no platform {platform!r}{nearest(platform, _KNOWN) or ';'} "
                f"There are: {', '.join(_KNOWN)}"
            )
    serving.check_output(output)


def _export(
    output: Path, model: Inference, *, platforms: Sequence[str], resize: str | None
) -> ExportResult:
    """Exports a model; see `serving.export` and `serving.describe`."""
    if model.activation == "softmax" and len(model.class_names) == 1:
        raise UsageError("softmax over one class is 1.0 for every image; give --activation=sigmoid")
    by = resize or ("inside" if model.images.eval_preset == "area" else "outside")
    exported = serving.export(
        model.graphdef,
        model.weights,
        model.images,
        activation=model.activation,
        resizes=by == "inside",
        platforms=tuple(platforms),
    )
    about = serving.describe(
        exported, model.images, activation=model.activation, class_names=model.class_names,
        source=model.source, crop_known=model.crop_known,
    )  # fmt: skip
    about = serving.write(output, exported, about)
    return ExportResult(output, model.activation, tuple(platforms), model.class_names, about)
