"""Lists the models: size, computation, and published accuracy.

    python -m xception_jax.models
    python -m xception_jax.models --model=xception65 --json

Parameters are for 1000 classes. Multiply-adds are for the forward pass of one image, counted in the
model's program.
"""

import json

from absl import flags

from xception_jax import models
from xception_jax.commands import cli

_MODEL = flags.DEFINE_string("model", None, "show only this model")
_JSON = flags.DEFINE_bool("json", False, "print one line of JSON instead of a table")
flags.declare_key_flag(cli.IMPORTS.name)


def main() -> None:
    from xception_jax.utils import console

    found = [models.describe(name) for name in ([_MODEL.value] if _MODEL.value else models.names())]
    if _JSON.value:
        print(json.dumps({"models": found}))
        return
    own = [
        (
            facts["name"],
            f"{facts['parameters']:,}",
            f"{facts['multiply_adds'] / 1e9:.2f}",
            str(facts["image_size"]),
            str(facts["min_image_size"]),
        )
        for facts in found
    ]
    reported = [
        (
            facts["name"],
            f"{result['top1']:g}",
            f"{result['top5']:g}",
            result["source"],
            result["download"] or "",
        )
        for facts in found
        for result in facts["published"]
    ]
    out = console.make_console()
    header = ("model", "parameters", "G multiply-adds", "side, px", "least")
    out.print(console.table("models", header, own))
    out.print(
        console.table(
            "published, % right", ("model", "top-1", "top-5", "source", "init_from"), reported
        )
    )
    out.print("keras: keras.io/api/applications; timm: its results/results-imagenet.csv")
