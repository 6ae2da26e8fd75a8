"""A log writer: the figures of a run as a table of CSV."""

import csv

from xception_jax.training.telemetry import writers


@writers.register("csv")
class CsvWriter(writers.LogWriter):
    def __init__(self, info):
        path = info.workdir / "log.csv"
        self.place, self.file = str(path), path.open("a", newline="", encoding="utf-8")

    def write(self, kind, step, metrics):
        csv.writer(self.file).writerows([kind, step, *item] for item in metrics.items())

    def flush(self):
        self.file.flush()

    def close(self, failed):
        self.file.close()
