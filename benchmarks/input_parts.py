"""Measures parts of our input on one core: a record, small images, a start far into a run.

The pictures are those of `benchmarks.input`; to measure a record they are prepared as array_record.
"""

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from benchmarks import arguments, pictures, record
from benchmarks.arguments import count
from benchmarks.input import PICTURES
from benchmarks.turns import digits
from xception_jax.data import readers
from xception_jax.data.batches import Host, Reader
from xception_jax.data.render.decode import Images
from xception_jax.data.source import Source

SMALL, SMALL_SIDE, SMALL_BATCH = 60_000, 28, 256
FAR = 1_000_000


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_parts",
        description=__doc__.splitlines()[0],
        epilog="example: python -m benchmarks.input_parts --rounds 5",
    )
    add = parser.add_argument
    add("--rounds", type=count, default=5, help="(%(default)s)")
    add("--pictures", type=Path, default=PICTURES, help="folder, made if missing (%(default)s)")
    add("--output", type=Path, help="CSV file (benchmarks/results/input_parts.csv)")
    options = parser.parse_args()
    options.output = options.output or record.RESULTS / "input_parts.csv"
    return options


def main() -> int:
    """Measures, prints and writes."""
    options = parse()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    folder = readers.open_split(
        f"folder:{pictures.write(options.pictures.expanduser().absolute())}", "train"
    )
    with tempfile.TemporaryDirectory() as data_dir:
        prepared = prepare(folder, data_dir)
        parts: list[tuple[str, str, Callable[[], float]]] = [
            ("a record of 110 KB, read and parsed", "CPU ms", lambda: reading(prepared)),
            ("a file of 110 KB, read", "CPU ms", lambda: reading(folder)),
            ("28x28 images kept in memory", "images a CPU second", small()),
            ("first batch at step 0", "s", lambda: start(prepared, 0)),
            (f"first batch at step {FAR:,}", "s", lambda: start(prepared, FAR)),
        ]
        turns: list[list[float]] = [[] for _ in parts]
        for _ in range(options.rounds):
            for (_, _, measure), values in zip(parts, turns, strict=True):
                values.append(measure())
    rows: list[dict[str, Any]] = []
    for (name, unit, _), values in zip(parts, turns, strict=True):
        figures = {"median": median(values), "min": min(values), "max": max(values)}
        rows.append({"what": name, "unit": unit, **{k: digits(v) for k, v in figures.items()}})
        print(f"{name:40}{rows[-1]['median']:>12} {unit}")
    notes = {"machine": record.machine(), "cores": "1", "rounds": str(options.rounds)}
    record.write(options.output, rows, notes)
    return 0


class BenchmarkPictures(tfds.core.GeneratorBasedBuilder):
    """Pictures of a folder as TFDS writes them."""

    VERSION = tfds.core.Version("1.0.0")
    folder: Source

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=self.folder.class_names),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(len(self.folder)):
            example = self.folder[i]
            yield i, {"image": io.BytesIO(example.encoded), "label": example.label}


def prepare(folder: Source, data_dir: str) -> Source:
    """The pictures of a folder as an array_record set."""
    tfds.disable_progress_bar()
    BenchmarkPictures.folder = folder
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints its progress
        BenchmarkPictures(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return readers.open_split("benchmark_pictures", "train", data_dir)


def reading(source: Source) -> float:
    """CPU milliseconds to read a record, without decoding."""
    before = time.process_time()
    for index in range(len(source)):
        source[index]
    return (time.process_time() - before) / len(source) * 1e3


def small() -> Callable[[], float]:
    """Measures images a CPU second for a set that is completely in memory."""
    rng = np.random.default_rng(0)
    shape = (SMALL_SIDE, SMALL_SIDE, 3)
    encoded = [cv2.imencode(".png", rng.integers(0, 255, shape, np.uint8))[1].tobytes()
               for _ in range(64)]  # fmt: skip
    records = [{"image": encoded[i % 64], "label": i % 10} for i in range(SMALL)]
    source = Source("small", tuple("0123456789"), records, "image", "label")
    reader = Reader(source, Images(SMALL_SIDE), Host(memory=2**30))
    batches = reader.training_batches(batch_size=SMALL_BATCH, seed=0)
    steps = -(-SMALL // SMALL_BATCH)
    for _ in range(steps + 16):  # makes every image once, including batches made ahead
        next(batches)

    def measure() -> float:
        before = time.process_time()
        for _ in range(steps):
            next(batches)
        return steps * SMALL_BATCH / (time.process_time() - before)

    return measure


def start(source: Source, step: int) -> float:
    """Seconds until the first batch of 64 images."""
    images = Images(299, (0.08, 1.0), (3 / 4, 4 / 3))
    before = time.perf_counter()
    next(Reader(source, images).training_batches(batch_size=64, seed=0, first_step=step))
    took = time.perf_counter() - before
    time.sleep(1)  # until batches that are made ahead are done
    return took


if __name__ == "__main__":
    arguments.run(main)
