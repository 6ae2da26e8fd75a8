r"""Writes a checkpoint as a program that JAX alone runs: StableHLO, weights included.

    python -m xception_jax.export --workdir=runs/digits --output=exported/digits
    python -m xception_jax.export --workdir=runs/digits --output=exported/best --step=best \
        --weights=raw --platforms=cpu
    python -m xception_jax.export --check=exported/digits        # is it whole, does it run here

Images of any size go in, as uint8 [batch, height, width, 3]; probabilities come out. docs/export.md
shows how to load and run it.
"""

import json
import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from xception_jax import cli
from xception_jax import config as config_lib
from xception_jax.errors import UsageError, nearest

_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
_OUTPUT = flags.DEFINE_string("output", None, "folder to make; one that holds something is refused")
_STEP = flags.DEFINE_string("step", "latest", "checkpoint: latest, best or a number")
_WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["ema", "raw"], "averaged or not; unless given, averaged if the run has them"
)
_PLATFORMS = flags.DEFINE_list(
    "platforms", ["cpu", "cuda", "tpu"], "that the program is for: of cpu, cuda, rocm, tpu"
)
_RESIZE = flags.DEFINE_enum(
    "resize",
    None,
    ["inside", "outside"],
    "inside: the program takes any image and crops and resizes as the run's evaluation; outside: "
    "it takes images of the model's size; unless given, inside where data.eval_preset is area",
)
_CHECK = flags.DEFINE_string("check", None, "instead: an exported folder to check and to run")
_JSON = flags.DEFINE_bool("json", False, "print one line of JSON instead of a table")

_KNOWN = ("cpu", "cuda", "rocm", "tpu")


def export_run(
    workdir: pathlib.Path,
    output: pathlib.Path,
    *,
    step: str = "latest",
    weights: str | None = None,
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
    from xception_jax import serving
    from xception_jax.data.stream import Images
    from xception_jax.training import sharding, state
    from xception_jax.training.trained import Trained

    for platform in platforms:
        if platform not in _KNOWN:
            raise UsageError(
                f"no platform {platform!r}{nearest(platform, _KNOWN) or ';'} "
                f"There are: {', '.join(_KNOWN)}"
            )
    serving.check_output(output)
    trained = Trained.find(workdir, step, weights)
    meta, config = trained.meta, trained.config
    make_model = state.model_maker(config, len(meta.class_names))
    data = config.data
    images = Images(data.image_size, eval_preset=data.eval_preset, eval_crop=data.eval_crop)
    activation = activation_of(config, trained.metrics)
    exported = serving.export(
        state.structure_of(make_model, data.image_size),
        trained.weights(sharding.replicated(sharding.make_mesh(1))),
        images,
        activation=activation,
        resizes=(resize or ("inside" if data.eval_preset == "area" else "outside")) == "inside",
        platforms=platforms,
    )
    source = {
        "model": config.model.name, "step": trained.step, "weights": trained.kind,
        "data": meta.dataset,
    }  # fmt: skip
    about = serving.describe(
        exported, images, activation=activation, class_names=meta.class_names, source=source
    )
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


def main() -> None:
    check, workdir, output = _CHECK.value, _WORKDIR.value, _OUTPUT.value
    if check and (workdir or output):
        raise UsageError("--check stands alone: without --workdir and --output")
    from xception_jax import console, serving
    from xception_jax.training.workdir import read_config

    if check:
        about = serving.check(pathlib.Path(check))
    elif workdir and output:
        cli.keep_compiled(
            read_config(pathlib.Path(workdir)).compilation_cache, pathlib.Path(workdir)
        )
        about = export_run(
            pathlib.Path(workdir),
            pathlib.Path(output),
            step=_STEP.value,
            weights=_WEIGHTS.value,
            platforms=tuple(_PLATFORMS.value),
            resize=_RESIZE.value,
        )
    else:
        raise UsageError("--workdir and --output are needed, or --check; --help shows an example")
    if _JSON.value:
        print(json.dumps(about))
        return
    rows = [(name, _shown(value)) for name, value in about.items() if name != "classes"]
    rows.append(("classes", f"{len(about['classes']):,}"))
    console.make_console().print(console.table(check or output or "", ("", ""), rows))


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(part)}" for key, part in value.items())
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    cli.run(main, __doc__)
