"""Our input, from the files to arrays on the device.

Variants: `threads` and `workers` (one process) read a folder of pictures and decode only the crops.
`whole` decodes complete pictures, by threads. `floor` only decodes complete pictures from memory
with OpenCV and resizes a part as our input does.
"""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import cv2
import jax
import numpy as np
from absl import flags
from worker import Work

from xception_jax.data import readers, transfer
from xception_jax.data.batches import Host, Reader
from xception_jax.data.render import decode, turbojpeg
from xception_jax.data.render.decode import Images
from xception_jax.errors import RunError
from xception_jax.training import sharding

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


def build(work: Work) -> Callable[[int], None]:
    """See `worker`."""
    return _floor(work) if work.variant == "floor" else _stream(work)


def _stream(work: Work) -> Callable[[int], None]:
    if work.variant != "whole" and turbojpeg.library() is None:
        raise RunError("libturbojpeg 3 is missing: pip install -e '.[turbojpeg]'")
    reader = Reader(
        readers.open_split(f"folder:{work.data}", "train"),
        Images(size=work.side, crop_area=AREA, crop_aspect=ASPECT),
        Host(workers=1 if work.variant == "workers" else 0, decode_parts=work.variant != "whole"),
    )
    flags.FLAGS.mark_as_parsed()  # Grain needs this before it starts a process
    mesh = sharding.make_mesh(1)
    batches = transfer.to_devices(
        reader.training_batches(batch_size=work.batch, seed=0), sharding.by_example(mesh)
    )

    def run(steps: int) -> None:
        for _ in range(steps):
            batch = next(batches)
        jax.block_until_ready(batch)

    return run


def _floor(work: Work) -> Callable[[int], None]:
    files = sorted(Path(work.data).rglob("*.jpg"))
    encoded = cycle([np.frombuffer(path.read_bytes(), np.uint8) for path in files])
    rng = np.random.default_rng(0)
    height, width = cv2.imread(str(files[0])).shape[:2]
    draws = [rng.random(decode.DRAWS).tolist() for _ in range(1024)]
    made = np.empty((work.side, work.side, 3), np.uint8)
    boxes = cycle([decode.random_box(drawn, height, width, AREA, ASPECT) for drawn in draws])

    def run(steps: int) -> None:
        for _ in range(steps * work.batch):
            image = cv2.imdecode(next(encoded), cv2.IMREAD_COLOR_RGB)
            top, left, rows, columns = next(boxes)
            decode.resize(image[top : top + rows, left : left + columns], made)

    return run
