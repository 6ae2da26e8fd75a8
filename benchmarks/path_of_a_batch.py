"""Counts the functions and the changes of file that a reader meets who follows one batch.

    python -m benchmarks.path_of_a_batch
    python -m benchmarks.path_of_a_batch --list

The run of `configs/imagenet.py` is prepared on a few small JPEGs of a TFDS data set. Python then
reports which functions of the package are called, in all threads:

- `host`: from the files to one batch of global arrays, and the end of the input;
- `step`: while JAX traces the training step, from the augmentation to the update.

Each function counts once, at its first call, by its file and qualified name. A comprehension, a
lambda or a property is a function too (from Python 3.12 on, comprehensions are part of the function
around them); what dataclasses generate is not. A change of file is a function in another file than
the one before; opening the first file is one, too.

At commit 42e77b4 this gives what issue 15 starts from: host 49 functions, 11 files and 28 changes
of file; step 126, 10 and 42. To count another commit, copy this file into a checkout of it.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import tensorflow_datasets as tfds

import xception_jax
from benchmarks import arguments
from benchmarks.loop import config_from
from tests import tiny_datasets
from xception_jax import train

PACKAGE = Path(xception_jax.__file__).parent

# As small as the model and its virtual batches allow; the recipe decides which functions are used.
CHANGES = {
    "data.image_size": 75, "data.batch_size": 8, "data.threads": 1, "data.in_memory": 0,
    "model.bn_virtual_batch": 8, "model.middle_blocks": 0, "mesh.data": 1,
}  # fmt: skip

Function = tuple[str, str]  # its file, relative to the package, and its qualified name


def main() -> int:
    """Counts and prints."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.path_of_a_batch",
        description=__doc__.splitlines()[0],
        epilog="example: python -m benchmarks.path_of_a_batch --list",
    )
    parser.add_argument("--list", action="store_true", help="name the functions, too")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    paths = paths_of_a_batch()
    if options.list:
        for part, functions in paths.items():
            print(listed(part, functions), end="\n\n")
    print(f"{'':6}{'functions':>12}{'files':>8}{'changes of file':>18}")
    for part, functions in paths.items():
        total, files, changes = counts(functions)
        print(f"{part:6}{total:12}{files:8}{changes:18}")
    return 0


def paths_of_a_batch() -> dict[str, list[Function]]:
    """The functions on the host and in the step, in the order of their first calls.

    To be asked once in a process: what JAX or a cache holds already is not called again.
    """
    with tempfile.TemporaryDirectory() as data_dir:
        run = prepared_run(data_dir)

        def first_batch() -> Any:
            batches = run.batches(0)
            try:
                return next(batches)
            finally:
                batches.close()

        batch, on_host = called(first_batch)
        _, in_step = called(lambda: jax.eval_shape(run.train_step, run.shapes, batch))
    return {"host": on_host, "step": in_step}


def prepared_run(data_dir: str) -> train.Run:
    """The run of the recipe on small JPEGs, which are written to `data_dir`."""
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS reports its progress with prints
        tiny_datasets.prepare(Path(data_dir), "pictures", examples={"train": 8, "test": 4})
    data = {
        "data.dataset": "pictures", "data.data_dir": data_dir,
        "data.train_split": "train", "data.eval_split": "test",
    }  # fmt: skip
    recipe = PACKAGE.parent / "configs" / "imagenet.py"
    return train.build_run(config_from(str(recipe), {**data, **CHANGES}, steps=10))


def called(action: Callable[[], Any]) -> tuple[Any, list[Function]]:
    """What the action returns, and the package's functions in the order of their first calls."""
    functions: dict[Function, None] = {}
    prefix = f"{PACKAGE}/"

    def note(frame: FrameType, _event: str, _argument: Any) -> None:
        code = frame.f_code  # the event is a call; to return None asks for no others in its frame
        if code.co_filename.startswith(prefix):
            functions.setdefault((code.co_filename.removeprefix(prefix), code.co_qualname))

    threading.settrace(note)
    sys.settrace(note)
    try:
        result = action()
    finally:
        sys.settrace(None)
        threading.settrace(None)
    return result, list(functions)


def counts(functions: list[Function]) -> tuple[int, int, int]:
    """The numbers of functions, of files, and of changes of file."""
    files = [file for file, _ in functions]
    changes = sum(file != before for file, before in zip(files, ["", *files], strict=False))
    return len(files), len(set(files)), changes


def listed(part: str, functions: list[Function]) -> str:
    """The functions in order, each file's name above those that are met in it."""
    lines, latest = [f"{part}:"], ""
    for number, (file, name) in enumerate(functions, 1):
        lines += [f"  {file}"] if file != latest else []
        lines.append(f"  {number:4}  {name.replace('.<locals>', '')}")
        latest = file
    return "\n".join(lines)


if __name__ == "__main__":
    arguments.run(main)
