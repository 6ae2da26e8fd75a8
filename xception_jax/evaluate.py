"""Evaluates a run's checkpoint, or weights without a run: exact metrics over full splits.

It only reads the weights that it needs, and checks those of a run against their digests.
"""

if __name__ == "__main__":  # first, so that --help and a misspelt flag do not wait for JAX
    from xception_jax import commands

    commands.run("evaluate")

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xception_jax import models
from xception_jax.data import classes, imagenet, splits, transfer
from xception_jax.data.batches import HostShard, Reader
from xception_jax.data.readers import folder_layout
from xception_jax.data.readers.folder_files import role_of
from xception_jax.data.skips import Skips
from xception_jax.data.source import Source
from xception_jax.errors import UsageError
from xception_jax.models.published import Result
from xception_jax.serving import calibration, inference
from xception_jax.serving.calibration import CalibrationResult
from xception_jax.training import build, evaluation, sharding
from xception_jax.training import step as step_lib
from xception_jax.training.class_report import ClassReport
from xception_jax.training.evaluation import Evaluator, Evaluators
from xception_jax.training.loss import Loss, labels_of
from xception_jax.training.results import EvaluationResult, InputEvaluation
from xception_jax.training.trained import Trained
from xception_jax.utils.text import without_secrets
from xception_jax.weights import initial, tensors


def evaluate(
    workdir: Path,
    *,
    step: str = "latest",
    weights: str | None = None,
    dataset: str | None = None,
    label: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    batch_size: int = 0,
    max_skipped: float | None = None,
    per_class: bool = False,
    say: Callable[[str], None] = print,
) -> EvaluationResult:
    """Evaluates a checkpoint of a run.

    Args:
      workdir: the run's folder.
      step: `latest`, `best` or a number.
      weights: `ema` (averaged) or `raw`; None: averaged if the run has them.
      dataset: another data set, named as in `data.dataset`; None, or the same one by any path:
        the run's. Its classes are matched with the run's by name, see `data.classes`.
      label: the feature of that data set with the labels, as `data.label`; None: the only one.
      split: the split; None: the run's `data.eval_split` and the sets of its `eval.also`; of
        another data set, see `splits.open_named`.
      data_dir: the folder of TFDS' data, if it was moved.
      batch_size: over all devices; 0: the run's. It does not change the result.
      max_skipped: the maximum share of examples to skip; None: the run's.
      per_class: count the examples of each class, for `EvaluationResult.classes`.
      say: prints a line about the data or skipped examples.

    Raises:
      UsageError: there is no such run, checkpoint, split or kind of weights.
      RunError: the checkpoint is damaged, or too many examples cannot be used.
    """
    trained = Trained.find(workdir, step, weights)
    config, names = trained.config, trained.meta.class_names
    most = config.data.max_skipped if max_skipped is None else max_skipped
    config.data.max_skipped = most
    if label is not None and dataset is None:
        raise UsageError("label is of another data set; give dataset (--dataset), too")
    own = splits.is_own(config, dataset, data_dir) and label in (None, config.data.label)
    if dataset is None or own:
        sources = _own_sources(trained, split, data_dir)
    else:
        source, split = _other_source(trained, dataset, label, split, data_dir, say)
        sources = {"": source}
    for source in filter(lambda source: source.summary, sources.values()):
        say(source.summary)
    layout = sharding.Layout.replicated(sharding.make_mesh())
    data = build.DataSpec.of(sources[""])
    evaluate_batch = build.build_evaluation(config, data, layout, per_class)
    evaluators = Evaluators.create(config, evaluate_batch, sources, layout, batch_size)
    skips = Skips(workdir if own else None, most, say, flag="--max_skipped")
    metrics, report = _results(evaluators.sets, trained.weights(layout.weights), skips, names)
    split = split or config.data.eval_split
    data_name = sources[""].name
    return EvaluationResult(workdir, trained.step, trained.kind, data_name, split, metrics, report)


def evaluate_input(
    path: str | Path,
    *,
    dataset: str,
    label: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    model: str | None = None,
    activation: str | None = None,
    batch_size: int = 0,
    max_skipped: float = 0.001,
    per_class: bool = False,
    say: Callable[[str], None] = print,
) -> InputEvaluation:
    """Evaluates weights without a run on a data set, on images as the weights expect them.

    Args:
      path: a file of Keras, timm or `xception_jax.convert`, or a name, see `weights.remote`.
      dataset: a data set, named as in `config.data.dataset`. Its classes are matched with those of
        the weights by name, see `data.classes`.
      label: the feature of a TFDS data set with the labels; None: the only one.
      split: None: see `splits.open_named`.
      data_dir: the folder of TFDS' data, and start of a relative `folder:PATH`.
      model: name of the model, where the weights do not say it.
      activation: `softmax` or `sigmoid`, where the weights do not say it, or in place of theirs.
      batch_size: over all devices; 0: `inference.BATCH` for each device. It does not change the
        result.
      max_skipped: the maximum share of examples to skip.
      per_class: count the examples of each class, for `InputEvaluation.classes`.
      say: prints a line about the data or skipped examples.

    Raises:
      UsageError: there are no such weights or data, or they do not go together.
      RunError: too many examples cannot be used, or processes have read different weights.
    """
    unmatched, split = splits.open_named(
        dataset, split, data_dir, label=label, most_missing=max_skipped
    )
    inferred = inference.of_file(path, model, activation)
    names = imagenet.readable(inferred.class_names)
    source = _matched(unmatched, inferred.class_names, inferred.activation, say)
    for line in filter(None, (*inferred.notes, source.summary)):
        say(line)
    layout = sharding.Layout.replicated(sharding.make_mesh())
    loss = Loss(inferred.activation)
    evaluator = Evaluator(
        Reader(source, inferred.images),
        layout,
        step_lib.jit_evaluate_batch(inferred.graphdef, loss, layout, per_class=per_class),
        inference.batch_size_of(layout.mesh.size, len(source), batch_size),
    )
    shown = without_secrets(str(path))
    initial.check_same_weights(shown, tensors.flatten(inferred.weights))
    weights = jax.device_put(inferred.weights, layout.weights)
    skips = Skips(None, max_skipped, say, flag="--max_skipped")
    metrics, report = _results({"": evaluator}, weights, skips, names)
    name = inferred.source["model"]
    published = _published(name, inferred.source, unmatched, split)
    return InputEvaluation(shown, name, source.name, split, metrics, report, published)


def calibrate(
    workdir: Path,
    *,
    step: str = "latest",
    weights: str | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    batch_size: int = 0,
    max_skipped: float | None = None,
    say: Callable[[str], None] = print,
) -> CalibrationResult:
    """Fits a temperature on a split, for sigmoid also thresholds, and keeps them.

    From then on, the probabilities of `predict` and of `export` are of logits that are divided by
    it, and `predict` names labels by the thresholds. Metrics, logits and the order of the
    predictions stay the same.

    Args:
      workdir: the run's folder.
      step, weights, data_dir, batch_size, max_skipped, say: see `evaluate`.
      split: of the run's data set; None: its `data.eval_split`.

    Raises:
      UsageError, RunError: see `evaluate`.
    """
    trained = Trained.find(workdir, step, weights)
    config = trained.config
    most = config.data.max_skipped if max_skipped is None else max_skipped
    split = split or config.data.eval_split
    if role_of(split.partition("[")[0]) == "test":
        say(f"NOTE: {split!r} is the test set, whose calibration error is then too good; "
            f"--split names other images")  # fmt: skip
    [source] = _own_sources(trained, split, data_dir).values()
    layout = sharding.Layout.replicated(sharding.make_mesh())
    graphdef = build.build_graphdef(config, len(trained.meta.class_names))
    batches = Reader.from_config(config, source).evaluation_batches(
        batch_size=evaluation.batch_size_of(config, layout.mesh.size, batch_size),
        shard=HostShard.of_this_process(),
        skips=Skips(workdir, most, say, flag="--max_skipped"),
    )
    placed = trained.weights(layout.weights)
    rows = sharding.by_example(layout.mesh)
    answer = jax.jit(
        lambda weights, batch: (
            step_lib.apply(graphdef, weights, batch["image"])[0], labels_of(batch), batch["mask"]
        ),
        in_shardings=(layout.weights, rows), out_shardings=sharding.replicated(layout.mesh),
    )  # fmt: skip
    found = [jax.device_get(answer(placed, batch)) for batch in transfer.to_devices(batches, rows)]
    logits, targets, mask = (np.concatenate(parts) for parts in zip(*found, strict=True))
    activation = inference.activation_of(config, trained.metrics)
    shown, answers = logits[mask > 0], targets[mask > 0]
    fitted = calibration.fit(shown, answers, activation, source.name, say)
    file = calibration.path_of(trained)
    if jax.process_index() == 0:
        calibration.write(trained, fitted)
    return CalibrationResult(workdir, trained.step, trained.kind, split, file, fitted)


def _other_source(
    trained: Trained,
    dataset: str,
    label: str | None,
    split: str | None,
    data_dir: str | None,
    say: Callable[[str], None],
) -> tuple[Source, str]:
    """A split of another data set than the run's, with the run's classes, and its name."""
    config, names = trained.config, trained.meta.class_names
    data_dir, most = data_dir or config.data.data_dir, config.data.max_skipped
    source, split = splits.open_named(dataset, split, data_dir, label=label, most_missing=most)
    config.loss.name = inference.activation_of(config, trained.metrics)
    return _matched(source, names, config.loss.name, say), split


def _own_sources(trained: Trained, split: str | None, data_dir: str | None) -> dict[str, Source]:
    """The sets of the run's evaluation by name, or one split of its data set."""
    if split is None:
        sources = splits.open_evaluation(trained.config, data_dir)
    else:
        sources = {"": splits.open_split(trained.config, split, data_dir)}
    for source in sources.values():
        trained.meta.check_classes(source.name, source.class_names)
    return sources


def _matched(
    source: Source, names: tuple[str, ...], activation: str, say: Callable[[str], None]
) -> Source:
    """The split with the model's classes; see `classes.matched`."""
    if source.multilabel and activation == "softmax":
        raise UsageError(
            f"{source.name} has several labels per image, but the model was trained for one"
        )
    return classes.matched(source, names, say)


def _results(
    sets: Mapping[str, Evaluator], weights: Any, skips: Skips, names: tuple[str, ...]
) -> tuple[dict[str, float], ClassReport | None]:
    """The metrics of all sets, and what the set without a name counted for each class."""
    results: dict[str, float] = {}
    report = None
    for name, evaluator in sets.items():
        weights = evaluation.gathered(weights, evaluator.layout.weights)
        sums = evaluator.sums(weights, skips)
        assert sums is not None, "without stop_requested it is never stopped"
        if "per_class" in sums:
            report = ClassReport.of(names, sums.pop("per_class"))
        results |= evaluation.prefixed(name, evaluator.figures(sums))
    return results, report


def _published(
    model: str, origin: dict[str, Any], source: Source, split: str
) -> tuple[Result, ...]:
    """The published accuracy of weights with a name, if the data is ImageNet's validation set.

    Args:
      model: its name.
      origin: of the weights, see `inference.Inference`.
      source: the split. ImageNet's has all synsets, and 50,000 images.
      split: its name, which is not that of a training part.
    """
    name = str(inference.origin_of(origin).get("name", "")).partition("@")[0]
    training = set(map(role_of, folder_layout.names_in(split))) == {"train"}
    is_imagenet = set(source.class_names) == imagenet.synsets().keys()
    if not (name and is_imagenet and len(source) == imagenet.VALIDATION) or training:
        return ()
    results = models.published_results(model)
    return tuple(each for each in results if models.download_name(model, each) == name)
