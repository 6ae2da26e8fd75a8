r"""Says what a run takes on a TPU slice that is not there: memory, time, hours.

    python -m xception_jax.plan --config=configs/imagenet.py --topology=v5e:4x4
    python -m xception_jax.plan --config=configs/imagenet.py --topology=v6e-8 --fit
    python -m xception_jax.plan --config=configs/imagenet.py --batch_per_chip=64 \
        --sweep=v5litepod-16,v6e-8,v5p-8 --csv=plan.csv --plot=plan.png
    python -m xception_jax.plan --config=configs/digits.py       # on the devices that are there

The run's own training and evaluation steps are compiled by the TPU compiler (pip install
'xception_jax[plan]'), which takes minutes for each; what it says is kept for the next time. Slices:
v4, v5e, v5p, v6e and tpu7x, by shape (v5p:2x2x1) or by name (v5p-8).
"""

import datetime
import json
import sys
from importlib import metadata, util
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.commands import cli
from xception_jax.errors import RunError, UsageError
from xception_jax.utils.text import shell_join

if TYPE_CHECKING:
    from rich.console import Console

    from xception_jax.planning import planner
    from xception_jax.planning.tpu.chips import Topology
    from xception_jax.training.build import DataSpec

_CONFIG = cli.define_config()
flags.declare_key_flag("config")
flags.declare_key_flag(cli.IMPORTS.name)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "a TPU slice, v5e:4x4 or v5litepod-16; unless given, the devices there are"
)
_SWEEP = flags.DEFINE_list("sweep", [], "slices to compare in one table, with commas between")
_FIT = flags.DEFINE_bool(
    "fit", False, "search the largest batch that a chip takes at once, without and with model.remat"
)
_PER_CHIP = flags.DEFINE_integer(
    "batch_per_chip", None, "images a chip, in place of config.data.batch_size", lower_bound=1
)
_CLASSES = flags.DEFINE_integer(
    "classes", None, "of the data, where it is not there and TFDS does not know it", lower_bound=2
)
_EXAMPLES = flags.DEFINE_integer("examples", None, "of the training split, likewise", lower_bound=1)
_EVAL_EXAMPLES = flags.DEFINE_integer(
    "eval_examples", None, "of the evaluation split, likewise", lower_bound=1
)
_CSV = flags.DEFINE(cli.PATH, "csv", None, "file to write the plans to, as CSV")
_PLOT = flags.DEFINE(cli.PATH, "plot", None, "picture of the sweep to write: .png, .svg, .pdf")
_JSON = flags.DEFINE_bool(
    "json", False, "end with one line of JSON on standard output, and tell the rest elsewhere"
)


def config_for(config: ConfigDict, topology: "Topology", per_chip: int | None) -> ConfigDict:
    """The config as a run on a slice would resolve it, but for what weights settle; checked.

    Args:
      config: as it was given.
      topology: the slice.
      per_chip: images a chip, in place of its batch.

    Raises:
      UsageError: it is not valid, or not for so many devices.
    """
    from xception_jax.training import preflight

    config_lib.check_fields(config)
    config = ConfigDict(config).copy_and_resolve_references()
    if per_chip:
        config.data.batch_size = per_chip * topology.chips
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"  # as `config.compute_dtype` settles it on TPU
    if config.mesh.data not in (-1, topology.devices // config.mesh.model):
        raise UsageError(
            f"config.mesh.data is {config.mesh.data} and {topology.name} has {topology.devices} "
            f"devices; a plan takes them all: leave it at -1"
        )
    preflight.check_without_data(config, topology.devices)
    return config


def _resolved(configs: list[ConfigDict], console: "Console") -> list[ConfigDict]:
    """The configs as a run resolves them; where the weights of `init_from` are not here, without.

    Raises:
      UsageError: the weights are here, and are not those of the config's model.
    """
    from xception_jax.utils import paths
    from xception_jax.weights import initial

    asked = configs[0]
    if not asked.init_from or paths.local("config.init_from", asked.init_from).exists():
        return [initial.resolve(config) for config in configs]
    found = [config_lib.resolve(config) for config in configs]
    console.print(
        f"NOTE: config.init_from, {asked.init_from}, is not here: the plan is for images of "
        f"{found[0].data.image_size} pixels and the model's own defaults where the config leaves "
        f"them open"
    )
    return found


def sweep(
    configs: list[ConfigDict], topologies: "list[Topology]", data: "DataSpec", console: "Console"
) -> list[dict[str, object]]:
    """A plan for each slice, as rows. The file that --csv names has each as soon as it is made."""
    from xception_jax.planning import planner, report

    rows: list[dict[str, object]] = []
    for topology, config in zip(topologies, configs, strict=True):
        try:
            plan = planner.for_topology(config, topology, data, console.print)
            rows.append(report.row(plan))
        except planner.DoesNotFitError as error:
            rows.append({"topology": topology.name, "note": str(error)})
        _write_csv(rows)
    console.print(report.of_sweep(rows))
    for line in report.of_evaluations(rows):
        console.print(line)
    for found in rows:
        if found["note"]:
            console.print(str(found["note"]))
    if _PLOT.value:
        drawn = [found for found in rows if not found["note"]]
        if not drawn:
            raise RunError(f"--plot={_PLOT.value}: no slice holds the run")
        report.plot(drawn, _PLOT.value)
    return rows


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


def _fit(
    config: ConfigDict, topology: "Topology", data: "DataSpec", console: "Console"
) -> list[dict]:
    import dataclasses

    from xception_jax.planning import planner, report

    fits = [
        planner.fit(config, topology, data, remat=remat, say=console.print)
        for remat in (False, True)
    ]
    console.print(report.of_fits(fits, topology.name))
    return [{"topology": topology.name, **dataclasses.asdict(fit)} for fit in fits]


def _single(
    config: ConfigDict, topology: "Topology | None", data: "DataSpec", console: "Console"
) -> "planner.Plan":
    from xception_jax.planning import planner, report, steps

    if topology is None:
        plan = planner.for_devices(config, data, console.print)
    else:
        plan = planner.for_topology(config, topology, data, console.print)
    console.print(report.of_plan(plan))
    if plan.devices > 1:
        console.print(steps.layout_table(config, data, plan.devices))
    for line in report.summary(plan, config):
        console.print(line)
    if plan.train.seconds is not None:
        console.print("what this does not know:")
        for limit in report.LIMITS:
            console.print(f"- {limit}")
    _write_csv([report.row(plan)])
    return plan


def _check_flags() -> None:
    if not flags.FLAGS["config"].present or _CONFIG.value is None:
        raise UsageError("--config is needed; --help shows an example")
    if _SWEEP.value and (_TOPOLOGY.value or _FIT.value):
        raise UsageError("--sweep names the slices itself; leave out --topology and --fit")
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
    from xception_jax.planning import report
    from xception_jax.training import preflight
    from xception_jax.utils.console import make_console

    if topologies:
        configs = [config_for(_CONFIG.value, each, _PER_CHIP.value) for each in topologies]
    else:
        preflight.check_without_data(_CONFIG.value, jax.device_count())
        configs = [_CONFIG.value]
    console = make_console(stderr=_JSON.value)
    configs = _resolved(configs, console)
    if _PLOT.value:
        report.check_plot(_PLOT.value)
    data = data_lib.find(
        _CONFIG.value, classes=_CLASSES.value, examples=_EXAMPLES.value,
        eval_examples=_EVAL_EXAMPLES.value,
    )  # fmt: skip
    for config in configs:
        if data.examples:
            preflight.check_lengths(config, data.examples)
    result: dict[str, list] = {"plans": [], "fits": []}
    with console.status("compiling; Ctrl-C ends it"):  # seen on terminals only
        if _SWEEP.value:
            result["plans"] = sweep(configs, topologies, data, console)
        elif _FIT.value:
            result["fits"] = _fit(configs[0], topologies[0], data, console)
        else:
            plan = _single(configs[0], topologies[0] if topologies else None, data, console)
            result["plans"] = [report.row(plan)]
    if _JSON.value:
        print(json.dumps(result))
