"""Compiles the training step for a TPU that is not there, in a process of its own.

What `xception_jax.planning.program` is to a plan, this is to `tpu_compile.py`, whose requests name
sizes and overrides of `configs/imagenet.py`, and a shorter network.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from configs import imagenet
from xception_jax import config as config_lib
from xception_jax.models import xception
from xception_jax.planning import program, steps
from xception_jax.training import state as state_lib
from xception_jax.training.build import DataSpec

NUM_CLASSES = 1000


def config_of(request: dict[str, Any], devices: int) -> ConfigDict:
    """`configs/imagenet.py` in bfloat16, at the request's sizes and with its overrides."""
    config = imagenet.get_config()
    config.model.dtype = "bfloat16"
    config.data.batch_size = request["batch"] * devices
    config.data.image_size = request["side"]
    config.optimizer.microbatch = request["microbatch"]
    config.model.update(request["overrides"])
    config_lib.check_fields(config)
    return config


def short_maker(config: ConfigDict) -> Callable[[nnx.Rngs], nnx.Module]:
    """The stem, block 2, and two blocks built like the middle flow's, but of 128 channels."""
    whole = state_lib.model_maker(config, NUM_CLASSES)

    def make(rngs: nnx.Rngs) -> nnx.Module:
        model: Any = whole(rngs)
        layers = model.make_layers(rngs)
        # At its own size: where the maps are smaller, one of the stem's gradients takes the
        # compiler four minutes.
        model.entry_flow = nnx.List(list(model.entry_flow)[:1])
        model.middle_flow = nnx.List(
            xception.Block(128, (128, 128, 128), downsample=False, layers=layers) for _ in range(2)
        )
        model.exit_flow = nnx.List([])
        model.head = model.make_head(128, NUM_CLASSES, layers)
        return model

    return make


def main(request: dict[str, Any]) -> None:
    """Compiles and leaves the answer in the request's folder."""
    mesh = program.mesh_of(request["topology"], request["options"])
    config = config_of(request, mesh.size)
    make_model = short_maker(config) if request["short"] else None
    data = DataSpec(classes=NUM_CLASSES)
    program.answer(steps.lower("train", config, mesh, data, make_model), request)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
