r"""Writes a model as a program with its weights: StableHLO, which JAX alone runs, or ONNX.

    python -m xception_jax.export --workdir=runs/digits --output=exported/digits
    python -m xception_jax.export --workdir=runs/digits --output=exported/best --step=best \
        --weights=raw --platforms=cpu
    python -m xception_jax.export --input=xception.safetensors --output=exported/xception
    python -m xception_jax.export --input=model.safetensors --model=xception65 \
        --output=exported/xception65                             # timm's own file
    python -m xception_jax.export --workdir=runs/digits --output=exported/onnx --format=onnx
    python -m xception_jax.export --check=exported/digits        # is it intact, does it run here
    python -m xception_jax.export --workdir=runs/digits --output=exported/digits --push=hf:me/digits

The input is images, uint8 [batch, height, width, 3]; the output is probabilities. classify.py
beside the program runs it on image files; see docs/export.md.
"""

import dataclasses
import json
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from xception_jax.commands import cli
from xception_jax.errors import UsageError
from xception_jax.utils.text import quoted

if TYPE_CHECKING:
    from xception_jax.export import ExportResult

_WORKDIR = flags.DEFINE(cli.PATH, "workdir", None, "folder of the run")
_INPUT = flags.DEFINE(
    cli.WEIGHTS, "input", None, "instead of --workdir: weights as config.init_from takes them: a "
    "name (hf:..., keras:...), a Keras or timm file, a converted one, a run's folder or "
    "RUN/checkpoints/STEP"
)  # fmt: skip
_MODEL = flags.DEFINE_string(
    "model", None, "name of the model, if --input is a Keras or timm file, which does not name it"
)
_OUTPUT = flags.DEFINE(cli.PATH, "output", None, "folder to make; must be empty or missing")
_STEP = flags.DEFINE_string("step", "latest", "checkpoint of a run: latest, best or a number")
_WEIGHTS = flags.DEFINE_enum(
    "weights",
    None,
    ["ema", "raw"],
    "weights of a run: ema (averaged) or raw; by default averaged if the run has them",
)
_ACTIVATION = flags.DEFINE_enum(
    "activation",
    None,
    ["softmax", "sigmoid"],
    "function from logits to probabilities; by default as in the run's training or in the Keras "
    "file, and softmax for timm's weights",
)
_FORMAT = flags.DEFINE_enum(
    "format",
    "stablehlo",
    ["stablehlo", "onnx"],
    "stablehlo: a program for JAX; onnx: for ONNX Runtime, OpenVINO and others, in float32, for "
    "images of the model's size (needs the extra [onnx])",
)
_PLATFORMS = flags.DEFINE_list(
    "platforms", ["cpu", "cuda", "tpu"], "of stablehlo: platforms: cpu, cuda, rocm, tpu"
)
_SCALE = flags.DEFINE_enum(
    "scale",
    "inside",
    ["inside", "outside"],
    "of onnx: inside: the input is uint8 [batch, size, size, 3]; outside: it is float32 "
    "[batch, 3, size, size], from -1 to 1",
)
_RESIZE = flags.DEFINE_enum(
    "resize",
    None,
    ["inside", "outside"],
    "inside: the program takes images of any size and crops and resizes as the run's evaluation; "
    "outside: it takes images of the model's size; by default inside if data.eval_preset is area, "
    "else (also for Keras' and timm's weights, and for onnx) outside",
)
_CHECK = flags.DEFINE(cli.PATH, "check", None, "instead: an exported folder to check and run")
_PUSH = flags.DEFINE_string(
    "push", None, "also upload the folder of --output or --check to this repository of the Hugging "
    "Face Hub, hf:USER/NAME (needs the extra [hub]); a new one is public"
)  # fmt: skip
_JSON = flags.DEFINE_bool("json", False, "print one line of JSON instead of a table")
flags.declare_key_flag(cli.IMPORTS.name)

# Of a longer list, the table has the length.
_MOST_SHOWN = 10


def main() -> None:
    check, workdir, output = _CHECK.value, _WORKDIR.value, _OUTPUT.value
    given = workdir or _INPUT.value
    if check and (given or output):
        raise UsageError("--check excludes --workdir, --input and --output")
    if _INPUT.value and workdir:
        raise UsageError("--input and --workdir both name weights; give one of them")
    if _PUSH.value and (check or output):
        from xception_jax.serving import upload

        upload.repository_of(_PUSH.value)  # before the work
    if check:
        _print_check(check)
        return
    if not given or not output:
        raise UsageError("--workdir and --output are needed, or --input and --output, or --check; "
                         "--help shows an example")  # fmt: skip
    if _FORMAT.value == "onnx" and _PLATFORMS.present:
        raise UsageError("--platforms is of --format=stablehlo; ONNX runs on any platform")
    from xception_jax.utils import console

    result = _export_any(
        given,
        output,
        activation=_ACTIVATION.value,
        platforms=tuple(_PLATFORMS.value),
        resize=_RESIZE.value,
        format=_FORMAT.value,
        scale=_SCALE.value,
    )
    if not _JSON.value:
        rows = [(name, _shown(value)) for name, value in result.about.items() if name != "classes"]
        rows.append(("classes", f"{len(result.class_names):,}"))
        out = console.make_console()
        out.print(console.table(str(output), ("", ""), rows))
        out.print(f"classify images with it: python {quoted(output / 'classify.py')} IMAGE...")
    _push(output, result.to_json())


def _push(folder: pathlib.Path, told: dict[str, Any]) -> None:
    """Uploads an export if it is asked for, and says so or prints all as JSON."""
    if _PUSH.value:
        from xception_jax import export

        pushed = export.push(folder, _PUSH.value)
        told = {**told, "pushed": dataclasses.asdict(pushed)}
    if _JSON.value:
        print(json.dumps(told))
    elif _PUSH.value:
        print(f"pushed to {pushed.url}, commit {pushed.commit}")


def _export_any(path: Any, output: pathlib.Path, **how: Any) -> "ExportResult":
    """Exports a run or a file; see `pretrained.open_pretrained`."""
    from xception_jax import export
    from xception_jax.utils import console
    from xception_jax.weights import pretrained

    named = not isinstance(path, pathlib.Path)
    run = None if named else pretrained.run_of(path, _STEP.value)
    if _WORKDIR.value:
        run = path, _STEP.value
    if run is None:
        if (named or path.exists()) and (_STEP.value != "latest" or _WEIGHTS.value):
            raise UsageError(f"--step and --weights are of a run, and --input={path} is a file")
        exported = export.export_file(path, output, model=_MODEL.value, **how)
        for note in exported.notes:
            console.make_console(stderr=True).print(note)
        return exported
    if _MODEL.value:
        raise UsageError(f"--model is of a Keras or timm file; the run in {run[0]} knows its own")
    cli.keep_compiled()
    return export.export_run(run[0], output, step=run[1], weights=_WEIGHTS.value, **how)


def _print_check(folder: pathlib.Path) -> None:
    """Checks an export and prints the result; raises as `export.check`."""
    from xception_jax import export
    from xception_jax.utils import console

    found = export.check(folder)
    if _JSON.value:
        _push(folder, found.to_json())
        return
    sums = (
        f"their sums differ from 1 by at most {found.largest_difference:.1e} "
        f"({found.tolerance:g} is allowed)"
        if found.tolerance
        else "each of them from 0 to 1"
    )
    height, width = found.sides
    out = console.make_console()
    out.print(f"{folder}: {len(found.files)} files are as they were written: "
              f"{', '.join(found.files)}")  # fmt: skip
    out.print(f"the program runs on {found.platform}: {found.pictures} pictures of "
              f"{height} x {width} random pixels gave probabilities, {sums}")  # fmt: skip
    _push(folder, {})


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(part)}" for key, part in value.items())
    if isinstance(value, list) and len(value) > _MOST_SHOWN:
        return f"{len(value):,} values"
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, list) else str(value)
