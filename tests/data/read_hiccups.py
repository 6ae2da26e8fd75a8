"""A process of the tests: reads data sets while reads fail, see `failing_reads.c`.

Arguments: a folder with the sets `tiny_photos` (array_record), `tiny_records` (tfrecord) and
`photos` (files). It prints a JSON line with what it found.
"""

import dataclasses
import errno
import itertools
import json
import os
import sys
from pathlib import Path

from xception_jax.data import labels, readers
from xception_jax.data.batches import Host, Reader
from xception_jax.data.render.decode import Images
from xception_jax.data.source import Source
from xception_jax.errors import ReadError

# Parts of the names of the files to fail, by data set.
SETS = {
    "tiny_photos": ".array_record-",
    "tiny_records": ".tfrecord-",
    "folder:photos": "photos/",
}
CODES = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)
CROPPED = Images(size=8, crop_area=(0.3, 1.0), crop_aspect=(0.75, 4 / 3))


def main(root: Path) -> None:
    plan = Path(os.environ["FAIL_PLAN"])
    report = {}
    for name, part in SETS.items():
        os.environ["FAIL_PATH"] = part

        def opened(name=name) -> Source:
            source = readers.open_split(name, "train", str(root))
            return dataclasses.replace(source, patience=3.0)

        plan.write_text("0 0")
        whole = opened()
        first = whole[2].encoded
        again = []
        for code in CODES:
            source = opened()
            plan.write_text(f"1 {code}")
            again.append(source[2].encoded == first)  # while the file is opened
            plan.write_text(f"2 {code}")
            again.append(source[3].encoded == whole[3].encoded)
        plan.write_text("0 0")
        batches = []
        for failures in (0, 2):
            plan.write_text("0 0")
            reader = Reader(opened(), CROPPED, Host(threads=2))
            plan.write_text(f"{failures} {errno.EIO}")
            made = itertools.islice(reader.training_batches(batch_size=8, seed=0), 2)
            batches.append([batch["image"].tobytes() for batch in made])
        unread, hurried = opened(), dataclasses.replace(opened(), patience=0.3)
        plan.write_text(f"1 {errno.EIO}")
        found = labels.labels_of(unread).tolist()
        plan.write_text(f"1000000 {errno.EIO}")
        try:
            hurried[4]
            line = "it was read"
        except ReadError as error:
            line = str(error)
        plan.write_text("0 0")
        report[name] = {
            "again": again,
            "same batches": batches[0] == batches[1],
            "labels": found == [whole[i].label for i in range(len(whole))],
            "line": line,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
