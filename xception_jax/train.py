"""Training: a run from its config to its last checkpoint, in the order in which it happens."""

if __name__ == "__main__":  # first, so that --help and a misspelt flag do not wait for JAX
    from xception_jax import commands

    commands.run("train")

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from xception_jax import config as config_lib
from xception_jax.config.fields import Duration
from xception_jax.data import splits
from xception_jax.data.batches import HostShard, Reader
from xception_jax.data.skips import Skips
from xception_jax.data.source import Source
from xception_jax.data.transfer import TrainingBatches
from xception_jax.runtime import cluster
from xception_jax.training import build, features, patience, preflight, sharding, signals, workdir
from xception_jax.training import state as state_lib
from xception_jax.training.checkpoint.checkpoints import Checkpoints
from xception_jax.training.checkpoint.manifest import Meta
from xception_jax.training.evaluation import Evaluators
from xception_jax.training.hooks import Hook, Hooks
from xception_jax.training.results import TrainResult
from xception_jax.training.state import TrainState
from xception_jax.training.telemetry import outlook, verdict
from xception_jax.training.telemetry.goodput import Goodput
from xception_jax.training.telemetry.log import Telemetry
from xception_jax.training.telemetry.profiling import Profile
from xception_jax.utils.console import make_console
from xception_jax.weights import initial


def train(
    config: ConfigDict,
    folder: Path,
    *,
    console: Console | None = None,
    allow_config_changes: bool = False,
    hooks: Sequence[Hook] = (),
) -> TrainResult:
    """Trains a model, or continues from the newest checkpoint in `folder`.

    Args:
      config: see `xception_jax.config`.
      folder: the workdir, for all output of the run; created if missing.
      console: where to print progress; None: standard output.
      allow_config_changes: whether to continue a run although harmless fields of its config differ.
      hooks: called between steps, after the run's own hooks; see `training.hooks`.

    Raises:
      UsageError: the config, the data or the folder is invalid; nothing was compiled.
      RunError: the loss is not finite, a write failed, or too many examples are unusable.
    """
    goodput = Goodput()
    with signals.stop_requested() as stop_requested:
        with goodput.spending("start"):
            preflight.validate(config, begun := workdir.existing_config(folder))
            config = initial.resolve_with_weights(config, begun)
            run = build_run(config)
        with (
            workdir.lock_workdir(folder, config, allow_changes=allow_config_changes),
            Checkpoints.from_config(config, folder) as checkpoints,
        ):
            with goodput.spending("start"):
                state, notes = restore_or_initialize(run, checkpoints)
            first = int(state.step)
            with (
                Telemetry.from_config(
                    config,
                    folder,
                    console or make_console(),
                    goodput,
                    start=first,
                    total=run.total_steps,
                    epoch=len(run.train_source),
                    due=run.every("log.every"),
                    carried=checkpoints.log(first),
                ) as log,
                checkpoints.writing(log.say),
            ):
                introduce(run, folder, state, notes, log)
                skips = Skips(folder, config.data.max_skipped, log.say)
                with Profile(folder, config.profile.steps, log.say) as profile:
                    calls = Hooks(profile, log, *hooks)
                    services = RunServices(checkpoints, log, skips, calls, stop_requested)
                    ready = features.computed_once(run, state, folder, services)
                    last = loop(ready, state, first, services) if ready else first
                found = checkpoints.metrics(last)
                finished = run.ends_at(last, checkpoints) and run.evaluate.have_found(found)
                result = TrainResult(folder, last, run.total_steps, finished, found or {})
                conclude(run, checkpoints, result, log)
    return result


@dataclass(frozen=True)
class RunServices:
    """The services that the loop uses between steps."""

    checkpoints: Checkpoints
    log: Telemetry
    skips: Skips
    hooks: Hooks
    stop_requested: Callable[[], bool]


@dataclass(frozen=True)
class Run(build.Functions):
    """The functions of a run, with its data and its devices."""

    train_source: Source
    total_steps: int
    batches: TrainingBatches
    evaluate: Evaluators

    @property
    def meta(self) -> Meta:
        """The manifest of the run's checkpoints, at step 0."""
        data, config = self.train_source, config_lib.portable(config_lib.flatten(self.config))
        return Meta(0, data.name, len(data), data.class_names, config, frozen=self.frozen)

    def every(self, name: str) -> Callable[[int], bool]:
        """A function of a step: whether it is the first to reach a multiple of a field's period."""
        return config_lib.due(self.config, name, len(self.train_source))

    def ends_at(self, step: int, checkpoints: Checkpoints) -> bool:
        """Whether a step is the last one, of the run or by `eval.patience`."""
        limit, due = self.config.eval.patience, self.every("eval.every")
        return step == self.total_steps or patience.is_over(limit, due, checkpoints.best(), step)


def build_run(config: ConfigDict) -> Run:
    """Opens the data, lays out the devices and builds the run's functions; compiles nothing."""
    train_source = splits.open_training(config)
    sets = splits.open_evaluation(config)
    functions = build.build(config, build.DataSpec.of(train_source))
    reader = Reader.from_config(config, train_source, workers=config.data.workers)
    batches = TrainingBatches(
        reader,
        order=reader.order(config.seed, config.data.batch_size),
        batch_size=config.data.batch_size,
        seed=config.seed,
        shard=HostShard.of_this_process(),
        sharding=sharding.by_example(functions.layout.mesh),
    )
    size = {"batch_size": config.data.batch_size, "epoch": len(train_source)}
    return Run(
        **vars(functions),
        train_source=train_source,
        total_steps=Duration.parse(config.duration).steps(**size),
        batches=batches,
        evaluate=Evaluators.create(config, functions.evaluate_batch_of, sets, functions.layout),
    )


def restore_or_initialize(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, list[str]]:
    """The state of the newest intact checkpoint or a new state, and notes for the user."""
    shardings = run.layout.state
    state, meta, damaged = checkpoints.restore_newest(sharding.place(run.shapes, shardings))
    notes = [f"DAMAGED: {note}" for note in damaged]
    if state is None or meta is None:
        fresh = state_lib.initialize(run.init, run.config.seed, shardings)
        return initial.fill(run.config, fresh, run.meta.class_names, notes, checkpoints.workdir)
    meta.check_data(run.meta, checkpoints.workdir)
    return state, [*notes, f"continues from the checkpoint of step {meta.step}"]


def introduce(run: Run, folder: Path, state: TrainState, notes: list[str], log: Telemetry) -> None:
    """Prints the model, the data, the devices and notes."""
    log.say(state_lib.parameter_table(run.config.model.name, state.params, run.frozen))
    mesh = run.layout.mesh
    if mesh.size > 1:
        log.say(sharding.layout_table(run.shapes, run.layout))
    log.say(
        f"{run.train_source.name}: {len(run.train_source):,} examples, "
        f"{len(run.train_source.class_names):,} classes; {run.total_steps:,} steps of "
        f"{run.config.data.batch_size} on {mesh.size} x {mesh.devices.flat[0].device_kind}"
    )
    named = workdir.name_files(folder, run.evaluate.own.reader.source)
    for note in filter(None, (run.train_source.summary, *named, run.batches.reader.note, *notes)):
        log.say(note)


def loop(run: Run, state: TrainState, first: int, services: RunServices) -> int:
    """Runs from step `first` to the end or to a signal to stop; returns the last completed step."""
    log, checkpoints, hooks = services.log, services.checkpoints, services.hooks
    done, total = first, run.total_steps
    save_due, evaluation_due = run.every("checkpoint.every"), run.every("eval.every")
    # A signal could have stopped this evaluation, or the config now has more metrics.
    due = first and (evaluation_due(first) or first == total)
    if due and not run.evaluate.have_found(checkpoints.metrics(first)):
        if (result := evaluate_at(run, state, first, services)) is None:
            hooks.at_end(first)
            return first
        checkpoints.add_metrics(first, result)
    last = first if run.ends_at(first, checkpoints) else total
    with closing(run.batches(first, services.skips)) as batches:
        for done in range(first + 1, last + 1):
            with log.goodput.spending("input"):
                batch = next(batches)
            if done == first + 1:
                with log.goodput.spending("compilation"):
                    outlook.tell(log.say, run.train_step, state, batch, total - first, run.frozen)
                    cluster.compile_together(run.train_step, state, batch)
                    checkpoints.warm_up(state)
            hooks.before_step(done)
            state, metrics = run.train_step(state, batch)
            hooks.after_step(done, state, metrics)
            stop = services.stop_requested()
            rated = evaluation_due(done) or done == total
            if rated or stop or save_due(done):
                log.catch_up()
                result = evaluate_at(run, state, done, services) if rated and not stop else None
                stop |= rated and result is None
                with log.pause("checkpoint"):
                    checkpoints.save(state, run.meta.at(done, log.to_carry()), result)
            if stop or (rated and run.ends_at(done, checkpoints)):
                break
    with log.goodput.spending("checkpoint"):
        checkpoints.wait()
    hooks.at_end(done)
    return done


def evaluate_at(
    run: Run, state: TrainState, step: int, services: RunServices
) -> dict[str, float] | None:
    """Evaluates the weights of a step and logs the results; None if a signal stopped it."""
    with services.log.pause("evaluation"):
        result = run.evaluate(state.weights(), services.skips, services.stop_requested)
    if result:
        services.hooks.on_evaluation(step, result)
    return result


def conclude(run: Run, checkpoints: Checkpoints, result: TrainResult, log: Telemetry) -> None:
    """Prints the state of the run and the next command."""
    if not result.finished:
        saved = " and saved" if result.step else ""  # before the first step there is nothing
        log.say(f"stopped at step {result.step}{saved}; the same command continues")
        return
    by = config_lib.Best.parse(run.config.eval.best)
    log.say("\n".join(verdict.lines(result, checkpoints.best(), by.metric)))
