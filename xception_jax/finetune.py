"""Fine-tuning in one call: settings chosen from the data and the machine, training, the result.

from xception_jax.finetune import finetune

result = finetune("photos/pets", weights="xception.keras")
print(result.metrics["top1"])
"""

if __name__ == "__main__":  # first, so that --help and a misspelt flag do not wait for JAX
    from xception_jax import commands

    commands.run("finetune")

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from xception_jax import config as config_lib
from xception_jax import evaluate, train
from xception_jax.data import parts, splits
from xception_jax.data.source import Source
from xception_jax.errors import RunError, UsageError
from xception_jax.finetuning import decisions, gathering, results
from xception_jax.finetuning.decisions import Decisions
from xception_jax.finetuning.results import CrossValidationResult, FinetuneResult
from xception_jax.finetuning.table import WEIGHTS
from xception_jax.predict import Classifier
from xception_jax.training.checkpoint import manifest
from xception_jax.training.metrics import SHARES
from xception_jax.utils import console as console_lib
from xception_jax.utils import seal
from xception_jax.utils.files import write_atomically
from xception_jax.utils.numbers import for_json, from_json
from xception_jax.utils.text import shell_join

# With more classes, only those with the most errors are printed.
_CLASSES, _WORST = 40, 20
# The file of a fold's results.
_FOLD = "fold.json"


def finetune(
    data: str | os.PathLike[str] | None = None,
    *,
    weights: str | os.PathLike[str] = WEIGHTS,
    workdir: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> FinetuneResult:
    """Fine-tunes a model, or continues.

    Settings are chosen from the data, the machine and the weights, and kept in
    `WORKDIR/finetune.json`. The checkpoint is selected by the validation part, or by a part that is
    held out of the training part. A test set is read once, at the end. It is read again if a change
    that a started run takes, such as another `eval.patience`, leads to another checkpoint.

    Args:
      data: a folder of images or a table of labels, see docs/folder.md; None: `data.dataset` in
        `changes`.
      weights: a name or a file, see docs/weights.md.
      workdir: the run's folder; None: `runs/NAME`.
      changes: config fields that replace what is chosen.
      console: where to print; None: standard output.

    Raises:
      UsageError: the data, the weights, a field or the folder is not valid.
      RunError: the weights cannot be downloaded, or the run cannot continue.
    """
    out = console or console_lib.make_console()
    decided, folder = _begin(data, weights, workdir, 0, changes, out)
    settings = decisions.settings_of(decided.config())
    measured = decided.settings == settings
    # Without checkpoints the result is the only thing that is left of the run.
    if measured and decisions.best_checkpoint(folder) in (None, decided.checkpoint):
        out.print(f"{folder} is finished; for another fine-tuning use another --workdir")
    else:
        # What may change in a run that has begun was checked by `_begin`.
        trained = train.train(decided.config(), folder, console=out, allow_config_changes=True)
        decisions.write(folder, decided)
        if not trained.finished:
            return FinetuneResult(folder, False)
        best = decisions.best_checkpoint(folder)
        if not best or best != decided.checkpoint:  # else the result stands: nothing is read again
            decided = _measured(decided, folder, out)
        decided = replace(decided, settings=settings, checkpoint=best or "")
        decisions.write(folder, decided)
    assert decided.result is not None, "it is finished"
    return _told(FinetuneResult.from_json(folder, decided.result), out)


def cross_validate(
    data: str | os.PathLike[str] | None = None,
    *,
    folds: int,
    weights: str | os.PathLike[str] = WEIGHTS,
    workdir: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> CrossValidationResult:
    """Fine-tunes a model for each fold of the training part, or continues.

    Each model is applied to the fold that it has not seen. These predictions are kept in
    `WORKDIR/out_of_fold.csv`. A test set is not read.

    Args:
      data, weights, workdir, changes, console: see `finetune`.
      folds: their number, at least 2.

    Raises:
      UsageError: the data, the weights, a field or the folder is not valid.
      RunError: the weights cannot be downloaded, or a run cannot continue.
    """
    if folds < 2:
        raise UsageError(f"--folds={folds}: a cross-validation has at least 2 folds")
    out = console or console_lib.make_console()
    decided, folder = _begin(data, weights, workdir, folds, changes, out)
    table = folder / "out_of_fold.csv"
    whole = splits.open_split(decided.config(), str(decided.fields["data.train_split"]))
    rated: list[dict[str, float]] = []
    for fold in range(folds):
        found = _fold(decided, folder / f"fold{fold}", fold, whole, out)
        decisions.write(folder, decided)
        if found is None:
            return CrossValidationResult(folder, False, tuple(rated), table)
        rated.append(found)
        out.print(f"fold {fold + 1} of {folds}: {_line(found)}")
    parts_of_table = [_rows(folder / f"fold{fold}") for fold in range(folds)]
    write_atomically(table, "".join([results.header(whole.class_names), *parts_of_table]))
    result = CrossValidationResult(folder, True, tuple(rated), table)
    shown = [f"{label} {result.mean[name]:.2%} ± {result.spread[name]:.2%}"
             for name, label in SHARES.items() if name in result.mean]  # fmt: skip
    out.print(f"{folds} folds, mean ± standard deviation: {'  '.join(shown)}  "
              f"loss {result.mean['loss']:.4f} ± {result.spread['loss']:.4f}")  # fmt: skip
    out.print(f"predictions out of fold: {table}")
    return result


def _begin(
    data: str | os.PathLike[str] | None,
    weights: str | os.PathLike[str],
    workdir: Path | None,
    folds: int,
    changes: Mapping[str, Any] | None,
    out: Console,
) -> tuple[Decisions, Path]:
    """The decisions, which are printed, and the folder."""
    if jax.process_count() > 1:
        raise UsageError("finetune is one process; start it without a cluster, or use train")
    given = dict(changes or {})
    config_lib.unknown(given)
    for name in ("data.folds", "data.fold"):
        if name in given:
            raise UsageError(f"config.{name} is set by --folds")
    source = str(given.pop("init_from", "") or os.fspath(weights))
    if data is None and "data.dataset" not in given:
        raise UsageError("a folder of images is needed; --help shows an example")
    dataset = given.pop("data.dataset", "") if data is None else gathering.dataset_of(data)
    folder = workdir or gathering.default_workdir(dataset)
    try:
        decided, before = decisions.settle(folder, dataset, source, folds, given)
    except RunError as error:
        if source != WEIGHTS:
            raise
        raise RunError(
            f"{error}. Without a network, give a Keras or timm file: --input=FILE "
            f"(docs/weights.md says how to get one)"
        ) from None
    told = (
        "as decided at its start" if before else "each can be set, as --config.data.image_size=128"
    )
    out.print(f"fine-tuning in {folder}, {told}:")
    for line in decided.reasons:
        out.print(f"  {line}")
    return decided, folder


def _measured(decided: Decisions, folder: Path, out: Console) -> Decisions:
    """The decisions with the result of the best checkpoint."""
    split = decided.test or str(decided.fields["data.eval_split"])
    rated = evaluate.evaluate(folder, step="best", split=split, per_class=True, say=out.print)
    assert rated.classes is not None, "it was asked for"
    classes = tuple(rated.classes.classes())
    found = FinetuneResult(
        folder, True, rated.step, split, bool(decided.test), rated.metrics, classes
    )
    readings = decided.readings + bool(decided.test)
    if readings > 1:
        out.print(
            f"NOTE: the test set was read {readings} times, for {readings} checkpoints; if its "
            f"results select the settings, they are too good"
        )
    return replace(decided, result=found.to_json(), readings=readings)


def _asked(folder: Path, source: Source) -> Iterator[np.ndarray]:
    """The probabilities of each image of a split, by the best checkpoint; empty: unusable."""
    classifier = Classifier(folder, step="best")
    return (prediction.probabilities for prediction in classifier.stream_split(source))


def _fold(
    decided: Decisions, folder: Path, fold: int, whole: Source, out: Console
) -> dict[str, float] | None:
    """The metrics of a fold, whose predictions are kept in its folder; None if it was stopped.

    They are found again if the settings, the training data or the checkpoint are not those of the
    kept ones, or if a file of them is damaged.
    """
    config = decided.config(fold)
    settings = decisions.settings_of(config, whole.name, len(whole))
    if found := _kept_fold(folder, settings):
        return found
    begun = manifest.steps(folder / "checkpoints")
    if not begun and gathering.digest(decided.weights) != decided.digest:
        raise UsageError(
            f"{decided.weights} has changed since this cross-validation began, so its folds would "
            f"start from different weights; use another --workdir"
        )
    trained = train.train(config, folder, console=out, allow_config_changes=True)
    if not trained.finished:
        return None
    rated = evaluate.evaluate(folder, step="best", split=parts.FOLD, say=out.print)
    source = splits.open_split(config, parts.FOLD)
    rows = results.out_of_fold(fold, source, list(_asked(folder, source)))
    write_atomically(_rows_of(folder), rows)
    about = {
        "settings": settings, "checkpoint": decisions.best_checkpoint(folder),
        "predictions": _digest(rows.encode()), "metrics": for_json(rated.metrics),
    }  # fmt: skip
    write_atomically(folder / _FOLD, json.dumps(seal.sealed(about), indent=1) + "\n")
    # Those of data.frozen_draws: together, the folds could fill the disk.
    shutil.rmtree(folder / "features", ignore_errors=True)
    return dict(rated.metrics)


def _kept_fold(folder: Path, settings: str) -> dict[str, float] | None:
    """The metrics that the folder of a fold keeps; None unless they are of these settings.

    Without checkpoints, they are the only thing that is left of the run.
    """
    try:
        stored = seal.parse((folder / _FOLD).read_bytes())
        seal.check(stored)
        rows = _digest(_rows_of(folder).read_bytes())
    except (OSError, ValueError):
        return None
    if (stored["settings"], stored["predictions"]) != (settings, rows):
        return None
    if decisions.best_checkpoint(folder) not in (None, stored["checkpoint"]):
        return None
    return from_json(stored["metrics"])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _rows_of(folder: Path) -> Path:
    return folder / "out_of_fold.csv"


def _rows(folder: Path) -> str:
    return _rows_of(folder).read_text(encoding="utf-8")


def _line(metrics: Mapping[str, float]) -> str:
    shares = (f"{label} {metrics[name]:.2%}" for name, label in SHARES.items() if name in metrics)
    return f"{'  '.join(shares)}  loss {metrics['loss']:.4f}  {metrics['examples']} examples"


def _table(found: FinetuneResult) -> Table:
    """The results by class; of many classes those with the most errors."""
    shown, title = list(found.classes), f"{found.split} by class"
    if len(shown) > _CLASSES:
        shown = sorted(shown, key=lambda one: one.right - one.images)[:_WORST]
        title = f"{found.split}: the {_WORST} of {len(found.classes):,} classes with most errors"
    rows = [
        (one.name, f"{one.images:,}", _share(one.recall), _share(one.precision),
         f"{one.confused_with} ({one.confused:,})" if one.confused else "")
        for one in shown
    ]  # fmt: skip
    columns = ("class", "images", "recall", "precision", "most confused with")
    return console_lib.table(title, columns, rows)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _told(found: FinetuneResult, out: Console) -> FinetuneResult:
    """Prints a result."""
    assert found.metrics is not None, "it is finished"
    if found.classes:
        out.print(_table(found))
    out.print(f"result on {found.split}: {_line(found.metrics)}")
    if not found.tested:
        out.print(
            "NOTE: the checkpoint was selected by these images, so the result is a little too "
            "good; a test/ folder beside train/ would measure it"
        )
    ask = ("python", "-m", "xception_jax.predict", f"--workdir={found.workdir}", "--step=best")
    out.print(f"ask it: {shell_join(ask)} PICTURE...")
    return found
