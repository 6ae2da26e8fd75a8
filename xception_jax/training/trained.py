"""The weights of a run's checkpoint, for evaluation, export and conversion."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.errors import UsageError
from xception_jax.training import sharding, state
from xception_jax.training.checkpoint.checkpoints import Checkpoints
from xception_jax.training.checkpoint.manifest import Meta
from xception_jax.training.state import Tree
from xception_jax.training.workdir import read_config
from xception_jax.utils import seal


@dataclass(frozen=True)
class Trained:
    """A checkpoint of a run; its arrays are not read yet.

    Attributes:
      workdir: the run's folder.
      config: the run's config.
      step: the checkpoint's step.
      kind: which weights: `ema` (averaged) or `raw`.
      meta: the checkpoint's manifest.
      metrics: the results of the run's evaluation at this step, if any.
    """

    workdir: Path
    config: ConfigDict
    step: int
    kind: str
    meta: Meta
    metrics: dict[str, float] | None

    @classmethod
    def find(cls, workdir: Path, step: str = "latest", kind: str | None = None) -> "Trained":
        """Finds a checkpoint.

        Args:
          workdir: the run's folder.
          step: `latest`, `best` or a number.
          kind: `ema` or `raw`; None: `ema` if the run has averaged weights.

        Raises:
          UsageError: there is no such run, checkpoint or kind of weights, or its config was
            changed.
          RunError: the checkpoint's manifest is damaged.
        """
        config = read_config(workdir)
        kind = kind or ("ema" if config.ema.decay else "raw")
        if kind == "ema" and not config.ema.decay:
            raise UsageError(f"the run in {workdir} has no averaged weights; use --weights=raw")
        best = config_lib.Best.parse(config.eval.best)
        with Checkpoints(workdir, best=best, read_only=True) as checkpoints:
            found = checkpoints.find(step)
            meta = checkpoints.meta(found)
            return cls(workdir, config, found, kind, meta, meta.metrics)

    @property
    def is_evaluated(self) -> bool:
        """Whether these weights are those that the run evaluates."""
        return self.kind == ("ema" if self.config.ema.decay else "raw")

    @property
    def digest(self) -> str:
        """Of all arrays of the checkpoint, from their digests in its manifest: a SHA-256."""
        return hashlib.sha256(seal.canonical(self.meta.digests).encode()).hexdigest()

    def weights(self, placed: NamedSharding) -> Tree:
        """`{"params", "batch_stats"}` with this sharding, checked against their digests.

        Raises:
          RunError: the checkpoint is damaged.
        """
        make_model = state.model_maker(self.config, len(self.meta.class_names))
        shapes = state.shapes_of(lambda key: state.create_weights(make_model, key))
        target = sharding.place(shapes, placed)
        with Checkpoints(self.workdir, read_only=True) as checkpoints:
            if self.kind == "ema":
                return checkpoints.restore(self.step, {"ema": target})[0]["ema"]
            return checkpoints.restore(self.step, target)[0]
