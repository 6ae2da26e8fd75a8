"""Evaluation of a run's checkpoint: exact metrics over whole splits.

Reads only the weights it needs, and checks every one of them against its digest.
"""

if __name__ == "__main__":  # first: --help and a misspelt flag need not wait for JAX
    from xception_jax import commands

    commands.run("evaluate")

import pathlib
from collections.abc import Callable

from xception_jax.data import splits
from xception_jax.data.skips import Skips
from xception_jax.training import build, sharding
from xception_jax.training.evaluation import Evaluators
from xception_jax.training.trained import Trained


def evaluate(
    workdir: pathlib.Path,
    *,
    step: str = "latest",
    weights: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    batch_size: int = 0,
    max_skipped: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, object]:
    """Evaluates a checkpoint; the arguments are the command's flags, and `say` takes its notes.

    Returns:
      `step`, `weights`, `split`, and the metrics that `training.evaluation.Evaluators` find: `top1`
      and (from 20 classes on) `top5`, of multi-label data `map`, `precision` and `recall`; `loss`,
      `examples`, `skipped`. Without `split`, the sets of the run's `eval.also` too: `real/top1`.

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
    assert metrics is not None, "nobody asks it to stop"
    split = split or config.data.eval_split
    return {"step": trained.step, "weights": trained.kind, "split": split, **metrics}
