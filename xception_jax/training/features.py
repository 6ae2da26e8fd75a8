"""What is frozen is computed once: features in place of images, for `config.data.frozen_draws`.

The frozen part of a model (see `Network.freeze`) makes the same output of the same image in every
epoch. Here it is computed before the first step, for all images of a run's splits, and the steps
begin after it. Each training image is rendered `frozen_draws` times, as the run would render it in
its first epochs. So these epochs are those of a run that computes the frozen part in each step.
Later epochs see the same draws again.
"""

import collections
import datetime
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from dataclasses import Field, asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import xception_jax
from xception_jax import config as config_lib
from xception_jax.augment import pipeline
from xception_jax.data import transfer
from xception_jax.data.batches import Reader
from xception_jax.data.features import (
    Columns,
    FeatureFile,
    FeatureReader,
    Shapes,
    in_memory,
    size_of,
)
from xception_jax.data.order import Sampling
from xception_jax.data.skips import Skips
from xception_jax.data.source import Source
from xception_jax.data.transfer import TrainingBatches
from xception_jax.training import build, evaluation, sharding
from xception_jax.training import step as step_lib
from xception_jax.training.checkpoint import frozen_part
from xception_jax.training.checkpoint.checkpoints import Checkpoints
from xception_jax.training.checkpoint.digest import digests
from xception_jax.training.state import TrainState, Tree
from xception_jax.training.telemetry.log import Telemetry
from xception_jax.utils import seal

# Batches that are dispatched before the features of the first are fetched.
_BATCHES_AHEAD = 2
# Seconds between two lines of progress.
_TELL_EVERY_S = 10.0
# A split's number of draws for an evaluation, which renders images in another way.
_EVALUATION = 0


class Run(Protocol):
    """A `train.Run`, as far as it is used here."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # it is one, for `replace`

    @property
    def config(self) -> ConfigDict: ...
    @property
    def layout(self) -> sharding.Layout: ...
    @property
    def frozen(self) -> tuple[str, ...]: ...
    @property
    def train_source(self) -> Source: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def batches(self) -> TrainingBatches: ...
    @property
    def evaluate(self) -> evaluation.Evaluators: ...
    def ends_at(self, step: int, checkpoints: Checkpoints) -> bool: ...


class Services(Protocol):
    """A `train.RunServices`, as far as it is used here."""

    @property
    def checkpoints(self) -> Checkpoints: ...
    @property
    def log(self) -> Telemetry: ...
    @property
    def skips(self) -> Skips: ...
    @property
    def stop_requested(self) -> Callable[[], bool]: ...


AnyRun = TypeVar("AnyRun", bound=Run)


def computed_once(
    run: AnyRun, state: TrainState, folder: Path, services: Services
) -> AnyRun | None:
    """A run whose batches have features in place of images, if its config asks for it.

    Args:
      run: the run.
      state: its state, before a step.
      folder: the workdir; features that exceed `data.in_memory` are stored in it.
      services: of the run.

    Returns:
      The run; None if a signal stopped it.

    Raises:
      RunError: there is no room for the features, or too many examples are unusable.
    """
    asked, step = run.config.data.frozen_draws, int(state.step)
    found, ends = services.checkpoints.metrics(step), run.ends_at(step, services.checkpoints)
    if not asked or (ends and run.evaluate.have_found(found)):
        return run
    with services.log.pause("frozen part"):
        part = FrozenPart.of(run, state, folder, services)
        batch_size, examples = run.config.data.batch_size, len(run.train_source)
        epochs = -(-run.total_steps * batch_size // examples)
        draws = min(asked, epochs) if part.draws_differ(run.batches.reader) else 1
        if (reader := part.read("train", run.batches.reader, draws)) is None:
            return None
        sets = {}
        for number, (name, one) in enumerate(run.evaluate.sets.items()):
            if (own := part.read(f"eval{number}", one.reader, _EVALUATION)) is None:
                return None
            sets[name] = replace(one, reader=own)
    return replace(
        run, batches=replace(run.batches, reader=reader), evaluate=replace(run.evaluate, sets=sets)
    )


def frozen_output(
    graphdef: Any,
    augmentation: pipeline.Augmentation | None,
    seed: int,
    weights: Tree,
    step: jax.Array,
    batch: step_lib.Batch,
) -> jax.Array:
    """The output of the frozen part for a batch, see `Network.frozen_output`.

    Args:
      graphdef, augmentation, seed: static. Without `augmentation` images remain as they are.
      weights: `{"params", "batch_stats"}`.
      step, batch: a batch of `data.batches` and its step, of any batch size.
    """
    if augmentation:
        batch = pipeline.augment_batch(augmentation, seed, step, batch)
    model: Any = nnx.merge(graphdef, weights["params"], weights["batch_stats"], copy=True)
    asked = model.matmul_precision
    with jax.default_matmul_precision(asked) if asked else nullcontext():
        features: jax.Array = model.frozen_output(model.normalize(batch["image"]))
    return features


@dataclass(frozen=True)
class FrozenPart:
    """The frozen part of a run's model, with what it takes to compute it.

    Attributes:
      config: the run's.
      augmentation: the config's.
      for_training, for_evaluation: `frozen_output`, jitted, with and without augmentation.
      weights: `{"params", "batch_stats"}`.
      names: see `state.frozen_parts`.
      layout: of the weights.
      folder: of files of features.
      skips: takes unusable examples.
      say: prints a line.
      stop_requested: called after each batch.
    """

    config: ConfigDict
    augmentation: pipeline.Augmentation
    for_training: jax.stages.Wrapped
    for_evaluation: jax.stages.Wrapped
    weights: Tree
    names: tuple[str, ...]
    layout: sharding.Layout
    folder: Path
    skips: Skips
    say: Callable[[str], None]
    stop_requested: Callable[[], bool]

    @classmethod
    def of(cls, run: Run, state: TrainState, workdir: Path, services: Services) -> "FrozenPart":
        """The frozen part of a run; see `computed_once`."""
        config, replicated = run.config, sharding.replicated(run.layout.mesh)
        by_example = sharding.by_example(run.layout.mesh)
        graphdef = build.build_graphdef(config, len(run.train_source.class_names))
        augmentation = pipeline.Augmentation.from_config(config.augment)

        @cache
        def jitted(own: pipeline.Augmentation | None) -> jax.stages.Wrapped:
            return jax.jit(
                partial(frozen_output, graphdef, own, config.seed),
                in_shardings=(run.layout.weights, replicated, by_example),
                out_shardings=by_example,
            )

        # The averages are equal to the weights where these are frozen.
        weights = {"params": state.params, "batch_stats": state.batch_stats}
        return cls(
            config=config,
            augmentation=augmentation,
            for_training=jitted(augmentation if augmentation.changes_images else None),
            for_evaluation=jitted(None),
            weights=evaluation.gathered(weights, run.layout.weights),
            names=run.frozen,
            layout=run.layout,
            folder=workdir / "features",
            skips=services.skips,
            say=services.log.say,
            stop_requested=services.stop_requested,
        )

    def draws_differ(self, reader: Reader) -> bool:
        """Whether a training image differs from epoch to epoch."""
        return reader.images.crops or self.augmentation.changes_images

    def read(self, name: str, reader: Reader, draws: int) -> FeatureReader | None:
        """A reader of the features of a split, which are computed unless a file has them.

        Args:
          name: of the file.
          reader: of the images.
          draws: of each training image; `_EVALUATION`: images as for evaluation.

        Returns:
          The reader; None if a signal stopped it.
        """
        jitted = self.for_evaluation if draws == _EVALUATION else self.for_training
        shapes = self._shapes(reader, draws, jitted)
        size, file, columns = size_of(shapes), None, None
        if size > self.config.data.in_memory * 2**20:
            key = self._key(reader, draws, shapes)
            file = FeatureFile(self.folder / f"{name}.bin", key, shapes)
            columns, complaint = file.read()
            if complaint:
                self.say(f"{file.path} {complaint}; it is made again")
        where = file.path if file else "memory"
        if columns is not None:
            self.say(f"frozen part on {reader.source.name}: its features are in {where}")
        else:
            columns = file.create() if file else in_memory(shapes)
            since = time.perf_counter()
            if not self._fill(columns, reader, draws, jitted):
                return None
            if file:
                file.finish()
            self.say(
                f"frozen part on {reader.source.name}: computed once for "
                f"{max(1, draws) * len(reader.source):,} images in "
                f"{time.perf_counter() - since:.1f} s; {size / 2**20:,.1f} MiB in {where}"
            )
        own = {one.name: getattr(reader, one.name) for one in fields(Reader)}
        return FeatureReader(**own, columns=columns, draws=max(1, draws))

    @property
    def _batch_size(self) -> int:
        return evaluation.batch_size_of(self.config, self.layout.mesh.size)

    def _shapes(self, reader: Reader, draws: int, jitted: jax.stages.Wrapped) -> Shapes:
        """Of the columns. For an evaluation there is one more row, a blank."""
        source = reader.source
        rows = draws * len(source) or len(source) + 1
        batch = step_lib.batch_shapes(
            self._batch_size, reader.images.size, len(source.class_names), source.multilabel
        )
        features = jax.eval_shape(jitted, self.weights, 0, batch)
        columns = {"features": features, **{k: batch[k] for k in batch if k != "image"}}
        return {name: ((rows, *one.shape[1:]), one.dtype) for name, one in columns.items()}

    def _fill(
        self, columns: Columns, reader: Reader, draws: int, jitted: jax.stages.Wrapped
    ) -> bool:
        """Computes all rows; returns False if a signal stopped it."""
        # Without a cache of images: each is used once, and the cache would outlive it.
        reader = replace(reader, host=replace(reader.host, memory=0))
        count, size = len(reader.source), self._batch_size
        total = max(1, draws) * count
        rows, batches = np.arange(total), None
        if draws == _EVALUATION:
            for column in columns.values():
                column[count:] = 0
            batches = reader.evaluation_batches(batch_size=size, skips=self.skips)
        else:
            # Each record once an epoch, also where the run samples in another way.
            order = replace(reader, sampling=Sampling()).order(self.config.seed, size)
            rows = rows // count * count + np.array([order[place] for place in range(total)])
            batches = reader.training_batches(
                batch_size=size, seed=self.config.seed, order=order, skips=self.skips
            )
        progress = _Progress(f"frozen part on {reader.source.name}", total, self.say)
        waiting: collections.deque[tuple[np.ndarray, step_lib.Batch]] = collections.deque()

        def fetch() -> None:
            chosen, arrays = waiting.popleft()
            for name, array in jax.device_get(arrays).items():
                columns[name][chosen] = array[: len(chosen)]
            progress.add(len(chosen))

        with closing(transfer.to_devices(batches, sharding.by_example(self.layout.mesh))) as placed:
            for step, batch in zip(range(-(-total // size)), placed, strict=False):
                features = jitted(self.weights, step, batch)
                arrays = {k: batch[k] for k in batch if k != "image"} | {"features": features}
                waiting.append((rows[step * size : (step + 1) * size], arrays))
                if len(waiting) > _BATCHES_AHEAD:
                    fetch()
                if self.stop_requested():
                    return False
        while waiting:
            fetch()
        return True

    def _key(self, reader: Reader, draws: int, shapes: Shapes) -> str:
        """The SHA-256, in hexadecimal, of all that the features of a split depend on."""
        source, held = reader.source, frozen_part.split(self.weights, self.names)[1]
        flat = config_lib.flatten(self.config)
        # Normalization is a part of `data`. What is too much costs a computation, in rare cases.
        settings = {
            name: value
            for name, value in flat.items()
            if name.startswith("model.")
            or (name.startswith("data.") and not config_lib.SCHEMA[name].harmless)
        }
        about = {
            "versions": [xception_jax.__version__, jax.__version__],
            "weights": digests(held)[0],
            "settings": settings,
            "data": [source.name, len(source), source.class_names, _stamp(source)],
            "images": asdict(reader.images),
            "batch": [self._batch_size, [str(d) for d in self.layout.mesh.devices.flat]],
            "columns": [[name, shape, dtype.name] for name, (shape, dtype) in shapes.items()],
        }
        if draws and self.draws_differ(reader):
            about["draws"] = [draws, self.config.seed, asdict(self.augmentation)]
        return hashlib.sha256(seal.canonical(about).encode()).hexdigest()


def _stamp(source: Source) -> str:
    """A SHA-256 of the names of a split's examples, and of the sizes and dates of its files."""
    found = hashlib.sha256()
    for index in range(len(source) if source.describe else 0):
        found.update(source.name_of(index).encode(errors="surrogateescape"))
        if path := source.path_of(index):
            with suppress(OSError):  # reading it says what is wrong
                info = os.stat(path)
                found.update(f"\0{info.st_size} {info.st_mtime_ns}".encode())
        found.update(b"\0\0")
    return found.hexdigest()


class _Progress:
    """Prints how many images are done and the time left, at most every ten seconds."""

    def __init__(self, what: str, total: int, say: Callable[[str], None]):
        self._what, self._total, self._say = what, total, say
        self._done = self._first = 0
        self._begun = self._told = 0.0

    def add(self, count: int) -> None:
        now = time.perf_counter()
        self._done += count
        if not self._begun:  # the first batch includes the compilation
            self._begun = self._told = now
            self._first = self._done
        elif now - self._told > _TELL_EVERY_S and self._done < self._total:
            self._told = now
            rate = (self._done - self._first) / (now - self._begun)
            left = datetime.timedelta(seconds=round((self._total - self._done) / rate))
            self._say(f"{self._what}: {self._done:,} of {self._total:,} images, {left} left")
