"""Traces a training step and sums its time by stage and by kind of operation.

    python -m benchmarks.trace --side 299 --batch 4
    python -m benchmarks.trace --side 96 --batch 8 --override width=0.5 --folder traces

The folder keeps the trace for xprof or https://ui.perfetto.dev. Times are sums over the operations
of the device (on CPU: of its threads). docs/speed.md has results.
"""

import argparse
import re
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import arguments
from benchmarks.arguments import assignment, count
from xception_jax import models
from xception_jax.planning.tpu.costs import stage
from xception_jax.training import optimizer, preflight, sharding, step
from xception_jax.training import state as state_lib

_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = .*op_name=\"([^\"]*)\"")


def compiled_step(
    side: int, batch: int, dtype: str, overrides: dict[str, Any]
) -> tuple[Any, state_lib.TrainState, step.Batch]:
    """The compiled training step, and a state and a batch for it."""

    def make(rngs: nnx.Rngs) -> nnx.Module:
        return models.create(
            "xception", num_classes=1000, rngs=rngs, dtype=jnp.dtype(dtype), **overrides
        )

    schedule = optimizer.make_schedule("constant", learning_rate=1e-3, total_steps=1)
    sgd = optimizer.make_optimizer("sgd", schedule, momentum=0.9)
    mesh = sharding.make_mesh(1)
    init = partial(state_lib.create, make, sgd, False)
    state = state_lib.initialize(init, 0, sharding.replicated(mesh))
    data = {
        "image": jax.random.randint(jax.random.key(0), (batch, side, side, 3), 0, 256, jnp.uint8),
        "label": jnp.arange(batch) % 1000,
        "mask": jnp.ones(batch),
    }
    data = jax.device_put(data, sharding.by_example(mesh))
    graphdef = state_lib.graphdef_of(make, side)
    step_config = step.StepConfig(graphdef, sgd, schedule, frozen=(), matmul_precision=None)
    layout = sharding.Layout.replicated(mesh)
    return step.jit_train_step(step_config, layout).lower(state, data).compile(), state, data


def operations(folder: Path) -> Counter[str]:
    """Nanoseconds of each operation of the compiled program, from the trace in a folder."""
    spent: Counter[str] = Counter()
    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    name = dict(event.stats).get("hlo_op")
                    if name:
                        spent[str(name)] += int(event.duration_ns)
    return spent


def directed(op_name: str) -> str:
    """The stage of an operation, and whether it is forward or backward."""
    return f"{stage(op_name)} {'backward' if 'transpose(' in op_name else 'forward'}"


def kind(instruction: str, op_name: str) -> str:
    """The kind of an operation."""
    last = op_name.rsplit("/", 1)[-1]
    if "dot_general" in op_name or instruction.startswith("dot"):
        return "product of matrices"
    if "conv_general_dilated" in last:
        return "convolution"
    if last.startswith("reduce"):
        return "sum"
    return f"pass: {last or 'unnamed'}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=count, default=96, help="side of images (%(default)s)")
    parser.add_argument("--batch", type=count, default=8, help="(%(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--override",
        nargs="*",
        default=[],
        type=assignment,
        metavar="NAME=VALUE",
        help="overrides of the model's arguments",
    )
    parser.add_argument("--steps", type=count, default=3, help="traced steps (%(default)s)")
    parser.add_argument("--folder", type=Path, help="folder that keeps the trace")
    options = parser.parse_args()
    overrides = dict(options.override)
    preflight.check_profiler()

    compiled, state, batch = compiled_step(options.side, options.batch, options.dtype, overrides)
    names = dict(m.groups() for m in map(_INSTRUCTION.match, compiled.as_text().splitlines()) if m)
    state, _ = jax.block_until_ready(compiled(state, batch))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        with jax.profiler.trace(str(folder)):
            for _ in range(options.steps):
                state, metrics = compiled(state, batch)
            jax.block_until_ready((state, metrics))
        spent = operations(folder)
    images = options.steps * options.batch
    total = sum(spent.values())
    for title, key in (("stage", lambda i: directed(names.get(i, ""))),
                       ("kind", lambda i: kind(i, names.get(i, "")))):  # fmt: skip
        groups: Counter[str] = Counter()
        for instruction, nanoseconds in spent.items():
            groups[key(instruction)] += nanoseconds
        print(f"\n{title:32}ms an image   share")
        for name, nanoseconds in groups.most_common(20):
            print(f"{name:32}{nanoseconds / images / 1e6:11.3f}{nanoseconds / total:8.1%}")


if __name__ == "__main__":
    arguments.run(main)
