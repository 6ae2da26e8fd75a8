r"""Writes a model as a program that JAX alone runs: StableHLO, weights included.

    python -m xception_jax.export --workdir=runs/digits --output=exported/digits
    python -m xception_jax.export --workdir=runs/digits --output=exported/best --step=best \
        --weights=raw --platforms=cpu
    python -m xception_jax.export --input=xception.safetensors --output=exported/xception
    python -m xception_jax.export --input=model.safetensors --model=xception65 \
        --output=exported/xception65                             # timm's own file
    python -m xception_jax.export --check=exported/digits        # is it whole, does it run here

Images go in, as uint8 [batch, height, width, 3]; probabilities come out. classify.py beside the
program runs it on image files; docs/export.md has more.
"""

import json
import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from xception_jax import cli
from xception_jax import config as config_lib
from xception_jax.errors import UsageError, nearest
from xception_jax.text import quoted

_WORKDIR = flags.DEFINE(cli.PATH, "workdir", None, "folder of the run")
_INPUT = flags.DEFINE(
    cli.PATH, "input", None, "instead of --workdir: weights as config.init_from takes them: a "
    "Keras or timm file, a converted one, a run's folder or RUN/checkpoints/STEP"
)  # fmt: skip
_MODEL = flags.DEFINE_string(
    "model", None, "its name, where --input is a Keras or timm file, which does not say it"
)
_OUTPUT = flags.DEFINE(
    cli.PATH, "output", None, "folder to make; one that holds something is refused"
)
_STEP = flags.DEFINE_string("step", "latest", "of a run: latest, best or a number")
_WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["ema", "raw"], "of a run; unless given, averaged if the run has them"
)
_ACTIVATION = flags.DEFINE_enum(
    "activation",
    None,
    ["softmax", "sigmoid"],
    "what makes probabilities of the logits; unless given, as the run was trained, as a Keras "
    "file says, and of timm's weights softmax",
)
_PLATFORMS = flags.DEFINE_list(
    "platforms", ["cpu", "cuda", "tpu"], "that the program is for: of cpu, cuda, rocm, tpu"
)
_RESIZE = flags.DEFINE_enum(
    "resize",
    None,
    ["inside", "outside"],
    "inside: the program takes any image and crops and resizes as the run's evaluation; outside: "
    "it takes images of the model's size; unless given, inside where data.eval_preset is area, "
    "which it is not of Keras' and timm's weights",
)
_CHECK = flags.DEFINE(cli.PATH, "check", None, "instead: an exported folder to check and to run")
_JSON = flags.DEFINE_bool("json", False, "print one line of JSON instead of a table")

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
    from xception_jax.data.stream import Images
    from xception_jax.training import sharding, state
    from xception_jax.training.trained import Trained

    _check_target(platforms, output)
    trained = Trained.find(workdir, step, weights)
    meta, config = trained.meta, trained.config
    make_model = state.model_maker(config, len(meta.class_names))
    data = config.data
    return _export(
        output,
        state.structure_of(make_model, data.image_size),
        trained.weights(sharding.replicated(sharding.make_mesh(1))),
        Images(
            data.image_size, eval_preset=data.eval_preset, eval_crop=data.eval_crop,
            exif=config_lib.applies_exif(config),
        ),
        activation=activation or activation_of(config, trained.metrics),
        platforms=platforms,
        resize=resize,
        class_names=meta.class_names,
        source={
            "model": config.model.name, "step": trained.step, "weights": trained.kind,
            "data": meta.dataset,
        },
    )  # fmt: skip


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
    import jax.numpy as jnp

    from xception_jax.data.stream import Images
    from xception_jax.training import state
    from xception_jax.weights import sources
    from xception_jax.weights.tensors import abstract, variables

    _check_target(platforms, output)
    file = sources.open_source(path)
    file.check_whole()
    name, classes, made_for = model or file.model, file.num_classes, file.preprocessing
    if name is None:
        raise UsageError(f"--model is needed: {path} does not say which of "
                         f"{', '.join(sources.names(file.format))} it is")  # fmt: skip
    if classes is None:
        raise UsageError(f"--input={path} has no classifier, so there are no probabilities")
    if not {"image_size", "eval_preset"} <= made_for.keys():
        raise UsageError(f"--input={path} does not say what images its weights were made for")
    activation = activation or _activation_of_file(file)
    about = file.about(name)
    built = {key: value for key, value in about.overrides.items() if value is not None}
    network = abstract(name, classes, built)
    tensors = file.tensors(network, name)
    for key, variable in variables(network).items():
        variable.set_value(jnp.asarray(tensors[key]))
    network.matmul_precision = "float32"
    structure, params, batch_stats = state.split(network)
    return _export(
        output,
        structure,
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


def _check_target(platforms: tuple[str, ...], output: pathlib.Path) -> None:
    """Refuses an unknown platform, and an output that holds something, before any work."""
    from xception_jax import serving

    for platform in platforms:
        if platform not in _KNOWN:
            raise UsageError(
                f"no platform {platform!r}{nearest(platform, _KNOWN) or ';'} "
                f"There are: {', '.join(_KNOWN)}"
            )
    serving.check_output(output)


def _export(
    output: pathlib.Path,
    structure: Any,
    weights: Any,
    images: Any,
    *,
    crop_known: bool = True,
    activation: str,
    platforms: tuple[str, ...],
    resize: str | None,
    class_names: tuple[str, ...],
    source: dict[str, Any],
) -> dict[str, Any]:
    """Exports a model; see `serving.export` and `serving.describe`."""
    from xception_jax import serving

    if activation == "softmax" and len(class_names) == 1:
        raise UsageError("softmax over one class is 1.0 for every image; give --activation=sigmoid")

    exported = serving.export(
        structure,
        weights,
        images,
        activation=activation,
        resizes=(resize or ("inside" if images.eval_preset == "area" else "outside")) == "inside",
        platforms=platforms,
    )
    about = serving.describe(
        exported, images, activation=activation, class_names=class_names, source=source,
        crop_known=crop_known,
    )  # fmt: skip
    return serving.write(output, exported, about)


def activation_of(config: ConfigDict, metrics: dict[str, float] | None) -> str:
    """What makes probabilities of the logits: the counterpart of the loss.

    An evaluated checkpoint tells whether the data has several labels an image; of another one the
    data itself is asked.
    """
    if metrics is not None or config.loss.name != "auto":
        return config_lib.loss_name(config, "map" in (metrics or {}))
    source = config_lib.open_split(config, config.data.eval_split)
    return config_lib.loss_name(config, source.multilabel)


def _activation_of_file(file: Any) -> str:
    """What makes probabilities of the logits of a converted file.

    Raises:
      UsageError: neither the file nor the library that its weights are of tells.
    """
    if file.activation is not None:
        return file.activation
    origin = file.origin
    while "of" in origin:
        origin = origin["of"]
    if "step" in origin:
        raise UsageError(f"--input={file.path} is of a run, and does not say what its loss was: "
                         f"give --activation=softmax or sigmoid")  # fmt: skip
    if origin.get("format") == "keras":
        raise UsageError(f"--input={file.path} is of a Keras file that does not say what makes "
                         f"probabilities of the logits: give --activation=softmax (one of the "
                         f"classes is right) or sigmoid (each by itself)")  # fmt: skip
    return "softmax"


def main() -> None:
    check, workdir, output = _CHECK.value, _WORKDIR.value, _OUTPUT.value
    given = workdir or _INPUT.value
    if check and (given or output):
        raise UsageError("--check stands alone: without --workdir, --input and --output")
    if _INPUT.value and workdir:
        raise UsageError("--input and --workdir both name weights; give one of them")
    if check:
        _tell_check(check)
        return
    if not given or not output:
        raise UsageError("--workdir and --output are needed, or --input and --output, or --check; "
                         "--help shows an example")  # fmt: skip
    from xception_jax import console

    about = _export_any(
        given,
        output,
        activation=_ACTIVATION.value,
        platforms=tuple(_PLATFORMS.value),
        resize=_RESIZE.value,
    )
    if _JSON.value:
        print(json.dumps(about))
        return
    rows = [(name, _shown(value)) for name, value in about.items() if name != "classes"]
    rows.append(("classes", f"{len(about['classes']):,}"))
    out = console.make_console()
    out.print(console.table(str(output), ("", ""), rows))
    out.print(f"classify images with it: python {quoted(output / 'classify.py')} IMAGE...")


def _export_any(path: pathlib.Path, output: pathlib.Path, **how: Any) -> dict[str, Any]:
    """Exports what a path means; see `sources.open_source`."""
    from xception_jax.weights import sources

    run = (path, _STEP.value) if _WORKDIR.value else sources.run_of(path, _STEP.value)
    if run is None:
        if path.exists() and (_STEP.value != "latest" or _WEIGHTS.value):
            raise UsageError(f"--step and --weights are of a run, and --input={path} is a file")
        return export_file(path, output, model=_MODEL.value, **how)
    if _MODEL.value:
        raise UsageError(f"--model is of a Keras or timm file; the run in {run[0]} knows its own")
    cli.keep_compiled()
    return export_run(run[0], output, step=run[1], weights=_WEIGHTS.value, **how)


def _tell_check(folder: pathlib.Path) -> None:
    """Checks an export and says what was checked; raises as `serving.check`."""
    from xception_jax import console, serving

    found = serving.check(folder)
    if _JSON.value:
        print(json.dumps(found))
        return
    sums = (
        f"their sums differ from 1 by at most {found['largest_difference']:.1e} "
        f"({found['tolerance']:g} is allowed)"
        if found["tolerance"]
        else "each of them from 0 to 1"
    )
    height, width = found["sides"]
    out = console.make_console()
    out.print(f"{folder}: {len(found['files'])} files are as they were written: "
              f"{', '.join(found['files'])}")  # fmt: skip
    out.print(f"the program runs on {found['platform']}: {found['pictures']} pictures of "
              f"{height} x {width} random pixels gave probabilities, {sums}")  # fmt: skip


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(part)}" for key, part in value.items())
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    cli.run(main, __doc__)
