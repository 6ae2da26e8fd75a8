"""Predicts what pictures show: the most probable classes of each.

    python -m xception_jax.predict --workdir=runs/pets cat.jpg photos/ 'more/*.png'
    python -m xception_jax.predict --workdir=runs/pets --explain=heat photos/
    python -m xception_jax.predict --input=xception.keras --top=3 --json photos/ > answers.jsonl
    find . -name '*.jpg' | python -m xception_jax.predict --exported=exported -
    python -m xception_jax.predict --workdir=runs/pets --every=30 --csv clip.mp4 > frames.csv

A SOURCE is a file, a folder with all below it, a pattern, an http(s) address, a video, or - for a
list on standard input. With --column, a .csv or .tsv file is a list too. Answers come in this
order, one line each. Pictures that cannot be used are named on standard error, and skipped.
"""

import contextlib
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from absl import flags

from xception_jax.commands import cli
from xception_jax.errors import ExampleError, RunError, UsageError
from xception_jax.utils.text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from xception_jax.predict import Classifier, Prediction

_WORKDIR = flags.DEFINE(cli.PATH, "workdir", None, "folder of the run whose model is asked")
_INPUT = flags.DEFINE(
    cli.WEIGHTS, "input", None, "instead of --workdir: weights as config.init_from takes them: a "
    "name (hf:..., keras:...), a Keras or timm file, a converted one, a run's folder or "
    "RUN/checkpoints/STEP"
)  # fmt: skip
_EXPORTED = flags.DEFINE(cli.PATH, "exported", None, "instead of a run: the folder of an export")
_MODEL = flags.DEFINE_string("model", None, "name of the model in --input, where it does not say")
_STEP = flags.DEFINE_string("step", "latest", "checkpoint of the run: latest, best or a number")
_WEIGHTS = flags.DEFINE_enum(
    "weights", None, ["ema", "raw"], "averaged or not; unless given, averaged if the run has them"
)
_ACTIVATION = flags.DEFINE_enum(
    "activation", None, ["softmax", "sigmoid"],
    "what makes probabilities of the logits, if the weights do not say it",
)  # fmt: skip
_TOP = flags.DEFINE_integer("top", 5, "classes of each picture, most probable first", lower_bound=1)
_COLUMN = flags.DEFINE_string(
    "column", "", "column of a .csv or .tsv file that names pictures, from its folder on"
)
_EVERY = flags.DEFINE_integer(
    "every", 30, "of a video: the first frame and each one after this many frames", lower_bound=1
)
_JSON = flags.DEFINE_bool("json", False, "print a line of JSON for each picture")
_CSV = flags.DEFINE_bool("csv", False, "print a CSV table")
_PARQUET = flags.DEFINE(
    cli.PATH, "parquet", None, "write all probabilities to this Parquet file; nothing is printed"
)
_FEATURES = flags.DEFINE_bool("features", False, "write what the head takes to --parquet, too")
_TTA = flags.DEFINE_enum(
    "tta", None, ["flip"], "average the probabilities of the picture and its mirror image"
)
_EXPLAIN = flags.DEFINE(
    cli.PATH, "explain", None,
    "folder for a copy of each picture with a heat map over it: where it speaks for its most "
    "probable class (Grad-CAM)",
)  # fmt: skip
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 0, "over all devices; 0: 32 per device, or the number of pictures", lower_bound=0
)
_STRICT = flags.DEFINE_bool(
    "strict", False, "end with exit code 1 if a picture cannot be used; the others are answered"
)
flags.declare_key_flag(cli.IMPORTS.name)
flags.declare_key_flag("keep_freed_memory")


def main(names: Sequence[str]) -> None:
    source = _source(names)
    from xception_jax.data import pictures

    # Names of files are bytes; those that are no UTF-8 are kept as Python keeps them.
    listed = io.TextIOWrapper(sys.stdin.buffer, errors="surrogateescape", encoding="utf-8")
    found = pictures.find(names, column=_COLUMN.value, listed=listed, every=_EVERY.value)
    if not found:
        raise UsageError("the list on standard input is empty")
    from xception_jax.predict import Classifier
    from xception_jax.utils import console

    cli.settle(by_itself=False)
    cli.keep_compiled()
    classifier = Classifier(
        source,
        step=_STEP.value,
        weights=_WEIGHTS.value,
        model=_MODEL.value,
        activation=_ACTIVATION.value,
        batch_size=_BATCH_SIZE.value,
        flip=_TTA.value == "flip",
        features=_FEATURES.value,
        explain=_EXPLAIN.value is not None,
    )
    told = console.make_console(stderr=True)
    for note in classifier.notes:
        told.print(note)
    if classifier.temperature != 1:
        told.print(f"probabilities are calibrated: temperature {classifier.temperature:.4g}")
    if _EXPLAIN.value:
        _EXPLAIN.value.mkdir(parents=True, exist_ok=True)
    bad = 0
    with (
        _writer(classifier) as write,
        console.progress(told, "pictures", len(found)) as advance,
    ):
        for i, prediction in enumerate(classifier.stream(found)):
            if prediction.error:
                bad += 1
                told.print(f"skipped: {printable(prediction.name)} {printable(prediction.error)}")
            elif _EXPLAIN.value:
                number = f"{i:0{len(str(len(found)))}}"
                _explain(classifier, prediction, found[i], number, told)
            write(prediction)
            advance()
    if bad == len(found):
        raise RunError(f"none of the {bad:,} pictures can be used")
    if bad:
        told.print(f"{bad:,} of {len(found):,} pictures cannot be used")
        if _STRICT.value:
            sys.exit(1)


def _source(names: Sequence[str]) -> str | Path:
    """The model's source; `UsageError` for flags that do not go together, before slow imports."""
    sources = [flag.value for flag in (_WORKDIR, _INPUT, _EXPORTED) if flag.value]
    if len(sources) != 1:
        raise UsageError(
            "one of --workdir, --input and --exported is needed; --help shows examples"
        )
    if not names:
        raise UsageError("name a picture, a folder or a pattern; --help shows examples")
    if sum(map(bool, (_JSON.value, _CSV.value, _PARQUET.value))) > 1:
        raise UsageError("--json, --csv and --parquet: only one can be written")
    if _FEATURES.value and not _PARQUET.value:
        raise UsageError("--features are written to a file; give --parquet=FILE")
    if _PARQUET.value and not _PARQUET.value.parent.is_dir():
        raise UsageError(f"--parquet={_PARQUET.value} is in no folder that exists")
    if _EXPORTED.value and not (_EXPORTED.value / "model.json").exists():
        raise UsageError(f"--exported={_EXPORTED.value} has no model.json; it is no export")
    if _WORKDIR.value and not _WORKDIR.value.is_dir():
        raise UsageError(f"--workdir={_WORKDIR.value} is no folder of a run")
    return cast("str | Path", sources[0])


def _explain(
    classifier: "Classifier", prediction: "Prediction", picture: Any, number: str, told: "Console"
) -> None:
    """Draws the heat of a picture; one that cannot be read any more is named."""
    from xception_jax.data import pictures

    assert _EXPLAIN.value is not None
    path = _EXPLAIN.value / f"{number}-{pictures.stem(picture)}.jpg"
    try:
        classifier.draw(picture, prediction, path)
    except ExampleError as error:
        told.print(f"not drawn: {printable(error)}")


def _writer(
    classifier: "Classifier",
) -> contextlib.AbstractContextManager[Callable[["Prediction"], None]]:
    """A function that prints or writes the next prediction, as the flags ask for."""
    names, labels = classifier.class_names, classifier.thresholds is not None
    if _PARQUET.value:
        from xception_jax.serving import parquet

        return parquet.writing(_PARQUET.value, names, features=_FEATURES.value, labels=labels)
    return contextlib.nullcontext(_printer(min(_TOP.value, len(names)), labels))


def _printer(top: int, labels: bool) -> Callable[["Prediction"], None]:
    """Prints predictions as the flags ask for."""
    if _JSON.value:
        return lambda prediction: print(json.dumps(_as_json(prediction, top)))
    if _CSV.value:
        table = csv.writer(sys.stdout, lineterminator="\n")
        ranks = range(1, top + 1)
        columns = (f"{kind}{i}" for i in ranks for kind in ("class", "probability"))
        table.writerow(["name", *(["labels"] if labels else []), *columns])
        return lambda prediction: table.writerow(_as_row(prediction, top))
    from xception_jax.utils import console

    out = console.make_console()

    def line(prediction: "Prediction") -> None:
        if not prediction.error:
            classes = (f"{name} {share:.1%}" for name, share in prediction.top(top))
            told = f"{prediction.name}: {', '.join(classes)}"
            if prediction.labels is not None:
                told += f"; labels: {', '.join(prediction.labels) or 'none'}"
            out.print(printable(told))

    return line


def _as_json(prediction: "Prediction", top: int) -> dict[str, Any]:
    if prediction.error:
        return {"name": prediction.name, "error": prediction.error}
    classes = [{"class": name, "probability": share} for name, share in prediction.top(top)]
    labels = {} if prediction.labels is None else {"labels": prediction.labels}
    return {"name": prediction.name, "top": classes, **labels}


def _as_row(prediction: "Prediction", top: int) -> Iterator[Any]:
    yield prediction.name
    if prediction.labels is not None:
        yield json.dumps(prediction.labels, ensure_ascii=False)
    for name, share in [] if prediction.error else prediction.top(top):
        yield from (name, f"{share:.6g}")
