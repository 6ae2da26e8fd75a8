"""Evaluates a checkpoint of a run: exact metrics over a complete split.

    python -m xception_jax.evaluate --workdir=runs/digits
    python -m xception_jax.evaluate --workdir=runs/digits --step=best --weights=raw --split=train

Reads only the weights it needs, and checks every one of them against its digest.
"""

import json

from absl import flags

from xception_jax.commands import cli
from xception_jax.errors import UsageError

_WORKDIR = flags.DEFINE(cli.PATH, "workdir", None, "folder of the run")
_STEP = flags.DEFINE_string("step", "latest", "checkpoint: latest, best or a number")
_WEIGHTS = flags.DEFINE_enum(
    "weights",
    None,
    ["ema", "raw"],
    "ema (averaged) or raw weights; by default averaged if the run has them",
)
_SPLIT = flags.DEFINE_string(
    "split", None, "TFDS split; by default the run's data.eval_split and eval.also"
)
_DATA_DIR = flags.DEFINE(
    cli.DATA_PATH, "data_dir", None, "folder of TFDS' data, if it has moved since the training"
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    0,
    "images over all devices; 0: as in the run. Does not affect the result",
    lower_bound=0,
)
_MAX_SKIPPED = flags.DEFINE_float(
    "max_skipped",
    None,
    "share of the examples that may be skipped; by default as in the run",
    lower_bound=0.0,
    upper_bound=1.0,
)
_JSON = flags.DEFINE_bool("json", False, "print one line of JSON instead of a table")
for _name in cli.SHARED_FLAGS:
    flags.declare_key_flag(_name)


def main() -> None:
    if not _WORKDIR.value:
        raise UsageError("--workdir is needed; --help shows an example")
    from xception_jax.evaluate import evaluate
    from xception_jax.runtime import cluster
    from xception_jax.training.telemetry.log import SHARES
    from xception_jax.utils import console

    # A training in the same job has the same environment, so only flags can join a cluster.
    cli.settle(by_itself=False)
    workdir = _WORKDIR.value
    cli.keep_compiled()
    result = evaluate(
        workdir,
        step=_STEP.value,
        weights=_WEIGHTS.value,
        split=_SPLIT.value,
        data_dir=str(_DATA_DIR.value) if _DATA_DIR.value else None,
        batch_size=_BATCH_SIZE.value,
        max_skipped=_MAX_SKIPPED.value,
        say=console.make_console(stderr=_JSON.value, quiet=not cluster.is_first()).print,
    )
    if not cluster.is_first():
        return
    if _JSON.value:
        print(json.dumps(result.to_json()))
        return
    rows = [("step", str(result.step)), ("weights", result.weights), ("split", result.split)]
    for name, value in result.metrics.items():
        form = ".2%" if name.rpartition("/")[2] in SHARES else ".6f"
        rows.append((name, f"{value:{form}}" if isinstance(value, float) else str(value)))
    console.make_console().print(console.table(str(workdir), ("", ""), rows))
