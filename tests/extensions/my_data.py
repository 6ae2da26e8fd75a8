"""A data source: arrays of images and labels in a file of numpy, `npz:FILE`."""

import os
from collections.abc import Sequence

import cv2
import numpy as np

from xception_jax.data import readers
from xception_jax.data.source import Source


class Records(Sequence):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        png = cv2.imencode(".png", self.images[index][..., ::-1])[1].tobytes()
        return {"image": png, "label": self.labels[index]}


@readers.register("npz:")
def open_npz(name, split, options):
    held = np.load(os.path.join(options.data_dir, name))
    records = Records(held[f"{split}_images"], held[f"{split}_labels"])
    return Source(f"npz:{name}:{split}", tuple(held["classes"]), records, "image", "label")
