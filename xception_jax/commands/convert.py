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

from absl import flags

from xception_jax.commands import cli
from xception_jax.errors import UsageError

_FORMATS = ["keras", "timm", "xception_jax"]
_FROM = flags.DEFINE_enum("from", None, _FORMATS, "format of --input")
_TO = flags.DEFINE_enum("to", "xception_jax", _FORMATS, "format of --output")
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "name of the model, see python -m xception_jax.models; weights of xception_jax contain it",
)
_INPUT = flags.DEFINE(
    cli.WEIGHTS, "input", None, "Keras: .weights.h5, .h5, .keras; timm: .safetensors, .pth; "
    "xception_jax: a converted file, or a run's folder"
)  # fmt: skip
_OUTPUT = flags.DEFINE(
    cli.PATH, "output", None, "xception_jax: .safetensors; Keras: .weights.h5 or .h5; timm: "
    ".safetensors or .pth"
)  # fmt: skip
_STEP = flags.DEFINE_string("step", "latest", "checkpoint of a run: latest, best or a number")
_WEIGHTS = flags.DEFINE_enum(
    "weights",
    None,
    ["ema", "raw"],
    "weights of a run: ema (averaged) or raw; by default averaged if the run has them",
)
_JSON = flags.DEFINE_bool("json", False, "print one line of JSON instead of text")
flags.declare_key_flag(cli.IMPORTS.name)


def main() -> None:
    if not (_FROM.value and _INPUT.value and _OUTPUT.value):
        raise UsageError("--from, --input and --output are needed; --help shows examples")
    from xception_jax.convert import convert

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
        print(json.dumps(result.to_json()))
        return
    from xception_jax.utils.console import make_console

    console = make_console()
    for note in result.notes:
        console.print(note)
    head = f"{result.num_classes:,} classes" if result.num_classes else "no classifier"
    console.print(f"{result.model}, {head}: {result.tensors} tensors in {result.output}")
