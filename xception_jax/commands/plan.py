r"""Predicts memory, step time and hours of a run on a TPU slice, without the slice.

    python -m xception_jax.plan --config=configs/imagenet.py --topology=v5e:4x4
    python -m xception_jax.plan --config=configs/imagenet.py --topology=v6e-8 --fit
    python -m xception_jax.plan --config=configs/imagenet.py --batch_per_chip=64 \
        --sweep=v5litepod-16,v6e-8,v5p-8 --csv=plan.csv --plot=plan.png
    python -m xception_jax.plan --config=configs/digits.py       # on this machine's devices

The TPU compiler (pip install 'xception_jax[plan]') compiles the run's own training and evaluation
steps. That takes minutes for each; results are stored for the next time. Slices: v4, v5e, v5p, v6e
and tpu7x, by shape (v5p:2x2x1) or by name (v5p-8).
"""

import datetime
import json
import sys
from importlib import metadata, util

from absl import flags

from xception_jax.commands import cli
from xception_jax.errors import RunError, UsageError
from xception_jax.utils.text import shell_join

_CONFIG = cli.define_config()
flags.declare_key_flag("config")
flags.declare_key_flag(cli.IMPORTS.name)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "a TPU slice, v5e:4x4 or v5litepod-16; by default this machine's devices"
)
_SWEEP = flags.DEFINE_list("sweep", [], "slices to compare in one table, separated by commas")
_FIT = flags.DEFINE_bool(
    "fit", False, "find the largest batch that fits on a chip, without and with model.remat"
)
_PER_CHIP = flags.DEFINE_integer(
    "batch_per_chip", None, "images a chip, in place of config.data.batch_size", lower_bound=1
)
_CLASSES = flags.DEFINE_integer(
    "classes",
    None,
    "number of classes, if the data is missing and TFDS does not know the number",
    lower_bound=2,
)
_EXAMPLES = flags.DEFINE_integer(
    "examples", None, "number of training examples, if it is unknown", lower_bound=1
)
_EVAL_EXAMPLES = flags.DEFINE_integer(
    "eval_examples", None, "number of evaluation examples, if it is unknown", lower_bound=1
)
_CSV = flags.DEFINE(cli.PATH, "csv", None, "CSV file to write the plans to")
_PLOT = flags.DEFINE(cli.PATH, "plot", None, "picture of the sweep to write: .png, .svg, .pdf")
_JSON = flags.DEFINE_bool(
    "json", False, "print one line of JSON on standard output, all else on standard error"
)


def _write_csv(rows: list[dict[str, object]]) -> None:
    from xception_jax.planning import report
    from xception_jax.utils.files import write_atomically

    if _CSV.value:
        found = {name: util.find_spec(name) for name in ("jax", "libtpu")}
        versions = (f"{name} {metadata.version(name)}" for name in found if found[name])
        notes = {
            "command": shell_join(["python", "-m", "xception_jax.plan", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
            "versions": ", ".join(versions),
        }
        write_atomically(_CSV.value, report.to_csv(rows, notes))


def _draw(rows: list[dict[str, object]]) -> None:
    from xception_jax.planning import report

    if _PLOT.value:
        drawn = [row for row in rows if not row["note"]]
        if not drawn:
            raise RunError(f"--plot={_PLOT.value}: the run fits on none of the slices")
        report.plot(drawn, _PLOT.value)


def _check_flags() -> None:
    if not flags.FLAGS["config"].present or _CONFIG.value is None:
        raise UsageError("--config is needed; --help shows an example")
    if _SWEEP.value and (_TOPOLOGY.value or _FIT.value):
        raise UsageError("--sweep names the slices itself; remove --topology and --fit")
    if not _TOPOLOGY.value and not _SWEEP.value:
        for name, given in (("fit", _FIT.value), ("batch_per_chip", _PER_CHIP.value)):
            if given:
                raise UsageError(f"--{name} needs a slice: --topology=v5e:4x4")
    if _PLOT.value and not _SWEEP.value:
        raise UsageError("--plot draws what --sweep=v5e:4x4,v6e:4x4 compares")
    if _FIT.value and _CSV.value:
        raise UsageError("--csv is for plans; --fit --json prints what it finds")
    for name, path in (("csv", _CSV.value), ("plot", _PLOT.value)):
        if path and not path.absolute().parent.is_dir():
            raise UsageError(f"--{name}={path}: there is no such folder; make it first")


def main() -> None:
    _check_flags()
    from xception_jax.planning.tpu import chips

    asked = _SWEEP.value or ([_TOPOLOGY.value] if _TOPOLOGY.value else [])
    topologies = [chips.parse(name) for name in asked]
    if topologies:
        from xception_jax.planning.tpu import compiler

        compiler.check_installed()
    import jax

    from xception_jax.planning import data as data_lib
    from xception_jax.planning import plans, report
    from xception_jax.training import preflight
    from xception_jax.utils.console import make_console

    if topologies:
        configs = [plans.config_for(_CONFIG.value, each, _PER_CHIP.value) for each in topologies]
    else:
        preflight.check_without_data(_CONFIG.value, jax.device_count())
        configs = [_CONFIG.value]
    console = make_console(stderr=_JSON.value)
    configs = plans.resolved(configs, console)
    if _PLOT.value:
        report.check_plot(_PLOT.value)
    data = data_lib.find_spec(
        _CONFIG.value, classes=_CLASSES.value, examples=_EXAMPLES.value,
        eval_examples=_EVAL_EXAMPLES.value,
    )  # fmt: skip
    for config in configs:
        if data.examples:
            preflight.check_lengths(config, data.examples)
    result: dict[str, list[dict[str, object]]] = {"plans": [], "fits": []}
    with console.status("compiling; Ctrl-C ends it"):  # seen on terminals only
        if _SWEEP.value:
            result["plans"] = plans.sweep(configs, topologies, data, console, _write_csv)
            _draw(result["plans"])
        elif _FIT.value:
            result["fits"] = plans.fits(configs[0], topologies[0], data, console)
        else:
            one = topologies[0] if topologies else None
            result["plans"] = [report.row(plans.single(configs[0], one, data, console))]
            _write_csv(result["plans"])
    if _JSON.value:
        print(json.dumps(result))
