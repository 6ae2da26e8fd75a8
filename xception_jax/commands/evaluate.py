"""Evaluates a checkpoint of a run, or weights without a run: exact metrics over a complete split.

    python -m xception_jax.evaluate --workdir=runs/digits
    python -m xception_jax.evaluate --workdir=runs/digits --step=best --weights=raw --split=train
    python -m xception_jax.evaluate --workdir=runs/pets --dataset=folder:more --report=report
    python -m xception_jax.evaluate --workdir=runs/pets --step=best --calibrate --split=val
    python -m xception_jax.evaluate --input=hf:timm/xception65.ra3_in1k --dataset=folder:imagenet

Reads only the weights it needs, and checks those of a run against their digests.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from xception_jax.commands import cli
from xception_jax.errors import UsageError, of_system

if TYPE_CHECKING:
    from xception_jax.training.results import EvaluationResult, InputEvaluation

_WORKDIR = flags.DEFINE(cli.PATH, "workdir", None, "folder of the run")
_INPUT = flags.DEFINE(
    cli.WEIGHTS, "input", None, "instead of --workdir: weights as config.init_from takes them: a "
    "name (hf:..., keras:...), a Keras or timm file, a converted one, a run's folder or "
    "RUN/checkpoints/STEP"
)  # fmt: skip
_DATASET = flags.DEFINE_string(
    "dataset", None, "data set, as in config.data.dataset: a TFDS data set or folder:PATH; needed "
    "with --input, by default the run's. Its classes are matched by name"
)  # fmt: skip
_LABEL = flags.DEFINE_string(
    "label", None, "of --dataset: feature with the labels, as in config.data.label"
)
_MODEL = flags.DEFINE_string(
    "model", None, "name of the model, if --input is a Keras or timm file, which does not name it"
)
_ACTIVATION = flags.DEFINE_enum(
    "activation", None, ["softmax", "sigmoid"],
    "of --input: what makes probabilities of the logits, if the weights do not say it",
)  # fmt: skip
_STEP = flags.DEFINE_string("step", "latest", "checkpoint: latest, best or a number")
_WEIGHTS = flags.DEFINE_enum(
    "weights",
    None,
    ["ema", "raw"],
    "ema (averaged) or raw weights; by default averaged if the run has them",
)
_SPLIT = flags.DEFINE_string(
    "split", None, "split of the data; by default the run's data.eval_split and eval.also, of "
    "another data set its validation or test part, or all of a folder without parts"
)  # fmt: skip
_DATA_DIR = flags.DEFINE(
    cli.DATA_PATH, "data_dir", None, "folder of TFDS' data, if it has moved since the training"
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    0,
    "images over all devices; 0: as in the run, 32 per device with --input. Does not affect the "
    "result",
    lower_bound=0,
)
_MAX_SKIPPED = flags.DEFINE_float(
    "max_skipped",
    None,
    "share of the examples that may be skipped; by default as in the run, 0.001 with --input",
    lower_bound=0.0,
    upper_bound=1.0,
)
_REPORT = flags.DEFINE(
    cli.PATH, "report", None, "folder to write a table of the classes (classes.csv), the confusion "
    "matrix (confusion.csv) and both as JSON (report.json)"
)  # fmt: skip
_CALIBRATE = flags.DEFINE_bool(
    "calibrate", False, "of a run: fit a temperature on the split, and for several labels an image "
    "a threshold of each class; predict and export use what is kept beside the checkpoint"
)  # fmt: skip
_JSON = flags.DEFINE_bool("json", False, "print one line of JSON instead of a table")
for _name in cli.SHARED_FLAGS:
    flags.declare_key_flag(_name)


def main() -> None:
    if not (_WORKDIR.value or _INPUT.value):
        raise UsageError("--workdir is needed, or --input with --dataset; --help shows an example")
    if _WORKDIR.value and _INPUT.value:
        raise UsageError("--input and --workdir both name weights; give one of them")
    if _INPUT.value and not _DATASET.value:
        raise UsageError("--dataset is needed with --input, as --dataset=folder:PATH")
    others = _INPUT, _DATASET, _LABEL, _MODEL, _ACTIVATION, _REPORT
    if _CALIBRATE.value and (given := [flag.name for flag in others if flag.value]):
        raise UsageError(f"--calibrate is of a run on its own data, and takes no --{given[0]}")
    if _LABEL.value and not _DATASET.value:
        raise UsageError("--label is of --dataset; the run knows the label of its own data")
    from xception_jax.runtime import cluster
    from xception_jax.utils import console

    # A training in the same job has the same environment, so only flags can join a cluster.
    cli.settle(by_itself=False)
    cli.keep_compiled()
    if _REPORT.value and cluster.is_first():
        _make(_REPORT.value)  # before the work
    quiet = not cluster.is_first()
    say = console.make_console(stderr=_JSON.value, quiet=quiet).print
    if _CALIBRATE.value:
        _calibrate(say)
        return
    result = _evaluated(
        dataset=_DATASET.value,
        label=_LABEL.value,
        split=_SPLIT.value,
        data_dir=str(_DATA_DIR.value) if _DATA_DIR.value else None,
        batch_size=_BATCH_SIZE.value,
        per_class=_REPORT.value is not None,
        say=say,
    )
    if not cluster.is_first():
        return
    if _JSON.value:
        print(json.dumps(result.to_json()))
    else:
        console.make_console().print(_table(result))
    if result.classes is not None and _REPORT.value:
        files = result.classes.write(_REPORT.value, result.to_json())
        say(f"each class: {', '.join(map(str, files))}")


def _calibrate(say: Callable[[str], None]) -> None:
    from xception_jax import evaluate
    from xception_jax.runtime import cluster
    from xception_jax.utils import console

    result = evaluate.calibrate(
        Path(_WORKDIR.value or ""),
        step=_STEP.value,
        weights=_WEIGHTS.value,
        split=_SPLIT.value,
        data_dir=str(_DATA_DIR.value) if _DATA_DIR.value else None,
        batch_size=_BATCH_SIZE.value,
        max_skipped=_MAX_SKIPPED.value,
        say=say,
    )
    if not cluster.is_first():
        return
    if _JSON.value:
        print(json.dumps(result.to_json()))
        return
    fitted = result.calibration
    rows = [("temperature", f"{fitted.temperature:.4f}", "")]
    for name, told in (("nll", "negative log-likelihood"), ("ece", "expected calibration error"),
                       ("f1", "mean F1 of the classes")):  # fmt: skip
        if name in fitted.before:
            rows.append((told, f"{fitted.before[name]:.4f}", f"{fitted.after[name]:.4f}"))
    title = f"{result.workdir}, step {result.step}, {result.split}: {fitted.examples:,} examples"
    out = console.make_console()
    out.print(console.table(title, ("", "before", "after"), rows))
    out.print(f"kept in {result.file}: predict and export use it for step {result.step}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--report={folder} cannot be written: {of_system(error)}") from None


def _evaluated(**options: Any) -> "EvaluationResult | InputEvaluation":
    """Evaluates a run or a file; see `pretrained.open_pretrained`."""
    from xception_jax import evaluate
    from xception_jax.weights import pretrained

    path: str | Path = _INPUT.value or ""
    run = None
    if _WORKDIR.value:
        run = _WORKDIR.value, _STEP.value
    elif isinstance(path, Path):
        run = pretrained.run_of(path, _STEP.value)
    if run is None:
        if _STEP.value != "latest" or _WEIGHTS.value:
            raise UsageError(f"--step and --weights are of a run, and --input={path} is a file")
        if _MAX_SKIPPED.value is not None:
            options["max_skipped"] = _MAX_SKIPPED.value
        return evaluate.evaluate_input(
            path, model=_MODEL.value, activation=_ACTIVATION.value, **options
        )
    if _MODEL.value or _ACTIVATION.value:
        raise UsageError(f"--model and --activation are of a file; the run in {run[0]} knows both")
    return evaluate.evaluate(
        run[0], step=run[1], weights=_WEIGHTS.value, max_skipped=_MAX_SKIPPED.value, **options
    )


def _table(result: "EvaluationResult | InputEvaluation") -> Any:
    from xception_jax.training.metrics import SHARES
    from xception_jax.training.results import InputEvaluation
    from xception_jax.utils import console

    if isinstance(result, InputEvaluation):
        title, rows = result.input, [("model", result.model), ("data", result.data)]
        published = result.published
    else:
        title, rows, published = str(result.workdir), [("step", str(result.step))], ()
        rows += [("weights", result.weights), ("data", result.data)]
    rows.append(("split", result.split))
    for name, value in result.metrics.items():
        form = ".2%" if name.rpartition("/")[2] in SHARES else ".6f"
        rows.append((name, f"{value:{form}}" if isinstance(value, float) else str(value)))
    for each in published:
        told = f"top1 {each.top1:.2f}%, top5 {each.top5:.2f}% ({each.source})"
        rows.append(("published", told))
    return console.table(title, ("", ""), rows)
