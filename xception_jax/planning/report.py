"""Output of plans for people and programs: tables, rows, CSV, a plot."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.table import Table

from xception_jax.errors import UsageError
from xception_jax.planning.estimate import Collective, Step
from xception_jax.planning.planner import Fit, Plan
from xception_jax.utils.console import table

Row = dict[str, object]

LIMITS = (
    "This project has not run on a TPU: the estimate ranks variants and slices; as absolute time "
    "it is unproven.",
    "Operations are counted one after the other. Collectives count in full, at the links' public "
    "rate, without overlap.",
    "Asynchronous copies between HBM and on-chip memory count in full; `at best` excludes those "
    "that can overlap with computation.",
    "Operations without a schedule count by their bytes only.",
    "The hours do not include input (the hosts must keep up with the slice), start, compilation, "
    "checkpoints, and waiting for a machine.",
    "Memory is the compiler's own sum, by which it accepts or refuses a program. The next batches "
    "and other data on the device come on top.",
)


def of_plan(plan: Plan) -> Table:
    """A plan as a table of its two steps."""
    both = (plan.train, plan.evaluate)
    sizes = (plan.batch, plan.eval_batch)
    rows: list[tuple[str, ...]] = [
        ("images on a device", *(f"{size / plan.devices:,.0f}" for size in sizes)),
        *_memory(plan),
        ("operations, 10^9", *(f"{step.flops / 1e9:,.0f}" for step in both)),
        ("bytes moved, 10^9", *(f"{step.bytes / 1e9:,.2f}" for step in both)),
        *_collectives(both),
    ]
    if plan.train.seconds is not None:
        rows += _times(plan)
    rows.append(("compiled in, s", *(f"{step.compile_s:,.0f}" for step in both)))
    chips = f"{plan.chips} chips, " if plan.chips else ""
    each = f"{plan.devices // plan.chips} devices a chip, " if plan.chips and (
        plan.devices > plan.chips) else ""  # fmt: skip
    title = f"{plan.topology}: {chips}{each}{plan.batch} images a step; what each device does"
    return table(title, ("", "training", "evaluation"), rows)


def _memory(plan: Plan) -> list[tuple[str, ...]]:
    both = (plan.train.memory, plan.evaluate.memory)

    def line(name: str, count: Callable[[Any], float]) -> tuple[str, ...]:
        return (name, *(f"{count(memory) / 2**30:.3f}" for memory in both))

    has = f" of {plan.device_bytes / 2**30:.2f}" if plan.device_bytes else ""
    return [
        line("memory, GiB: arguments", lambda m: m.arguments),
        line("  outputs in their place", lambda m: m.aliased),
        line("  other outputs", lambda m: m.outputs - m.aliased),
        line("  temporary", lambda m: m.temporary),
        line("  program", lambda m: m.program),
        line(f"  in all{has}", lambda m: m.total),
    ]


def _collectives(steps: Sequence[Step]) -> list[tuple[str, ...]]:
    kinds = dict.fromkeys(c.kind for step in steps for c in step.collectives)
    rows: list[tuple[str, ...]] = []
    for kind in kinds:
        nothing = Collective(kind, 0, 0, 0)
        found = [next((c for c in step.collectives if c.kind == kind), nothing) for step in steps]
        rows += [
            (f"{kind}s", *(f"{c.count}" for c in found)),
            ("  of them between layers", *(f"{c.inside}" for c in found)),
            ("  bytes in all, 10^6", *(f"{c.bytes / 1e6:,.1f}" for c in found)),
        ]
    return rows or [("collectives", "none", "none")]


def _times(plan: Plan) -> list[tuple[str, ...]]:
    both, sizes = (plan.train, plan.evaluate), (plan.batch, plan.eval_batch)
    chips = plan.chips or plan.devices

    def cells(value: Callable[[Any, int], str]) -> list[str]:
        return [value(step, size) for step, size in zip(both, sizes, strict=True)]

    return [
        ("step, ms", *cells(lambda s, _: f"{s.seconds * 1e3:.2f}")),
        ("  at best", *cells(lambda s, _: f"{s.best_seconds * 1e3:.2f}")),
        ("  of it collectives", *cells(lambda s, _: f"{s.collective_seconds * 1e3:.2f}")),
        ("  without schedule, operations", *cells(lambda s, _: f"{s.unscheduled}")),
        ("images/s a chip", *cells(lambda s, size: f"{size / s.seconds / chips:,.0f}")),
        ("images/s in all", *cells(lambda s, size: f"{size / s.seconds:,.0f}")),
        ("matrix units busy", f"{plan.matrix_share or 0:.0%}", ""),
        ("memory busy", f"{plan.memory_share or 0:.0%}", ""),
    ]


def summary(plan: Plan, config: ConfigDict) -> list[str]:
    """Lines under a plan's table: collectives between layers, method of the estimate, the run."""
    lines = [*_between_layers(plan, config), f"time by {plan.train.estimate}"]
    if plan.steps is None:
        lines.append("the run: the number of training examples is unknown; give --examples")
        return lines
    run = f"the run ({config.duration}): {plan.steps:,} steps, {plan.evaluations:,} evaluations"
    if plan.eval_steps is not None:
        run += f" of {plan.eval_steps:,} steps"
    if plan.hours is not None:
        run += f": {_length(plan.hours)}"
        if plan.chips:
            run += f", {_number(plan.hours * plan.chips)} chip-hours"
    return [*lines, run, *of_evaluations([row(plan)])]


def of_evaluations(rows: Iterable[Row]) -> list[str]:
    """A line if the hours are those of training only."""
    if all(found.get("hours") is None or found["eval_steps"] is not None for found in rows):
        return []
    return [
        "the evaluations are left out of the hours: the number of examples in "
        "config.data.eval_split is unknown; give --eval_examples"
    ]


def _between_layers(plan: Plan, config: ConfigDict) -> list[str]:
    """Why a training step has collectives between layers."""
    if not any(found.inside for found in plan.train.collectives):
        return []
    share, virtual = plan.batch // plan.devices, config.model.bn_virtual_batch
    reasons = []
    if virtual is None or virtual > share:
        over = f"virtual batches of {virtual}" if virtual else f"the complete batch of {plan.batch}"
        reasons.append(
            f"batch normalization takes its statistics over {over}, of which a device has "
            f"{share}; config.model.bn_virtual_batch={share} avoids this (and changes the "
            f"statistics)"
        )
    if config.mesh.model > 1:
        reasons.append("the devices of config.mesh.model share the head's layers")
    return [f"collectives between layers: {reason}" for reason in reasons]


def _length(hours: float) -> str:
    """A time in a readable unit."""
    for unit, each in (("hours", 1.0), ("minutes", 60.0)):
        if hours * each >= 1:
            return f"{hours * each:,.2f} {unit}"
    return f"{_number(hours * 3600)} s"


def _number(value: float) -> str:
    """A number with two decimal places, or two significant digits if it is below 0.1."""
    return f"{value:,.2f}" if value >= 0.1 or not value else f"{value:.2g}"


def row(plan: Plan) -> Row:
    """A plan as a flat row; unknown times and rates are None."""
    train, seconds = plan.train, plan.train.seconds
    chips = plan.chips or plan.devices
    return {
        "topology": plan.topology,
        "chips": plan.chips or None,
        "devices": plan.devices,
        "batch": plan.batch,
        "images_a_device": plan.batch / plan.devices,
        **{f"{name}_gib": _gib(getattr(train.memory, name)) for name in
           ("arguments", "outputs", "aliased", "temporary", "program", "total")},
        "device_gib": _gib(plan.device_bytes),
        "gflop": round(train.flops / 1e9, 1),
        "gbytes": round(train.bytes / 1e9, 3),
        "collectives": " ".join(f"{c.count}x{c.kind}" for c in train.collectives),
        "collectives_between_layers": sum(c.inside for c in train.collectives),
        "collective_mb": round(sum(c.bytes for c in train.collectives) / 1e6, 2),
        "estimate": train.estimate.partition(":")[0],
        "step_ms": _ms(seconds),
        "step_ms_at_best": _ms(train.best_seconds),
        "collective_ms": _ms(train.collective_seconds),
        "images_per_s_chip": round(plan.batch / seconds / chips, 1) if seconds else None,
        "images_per_s": round(plan.batch / seconds, 1) if seconds else None,
        "matrix_share": _share(plan.matrix_share),
        "memory_share": _share(plan.memory_share),
        "eval_total_gib": _gib(plan.evaluate.memory.total),
        "eval_step_ms": _ms(plan.evaluate.seconds),
        "eval_images_per_s": round(plan.eval_batch / plan.evaluate.seconds, 1)
        if plan.evaluate.seconds else None,
        "steps": plan.steps,
        "evaluations": plan.evaluations,
        "eval_steps": plan.eval_steps,
        "hours": _digits(plan.hours),
        "chip_hours": _digits(plan.hours * plan.chips)
        if plan.hours is not None and plan.chips else None,
        "compile_s": round(train.compile_s + plan.evaluate.compile_s),
        "note": "",
    }  # fmt: skip


def _gib(count: float | None) -> float | None:
    return None if count is None else round(count / 2**30, 4)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _digits(value: float | None) -> float | None:
    """A number with at least four digits, so that a short run's hours are not 0."""
    return None if value is None else round(value, 3) if value >= 1 else float(f"{value:.4g}")


def _share(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


_COMPARED = {
    "devices": "devices",
    "images_a_device": "images a device",
    "total_gib": "memory, GiB",
    "device_gib": "  of",
    "collectives": "collectives",
    "step_ms": "step, ms",
    "images_per_s_chip": "images/s a chip",
    "images_per_s": "images/s in all",
    "matrix_share": "matrix units busy",
    "memory_share": "memory busy",
    "hours": "hours",
    "chip_hours": "chip-hours",
}


def of_sweep(rows: Sequence[Mapping[str, object]]) -> Table:
    """Plans side by side, one a column; the column of one that does not fit is empty."""
    slices = [str(found["topology"]) for found in rows]
    lines = [
        (title, *("" if found.get("note") else _cell(name, found.get(name)) for found in rows))
        for name, title in _COMPARED.items()
    ]
    return table("", ("", *slices), lines)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "?"
    if name.endswith("_share"):
        return f"{value:.0%}"
    return _number(value) if isinstance(value, float) and value < 1000 else (
        f"{value:,.0f}" if isinstance(value, (int, float)) else str(value))  # fmt: skip


def of_fits(fits: Iterable[Fit], topology: str) -> Table:
    """The largest batches, with and without rematerialization."""
    rows = [
        (
            f"remat={fit.remat}", f"{fit.batch}", f"{fit.bytes / 2**30:.2f}", f"{fit.refused}",
            f"{fit.refused_bytes / 2**30:.2f}", f"{fit.device_bytes / 2**30:.2f}", f"{fit.tries}",
        )
        for fit in fits
    ]  # fmt: skip
    header = ("", "images a device", "GiB", "refused", "GiB", "of", "programs compiled")
    return table(f"{topology}: the largest batch that fits on a device", header, rows)


def to_csv(rows: Sequence[Mapping[str, object]], notes: Mapping[str, str]) -> str:
    """Lines of notes, `# name: text`, then the rows. The columns are the keys of all rows."""
    text = io.StringIO()
    text.writelines(f"# {name}: {note}\n" for name, note in notes.items())
    columns = list(dict.fromkeys(key for found in rows for key in found))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def check_plot(path: Path) -> None:
    """Raises `UsageError` if Matplotlib is missing or does not know the file's suffix."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("--plot needs Matplotlib: pip install 'xception_jax[plan]'") from None
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in known:
        raise UsageError(f"--plot={path}: its suffix is none of {', '.join(sorted(known))}")


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws images/s a chip, memory, and hours of slices side by side.

    Args:
      rows: rows of plans that fit and have a time.
      path: path of the picture, see `check_plot`.
    """
    from matplotlib.figure import Figure

    names = [str(found["topology"]) for found in rows]
    figure = Figure(figsize=(12, 0.6 + 0.5 * len(rows)), layout="constrained")
    speed, memory, hours = figure.subplots(1, 3, sharey=True)
    speed.barh(names, [found["images_per_s_chip"] for found in rows])
    speed.set_xlabel("images/s a chip, training")
    memory.barh(names, [found["device_gib"] for found in rows], color="lightgrey", label="total")
    memory.barh(names, [found["total_gib"] for found in rows], label="used")
    memory.set_xlabel("GiB of a device")
    memory.legend()
    hours.barh(names, [found["hours"] or 0 for found in rows], color="lightsteelblue")
    for i, found in enumerate(rows):
        cost = found["chip_hours"]
        if cost is not None:
            hours.text(0, i, f" {_cell('chip_hours', cost)} chip-hours", va="center")
    hours.set_xlabel("hours of the run")
    speed.invert_yaxis()
    unfinished = path.with_name(f".unfinished-{path.name}")
    figure.savefig(unfinished, dpi=120)
    unfinished.replace(path)
