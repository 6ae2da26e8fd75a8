"""Predictions as an Apache Parquet file, for pandas, Polars, DuckDB or Spark."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from xception_jax.errors import UsageError
from xception_jax.serving.prediction import Prediction

# Rows that are written in one go.
_GROUP = 1024


@contextlib.contextmanager
def writing(
    path: Path, class_names: Sequence[str], *, features: bool = False, labels: bool = False
) -> Iterator[Callable[[Prediction], None]]:
    """Writes a file, which has its name only when it is complete.

    The columns `class` and `probability` are of the most probable class. `probabilities` is a list
    of float32 in the order of `class_names`, a JSON list in the schema's metadata; `features` is
    one, too. `labels` is a list of names, see `Prediction.labels`. A picture that cannot be used
    has a `name` and an `error` only.

    Args:
      path: of the file.
      class_names: of the model.
      features: whether to write the features.
      labels: whether to write the labels.

    Yields:
      A function that takes the next prediction.

    Raises:
      UsageError: the package `pyarrow` is not installed.
      OSError: the file cannot be written.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError("--parquet needs pyarrow: pip install 'xception_jax[parquet]'") from None
    floats = pyarrow.list_(pyarrow.float32())
    columns = [
        ("name", pyarrow.string()), ("class", pyarrow.string()), ("probability", pyarrow.float32()),
        ("probabilities", floats), *([("features", floats)] if features else []),
        *([("labels", pyarrow.list_(pyarrow.string()))] if labels else []),
        ("error", pyarrow.string()),
    ]  # fmt: skip
    schema = pyarrow.schema(columns, {"class_names": json.dumps(class_names)})
    draft = path.with_name(f"{path.name}.tmp")
    rows: list[dict[str, Any]] = []
    try:
        with parquet.ParquetWriter(draft, schema) as file:

            def write(prediction: Prediction) -> None:
                rows.append(_row(prediction))
                if len(rows) == _GROUP:
                    flush()

            def flush() -> None:
                file.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows.clear()

            yield write
            flush()
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _row(prediction: Prediction) -> dict[str, Any]:
    if prediction.error:
        return {"name": prediction.name, "error": prediction.error}
    [(name, probability)] = prediction.top(1)
    return {
        "name": prediction.name, "class": name, "probability": probability,
        "probabilities": prediction.probabilities, "features": prediction.features,
        "labels": prediction.labels,
    }  # fmt: skip
