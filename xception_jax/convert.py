"""Weights from and to Keras, timm and this project's own file."""

if __name__ == "__main__":  # first, so that --help and a misspelt flag do not wait for JAX
    from xception_jax import commands

    commands.run("convert")

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xception_jax.config import HALF
from xception_jax.errors import UsageError
from xception_jax.weights import converted, pretrained
from xception_jax.weights.keras import files as keras_files
from xception_jax.weights.keras import names as keras_names
from xception_jax.weights.tensors import abstract, to_library
from xception_jax.weights.timm import files as timm_files
from xception_jax.weights.timm import names as timm_names

# Endings of the files that can be written.
ENDINGS = {
    "keras": (".weights.h5", ".h5", ".hdf5"),
    "timm": (".safetensors", ".pth"),
    "xception_jax": (".safetensors",),
}


@dataclass(frozen=True)
class ConversionResult:
    """A file of weights that `convert` has written.

    Attributes:
      model: the name of the model.
      num_classes: number of classes; None if the weights have no classifier.
      tensors: how many were written.
      output: the file.
      notes: lines that a user should read, such as an override that the library does not know.
    """

    model: str
    num_classes: int | None
    tensors: int
    output: Path
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """The output of `--json`."""
        return {**asdict(self), "output": str(self.output)}


def convert(
    path: str | Path,
    output: Path,
    *,
    source_format: str,
    target_format: str = "xception_jax",
    model: str | None = None,
    step: str = "latest",
    weights: str | None = None,
) -> ConversionResult:
    """Converts weights.

    Args:
      path: a file of weights; with the source format `xception_jax` also a run's folder.
      output: the file to write, with one of the `ENDINGS`.
      source_format: format of `path`, one of `ENDINGS`.
      target_format: format of `output`, one of `ENDINGS`.
      model: name of the model, if the file does not contain it.
      step: checkpoint of a run: `latest`, `best` or a number.
      weights: weights of a run: `ema` (averaged) or `raw`; None: averaged if the run has them.

    Raises:
      UsageError: the weights are of another model, or cannot be read or written; nothing was
        written.
    """
    _check_output(output, target_format)
    source = pretrained.open_pretrained(path, format=source_format, step=step, weights=weights)
    source.check_head()
    name = source.model_name(model)
    overrides = pretrained.effective(name, source.overrides(name))
    built = {key: value for key, value in overrides.items() if value is not None}
    shapes = abstract(name, source.num_classes, built)
    ours = source.tensors(shapes, name)
    about = source.about(name)
    library = pretrained.effective(name, pretrained.library_overrides(target_format, name))
    notes = source.notes()
    if target_format != "xception_jax":
        notes += [
            f"NOTE: these weights are for {key}={value!r}; {target_format}'s {name} has "
            f"{library[key]!r}"
            for key, value in about.overrides.items()
            if value != library[key]
        ]
        if (source.mean, source.std) != (HALF, HALF):
            notes.append(f"NOTE: these weights are for pixels of mean {source.mean} and standard "
                         f"deviation {source.std}, which the file cannot say")  # fmt: skip
    draft = output.with_name(output.name + ".tmp")
    try:
        _write(draft, output.name, target_format, shapes, ours, about)
        os.replace(draft, output)
    except OSError as error:
        raise UsageError(f"--output={output} cannot be written: {error}") from None
    finally:
        draft.unlink(missing_ok=True)
    return ConversionResult(name, source.num_classes, len(ours), output, tuple(notes))


def _check_output(output: Path, format: str) -> None:
    if not output.name.endswith(ENDINGS[format]):
        why = "a .keras file needs a config that only Keras makes; " if output.suffix == ".keras" \
            else ""  # fmt: skip
        raise UsageError(f"--output={output}: {why}--to={format} writes a file whose name ends in "
                         f"{' or '.join(ENDINGS[format])}")  # fmt: skip
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise UsageError(f"--output={output} is a folder, or its folder does not exist")


def _write(
    draft: Path, name: str, format: str, shapes: Any, ours: dict[str, Any], about: Any
) -> None:
    if format == "keras":
        if getattr(shapes, "head", None) is not None and shapes.head.fc:
            raise UsageError("Keras' models have no fully connected layers before the classifier")
        layers = keras_names.layers(shapes)
        theirs = to_library([tensor for layer in layers for tensor in layer.tensors], ours)
        keras_files.write(draft, name, layers, theirs)
    elif format == "timm":
        timm_files.write(draft, name, to_library(timm_names.tensor_map(shapes), ours))
    else:
        converted.write(draft, about, ours)
