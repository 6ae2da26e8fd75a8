"""The plans of the command: a single plan, a sweep over slices, the largest batch."""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict
from rich.console import Console

from xception_jax import config as config_lib
from xception_jax.errors import UsageError
from xception_jax.planning import planner, report, steps
from xception_jax.planning.tpu.chips import Topology
from xception_jax.training import preflight
from xception_jax.training.build import DataSpec
from xception_jax.utils import paths
from xception_jax.weights import initial


def config_for(config: ConfigDict, topology: Topology, per_chip: int | None) -> ConfigDict:
    """Resolves a config for a slice as a run would, except for fields that weights set; checks it.

    Args:
      config: the config as given.
      topology: the slice.
      per_chip: images a chip; replaces the config's batch size.

    Raises:
      UsageError: the config is invalid, also for this number of devices.
    """
    config_lib.check_fields(config)
    config = ConfigDict(config).copy_and_resolve_references()
    if per_chip:
        config.data.batch_size = per_chip * topology.chips
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"  # the choice of `config.compute_dtype` on TPU
    if config.mesh.data not in (-1, topology.devices // config.mesh.model):
        raise UsageError(
            f"config.mesh.data is {config.mesh.data} and {topology.name} has {topology.devices} "
            f"devices; a plan uses all of them: leave it at -1"
        )
    preflight.check_without_data(config, topology.devices)
    return config


def resolved(configs: list[ConfigDict], console: Console) -> list[ConfigDict]:
    """Resolves configs as a run does; without the weights of `init_from` if they are missing.

    Raises:
      UsageError: the weights exist, but are for another model; or there is no plan of such a run.
    """
    asked = configs[0]
    if asked.data.frozen_draws:
        raise UsageError(
            f"config.data.frozen_draws is {asked.data.frozen_draws}; a plan does not know such "
            f"runs: plan the run that computes the frozen part in each step, with 0"
        )
    there = paths.is_weights_name(asked.init_from) or (
        bool(asked.init_from) and paths.local("config.init_from", asked.init_from).exists()
    )
    if not asked.init_from or there:
        return [initial.resolve_with_weights(config) for config in configs]
    found = [config_lib.resolve(config) for config in configs]
    console.print(
        f"NOTE: config.init_from, {asked.init_from}, does not exist here: the plan is for images "
        f"of {found[0].data.image_size} pixels and the model's defaults for fields that the config "
        f"does not set"
    )
    return found


def sweep(
    configs: list[ConfigDict],
    topologies: list[Topology],
    data: DataSpec,
    console: Console,
    keep: Callable[[list[dict[str, object]]], None],
) -> list[dict[str, object]]:
    """Makes a plan for each slice, as rows; calls `keep` with the rows so far after each plan."""
    rows: list[dict[str, object]] = []
    for topology, config in zip(topologies, configs, strict=True):
        try:
            plan = planner.for_topology(config, topology, data, console.print)
            rows.append(report.row(plan))
        except planner.DoesNotFitError as error:
            rows.append({"topology": topology.name, "note": str(error)})
        keep(rows)
    console.print(report.of_sweep(rows))
    for line in report.of_evaluations(rows):
        console.print(line)
    for found in rows:
        if found["note"]:
            console.print(str(found["note"]))
    return rows


def fits(
    config: ConfigDict, topology: Topology, data: DataSpec, console: Console
) -> list[dict[str, object]]:
    """The largest batch that fits on a chip, without and with `model.remat`, as rows."""
    fits = [
        planner.fit(config, topology, data, remat=remat, say=console.print)
        for remat in (False, True)
    ]
    console.print(report.of_fits(fits, topology.name))
    return [{"topology": topology.name, **dataclasses.asdict(fit)} for fit in fits]


def single(
    config: ConfigDict, topology: Topology | None, data: DataSpec, console: Console
) -> planner.Plan:
    """Makes and prints the plan for a slice, or for this machine's devices."""
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
        console.print("limits of this estimate:")
        for limit in report.LIMITS:
            console.print(f"- {limit}")
    return plan
