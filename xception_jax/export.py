"""A model as a program that JAX alone runs: StableHLO, weights included. See docs/export.md."""

if __name__ == "__main__":  # first: --help and a misspelt flag need not wait for JAX
    from xception_jax import commands

    commands.run("export")

import pathlib
from typing import Any

from xception_jax import serving
from xception_jax.errors import UsageError, nearest
from xception_jax.serving import inference
from xception_jax.serving.inference import Inference

_KNOWN = ("cpu", "cuda", "rocm", "tpu")


def export_run(
    workdir: pathlib.Path,
    output: pathlib.Path,
    *,
    step: str = "latest",
    weights: str | None = None,
    activation: str | None = None,
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
    resize: str | None = None,
) -> dict[str, Any]:
    """Exports a checkpoint of a run; the arguments are the command's flags.

    Returns:
      What was written to `model.json`.

    Raises:
      UsageError: there is no such run, checkpoint or platform, or the output is in use.
      RunError: the checkpoint is damaged.
    """
    _check_target(platforms, output)
    model = inference.of_run(workdir, step, weights, activation)
    return _export(output, model, platforms=platforms, resize=resize)


def export_file(
    path: pathlib.Path,
    output: pathlib.Path,
    *,
    model: str | None = None,
    activation: str | None = None,
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
    resize: str | None = None,
) -> dict[str, Any]:
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


def _check_target(platforms: tuple[str, ...], output: pathlib.Path) -> None:
    """Refuses an unknown platform, and an output that holds something, before any work."""
    for platform in platforms:
        if platform not in _KNOWN:
            raise UsageError(
                f"no platform {platform!r}{nearest(platform, _KNOWN) or ';'} "
                f"There are: {', '.join(_KNOWN)}"
            )
    serving.check_output(output)


def _export(
    output: pathlib.Path, model: Inference, *, platforms: tuple[str, ...], resize: str | None
) -> dict[str, Any]:
    """Exports a model; see `serving.export` and `serving.describe`."""
    if model.activation == "softmax" and len(model.class_names) == 1:
        raise UsageError("softmax over one class is 1.0 for every image; give --activation=sigmoid")
    inside = "inside" if model.images.eval_preset == "area" else "outside"
    exported = serving.export(
        model.graphdef,
        model.weights,
        model.images,
        activation=model.activation,
        resizes=(resize or inside) == "inside",
        platforms=platforms,
    )
    about = serving.describe(
        exported,
        model.images,
        activation=model.activation,
        class_names=model.class_names,
        source=model.source,
        crop_known=model.crop_known,
    )
    return serving.write(output, exported, about)
