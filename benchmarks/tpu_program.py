"""Compiles the training step for a TPU that is not there, in a process of its own.

`tpu_compile.py` starts this with libtpu's flags in the environment and a JSON request as the only
argument; the answer is files: `program.hlo`, and `program.json` with what the executable says.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from configs import imagenet
from xception_jax import config as config_lib
from xception_jax.models import xception
from xception_jax.models.layers import Layers
from xception_jax.training import optimizer, sharding
from xception_jax.training import state as state_lib
from xception_jax.training import step as step_lib

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
        fields = config_lib.model_overrides(config)
        layers = Layers(
            rngs, model.dtype, fields["bn_epsilon"], fields["bn_momentum"],
            fields["bn_virtual_batch"],
        )  # fmt: skip
        # At its own size: where the maps are smaller, one of the stem's gradients takes the
        # compiler four minutes.
        model.entry_flow = nnx.List(list(model.entry_flow)[:1])
        model.middle_flow = nnx.List(
            xception.Block(128, (128, 128, 128), downsample=False, layers=layers) for _ in range(2)
        )
        model.exit_flow = nnx.List([])
        model.head = xception.Head(
            128, NUM_CLASSES, fc_units=(), dropout=fields["dropout"], layers=layers
        )
        return model

    return make


def mesh_of(chips: str) -> Mesh:
    """A mesh like `sharding.make_mesh`'s on a topology such as `v5e:2x2`."""
    found = topologies.get_topology_desc(platform="tpu", topology_name=chips)
    return Mesh(np.array(found.devices), ("data",), axis_types=(AxisType.Auto,))


def abstract_batch(config: ConfigDict, mesh: Mesh) -> step_lib.Batch:
    """Shapes of a training batch, see `data.stream`."""
    count, side = config.data.batch_size, config.data.image_size
    shapes = {
        "image": ((count, side, side, 3), jnp.uint8),
        "label": ((count,), jnp.int32),
        "mask": ((count,), jnp.float32),
    }
    cut = sharding.by_example(mesh)
    return {k: jax.ShapeDtypeStruct(*v, sharding=cut) for k, v in shapes.items()}


def lower(config: ConfigDict, mesh: Mesh, *, short: bool) -> Any:
    """The training step as `train.prepare` builds it, but for the data's part; lowered."""
    make_model = short_maker(config) if short else state_lib.model_maker(config, NUM_CLASSES)
    transformation, schedule = optimizer.from_config(config, lambda duration: 1000)
    structure = state_lib.structure_of(make_model, config.data.image_size)
    recipe = step_lib.Recipe.from_config(config, structure, transformation, schedule, mesh.size)
    init = partial(state_lib.create, make_model, transformation, config.ema.decay > 0)
    state = state_lib.abstract(init, sharding.replicated(mesh))
    return step_lib.jit_train_step(recipe, mesh).lower(state, abstract_batch(config, mesh))


def main(request: dict[str, Any]) -> None:
    """Compiles and leaves the answer in the request's folder."""
    folder = Path(request["folder"])
    mesh = mesh_of(request["chips"])
    lowered = lower(config_of(request, mesh.size), mesh, short=request["short"])
    since = time.perf_counter()
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    answer = {
        "compile_s": time.perf_counter() - since,
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    (folder / "program.hlo").write_text(compiled.as_text())
    (folder / "program.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
