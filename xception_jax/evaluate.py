"""Evaluates a run's checkpoint: exact metrics over full splits.

It only reads the weights that it needs, and checks all of them against their digests.
"""

if __name__ == "__main__":  # first, so that --help and a misspelt flag do not wait for JAX
    from xception_jax import commands

    commands.run("evaluate")

from collections.abc import Callable
from pathlib import Path

from xception_jax.data import splits
from xception_jax.data.skips import Skips
from xception_jax.training import build, sharding
from xception_jax.training.evaluation import Evaluators
from xception_jax.training.results import EvaluationResult
from xception_jax.training.trained import Trained


def evaluate(
    workdir: Path,
    *,
    step: str = "latest",
    weights: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    batch_size: int = 0,
    max_skipped: float | None = None,
    say: Callable[[str], None] = print,
) -> EvaluationResult:
    """Evaluates a checkpoint of a run.

    Args:
      workdir: the run's folder.
      step: `latest`, `best` or a number.
      weights: `ema` (averaged) or `raw`; None: averaged if the run has them.
      split: the split; None: the run's `data.eval_split` and the sets of its `eval.also`.
      data_dir: the folder of TFDS' data, if it was moved.
      batch_size: over all devices; 0: the run's. It does not change the result.
      max_skipped: the maximum share of examples to skip; None: the run's.
      say: prints a line about the data or skipped examples.

    Raises:
      UsageError: there is no such run, checkpoint, split or kind of weights.
      RunError: the checkpoint is damaged, or too many examples cannot be used.
    """
    trained = Trained.find(workdir, step, weights)
    config = trained.config
    most = config.data.max_skipped if max_skipped is None else max_skipped
    config.data.max_skipped = most
    if split is None:
        sources = splits.open_evaluation(config, data_dir)
    else:
        sources = {"": splits.open_split(config, split, data_dir)}
    for source in sources.values():
        trained.meta.check_classes(source.name, source.class_names)
        if source.summary:
            say(source.summary)
    layout = sharding.Layout.replicated(sharding.make_mesh())
    evaluate_batch = build.build_evaluation(config, build.DataSpec.of(sources[""]), layout)
    evaluators = Evaluators.create(config, evaluate_batch, sources, layout, batch_size)
    skips = Skips(workdir, most, say, flag="--max_skipped")
    metrics = evaluators(trained.weights(layout.weights), skips)
    assert metrics is not None, "without stop_requested it is never stopped"
    split = split or config.data.eval_split
    return EvaluationResult(workdir, trained.step, trained.kind, split, metrics)
