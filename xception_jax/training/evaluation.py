"""Exact metrics over full splits, in a run and after it."""

import collections
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.data import transfer
from xception_jax.data.batches import HostShard, Reader
from xception_jax.data.skips import Skips
from xception_jax.data.source import Source
from xception_jax.errors import RunError
from xception_jax.training import metrics, sharding
from xception_jax.training.sharding import Layout
from xception_jax.training.state import Tree
from xception_jax.training.step import Batch, Scalars

# The number of batches that are dispatched before the sums of the first are fetched.
_BATCHES_AHEAD = 2

# A jitted `step.evaluate_batch`: takes weights and a batch, returns sums.
EvaluateBatch = Callable[[Tree, Batch], Scalars]


def batch_size_of(config: ConfigDict, devices: int, asked: int = 0) -> int:
    """The batch size of evaluation: `asked` or the config's, rounded up to the devices."""
    limit = config.optimizer.microbatch * devices or config.data.batch_size
    size = asked or config.eval.batch_size or min(config.data.batch_size, limit)
    return -(-size // devices) * devices


@dataclass(frozen=True)
class Evaluator:
    """Evaluates weights on a split, each example exactly once, for any batch size and mesh.

    Attributes:
      reader: reads the split.
      layout: the layout of the weights for `evaluate_batch`.
      evaluate_batch: the jitted step.
      batch_size: over all devices, divisible by their number.
      further: the registered metrics that `evaluate_batch` sums.
    """

    reader: Reader
    layout: Layout
    evaluate_batch: EvaluateBatch
    batch_size: int
    further: metrics.Registered = ()

    @classmethod
    def create(
        cls,
        config: ConfigDict,
        evaluate_batch: EvaluateBatch,
        source: Source,
        layout: Layout,
        batch_size: int = 0,
        name: str = "",
    ) -> "Evaluator":
        """An evaluator for a config and its jitted step.

        `batch_size` overrides the config's; it is rounded up to the devices. `name` is the set's.
        """
        return cls(
            # Without workers: starting them would take longer than most evaluations.
            reader=Reader.from_config(config, source),
            layout=layout,
            evaluate_batch=evaluate_batch,
            batch_size=batch_size_of(config, layout.mesh.size, batch_size),
            further=metrics.registered(config_lib.eval_metrics(config, name)),
        )

    def __call__(
        self,
        weights: Tree,
        skips: Skips | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> dict[str, float] | None:
        """Evaluates the split once; see `sums` and `figures`."""
        sums = self.sums(weights, skips, stop_requested)
        return None if sums is None else self.figures(sums)

    def sums(
        self,
        weights: Tree,
        skips: Skips | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any] | None:
        """The sums of `evaluate_batch` over the split, in one pass.

        The host sums in double precision. It fetches the sums of a batch while the next batches
        are computed.

        Args:
          weights: with the shardings of `layout.weights`.
          skips: handles examples that cannot be used; None: raise an error for them.
          stop_requested: called after each batch.

        Returns:
          The sums over all processes, each example once. None if stopped.
        """
        batches = self.reader.evaluation_batches(
            batch_size=self.batch_size, shard=HostShard.of_this_process(), skips=skips
        )
        weights = gathered(weights, self.layout.weights)
        totals: dict[str, Any] = {}
        waiting: collections.deque[Scalars] = collections.deque()
        for batch in transfer.to_devices(batches, sharding.by_example(self.layout.mesh)):
            waiting.append(self.evaluate_batch(weights, batch))
            if len(waiting) > _BATCHES_AHEAD:
                totals = _added(totals, waiting.popleft())
            if stop_requested():
                return None
        for sums in waiting:
            totals = _added(totals, sums)
        if not totals.get("examples"):
            raise RunError(f"no example of {self.reader.source.name} can be used")
        return totals

    def figures(self, sums: dict[str, Any]) -> dict[str, float]:
        """The metrics of `sums`: `loss`, those of `metrics.means`, `examples` and `skipped`."""
        examples = int(sums["examples"])
        found = metrics.means(sums, {metric.name: metric.figure for metric in self.further})
        return {
            **{name: float(value) for name, value in found.items()},
            "examples": examples,
            "skipped": len(self.reader.source) - examples,
        }


@dataclass(frozen=True)
class Evaluators:
    """Evaluates weights on several sets in turn.

    Attributes:
      sets: evaluators by name; `data.eval_split` has the empty name and is the first.
      names: the names of all their metrics, see `metric_names`.
    """

    sets: Mapping[str, Evaluator]
    names: frozenset[str]

    @classmethod
    def create(
        cls,
        config: ConfigDict,
        evaluate_batch: Callable[[str], EvaluateBatch],
        sources: Mapping[str, Source],
        layout: Layout,
        batch_size: int = 0,
    ) -> "Evaluators":
        """See `Evaluator.create`; `evaluate_batch` returns the jitted step of a set."""
        return cls(
            {
                name: Evaluator.create(
                    config, evaluate_batch(name), source, layout, batch_size, name
                )
                for name, source in sources.items()
            },
            frozenset(metric_names(config, sources)),
        )

    @property
    def own(self) -> Evaluator:
        """The evaluator of `data.eval_split`."""
        return self.sets[""]

    def have_found(self, results: Mapping[str, float] | None) -> bool:
        """Whether these are results of all sets with all metrics."""
        return results is not None and self.names <= results.keys()

    def __call__(
        self,
        weights: Tree,
        skips: Skips | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> dict[str, float] | None:
        """The results of each `Evaluator`, prefixed by the set's name: `top1`, `real/top1`.

        None if stopped in any set.
        """
        results: dict[str, float] = {}
        for name, evaluator in self.sets.items():
            # The first evaluator gathers the weights; the others reuse them.
            weights = gathered(weights, evaluator.layout.weights)
            found = evaluator(weights, skips, stop_requested)
            if found is None:
                return None
            results |= prefixed(name, found)
        return results


def prefixed(name: str, found: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a set, with the set's name before theirs: `real/top1`."""
    return {f"{name}/{key}" if name else key: value for key, value in found.items()}


def metric_names(config: ConfigDict, sources: Mapping[str, Source]) -> list[str]:
    """The names of the metrics on these sets, prefixed by the set's name: `real/top1`."""
    return [
        f"{name}/{metric}" if name else metric
        for name, source in sources.items()
        for metric in (
            *metrics.builtin_names(len(source.class_names), source.multilabel),
            *config_lib.eval_metrics(config, name),
        )
    ]


def by_set(results: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The results of `Evaluators` by the name of their set."""
    found: dict[str, dict[str, float]] = {}
    for key, value in results.items():
        name, _, metric = key.rpartition("/")
        found.setdefault(name, {})[metric] = value
    return found


def gathered(weights: Tree, shardings: Tree) -> Tree:
    """The weights with these shardings, gathered once, not per batch; unchanged if already so."""
    wanted = jax.tree.leaves(sharding.place(weights, shardings))
    there = jax.tree.leaves(weights)
    if all(
        a.sharding.is_equivalent_to(b.sharding, a.ndim) for a, b in zip(there, wanted, strict=True)
    ):
        return weights
    return jax.jit(lambda tree: tree, out_shardings=shardings)(weights)


def _added(totals: dict[str, Any], sums: Scalars) -> dict[str, Any]:
    """Adds a batch's sums to the totals in double precision; float32 would lose small values."""
    fetched: dict[str, Any] = jax.tree.map(np.float64, jax.device_get(sums))
    added: dict[str, Any] = jax.tree.map(np.add, totals, fetched) if totals else fetched
    return added
