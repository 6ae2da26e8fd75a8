r"""Converts weights: from and to Keras, timm and this project's own file.

    python -m xception_jax.convert --from=keras --model=xception \
        --input=xception_weights_tf_dim_ordering_tf_kernels.h5 --output=xception.safetensors
    python -m xception_jax.convert --from=timm --model=xception65 --input=model.safetensors \
        --output=xception65.safetensors
    python -m xception_jax.convert --from=xception_jax --to=keras --input=runs/pets \
        --output=pets.weights.h5

Every tensor is accounted for: one that is missing, surplus or of another shape is an error.
"""

import json
import os
import pathlib
from typing import Any

from absl import flags

from xception_jax import cli
from xception_jax.errors import UsageError

_FORMATS = ["keras", "timm", "xception_jax"]
_FROM = flags.DEFINE_enum("from", None, _FORMATS, "whose weights --input holds")
_TO = flags.DEFINE_enum("to", "xception_jax", _FORMATS, "whose --output will be")
_MODEL = flags.DEFINE_string(
    "model", None, "its name, see python -m xception_jax.models; xception_jax's own weights know it"
)
_INPUT = flags.DEFINE(
    cli.PATH, "input", None, "Keras: .weights.h5, .h5, .keras; timm: .safetensors, .pth; "
    "xception_jax: a converted file, or a run's folder"
)  # fmt: skip
_OUTPUT = flags.DEFINE(
    cli.PATH, "output", None, "xception_jax: .safetensors; Keras: .weights.h5 or .h5; timm: "
    ".safetensors or .pth"
)  # fmt: skip
_STEP = flags.DEFINE_string("step", "latest", "of a run: latest, best or a number")
_WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["ema", "raw"], "of a run; unless given, averaged if the run has them"
)
_JSON = flags.DEFINE_bool("json", False, "print one line of JSON instead of text")

# How the names of files end that can be written.
ENDINGS = {
    "keras": (".weights.h5", ".h5", ".hdf5"),
    "timm": (".safetensors", ".pth"),
    "xception_jax": (".safetensors",),
}


def convert(
    path: pathlib.Path,
    output: pathlib.Path,
    *,
    source_format: str,
    target_format: str = "xception_jax",
    model: str | None = None,
    step: str = "latest",
    weights: str | None = None,
) -> dict[str, Any]:
    """Converts weights; the arguments are the command's flags.

    Returns:
      `model`, `num_classes`, `tensors` (their number), `output`, and `notes`, what is to be said.

    Raises:
      UsageError: the weights are not of that model, or cannot be read or written; nothing was
        written.
    """
    _check_output(output, target_format)
    from xception_jax.weights import sources
    from xception_jax.weights.tensors import abstract

    source = sources.open_source(path, format=source_format, step=step, weights=weights)
    source.check_whole()
    name = model or source.model
    if name is None:
        raise UsageError(f"--model is needed: {path} does not say which of them it is")
    overrides = sources.effective(name, source.overrides(name))
    built = {key: value for key, value in overrides.items() if value is not None}
    shapes = abstract(name, source.num_classes, built)
    ours = source.tensors(shapes, name)
    about = source.about(name)
    library = sources.effective(name, sources.library_overrides(target_format, name))
    notes = source.notes()
    if target_format != "xception_jax":
        notes += [
            f"NOTE: these weights are for {key}={value!r}; {target_format}'s {name} has "
            f"{library[key]!r}"
            for key, value in about.overrides.items()
            if value != library[key]
        ]
    draft = output.with_name(output.name + ".tmp")
    try:
        _write(draft, output.name, target_format, shapes, ours, about)
        os.replace(draft, output)
    except OSError as error:
        raise UsageError(f"--output={output} cannot be written: {error}") from None
    finally:
        draft.unlink(missing_ok=True)
    return {
        "model": name,
        "num_classes": source.num_classes,
        "tensors": len(ours),
        "output": str(output),
        "notes": notes,
    }


def _check_output(output: pathlib.Path, format: str) -> None:
    if not output.name.endswith(ENDINGS[format]):
        why = "a .keras file needs a config that only Keras makes; " if output.suffix == ".keras" \
            else ""  # fmt: skip
        raise UsageError(f"--output={output}: {why}--to={format} writes a file whose name ends in "
                         f"{' or '.join(ENDINGS[format])}")  # fmt: skip
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise UsageError(f"--output={output} is a folder, or in one that is not there")


def _write(
    draft: pathlib.Path, name: str, format: str, shapes: Any, ours: dict[str, Any], about: Any
) -> None:
    from xception_jax.weights import converted, keras, keras_files, timm, timm_files
    from xception_jax.weights.tensors import to_theirs

    if format == "keras":
        if getattr(shapes, "head", None) is not None and shapes.head.fc:
            raise UsageError("Keras' models have no fully connected layers before the classifier")
        layers = keras.layers(shapes)
        theirs = to_theirs([tensor for layer in layers for tensor in layer.tensors], ours)
        keras_files.write(draft, name, layers, theirs)
    elif format == "timm":
        timm_files.write(draft, name, to_theirs(timm.tensors(shapes), ours))
    else:
        converted.write(draft, about, ours)


def main() -> None:
    if not (_FROM.value and _INPUT.value and _OUTPUT.value):
        raise UsageError("--from, --input and --output are needed; --help shows examples")
    result = convert(
        _INPUT.value,
        _OUTPUT.value,
        source_format=_FROM.value,
        target_format=_TO.value,
        model=_MODEL.value,
        step=_STEP.value,
        weights=_WEIGHTS.value,
    )
    if _JSON.value:
        print(json.dumps(result))
        return
    from xception_jax.console import make_console

    console = make_console()
    for note in result["notes"]:
        console.print(note)
    classes = result["num_classes"]
    head = f"{classes:,} classes" if classes else "no classifier"
    console.print(f"{result['model']}, {head}: {result['tensors']} tensors in {result['output']}")


if __name__ == "__main__":
    cli.run(main, __doc__)
