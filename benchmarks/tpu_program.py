"""Compiles the training step for a TPU without the TPU, in a separate process.

`tpu_compile.py` uses it as a plan uses `xception_jax.planning.program`. A request gives sizes and
overrides of `configs/imagenet.py`, or a shorter network.
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
    """A short network: the stem, block 2, and two middle-flow blocks with 128 channels."""
    make_full = state_lib.model_maker(config, NUM_CLASSES)

    def make(rngs: nnx.Rngs) -> nnx.Module:
        model: Any = make_full(rngs)
        layers = model.make_layers(rngs)
        # At full size: with smaller feature maps, the compiler takes four minutes for one of the
        # stem's gradients.
        model.entry_flow = nnx.List(list(model.entry_flow)[:1])
        model.middle_flow = nnx.List(
            xception.Block(128, (128, 128, 128), downsample=False, layers=layers) for _ in range(2)
        )
        model.exit_flow = nnx.List([])
        model.head = model.make_head(128, NUM_CLASSES, layers)
        return model

    return make


def main(request: dict[str, Any]) -> None:
    """Compiles and writes the answer to the request's folder."""
    mesh = program.mesh_of(request["topology"], request["options"])
    config = config_of(request, mesh.size)
    make_model = short_maker(config) if request["short"] else None
    data = DataSpec(classes=NUM_CLASSES)
    program.answer(steps.lower("train", config, mesh, data, make_model), request)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
