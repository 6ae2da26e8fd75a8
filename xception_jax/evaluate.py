"""Evaluation of a run's checkpoint: exact metrics over a whole split.

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
from xception_jax.training.evaluation import Evaluator
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
      `step`, `weights`, `split`, and the metrics that `training.evaluation.Evaluator` finds: `top1`
      and (from 20 classes on) `top5`, of multi-label data `map`, `precision` and `recall`; `loss`,
      `examples`, `skipped`.

    Raises:
      UsageError: there is no such run, checkpoint, split or kind of weights.
      RunError: the checkpoint is damaged, or too many examples cannot be used.
    """
    trained = Trained.find(workdir, step, weights)
    config = trained.config
    split = split or config.data.eval_split
    most = config.data.max_skipped if max_skipped is None else max_skipped
    config.data.max_skipped = most
    source = splits.open_split(config, split, data_dir)
    trained.meta.check_classes(source.name, source.class_names)
    if source.summary:
        say(source.summary)
    layout = sharding.Layout.whole(sharding.make_mesh())
    evaluate_batch = build.build_evaluation(config, build.DataSpec.of(source), layout)
    evaluator = Evaluator.create(config, evaluate_batch, source, layout, batch_size)
    skips = Skips(workdir, most, say, flag="--max_skipped")
    metrics = evaluator(trained.weights(layout.weights), skips)
    assert metrics is not None, "nobody asks it to stop"
    return {"step": trained.step, "weights": trained.kind, "split": split, **metrics}
