"""The data set of the quick start and the tests: real images, shipped in the package."""

from collections.abc import Iterator
from importlib import resources
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds


class OpticalDigits(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]  # TFDS has no types
    """UCI optical recognition of handwritten digits: 1,437 / 360 images of 8x8, ten classes.

    It yields encoded PNG bytes, so that TFDS prepares it without TensorFlow. README.md beside this
    file states source, licence and split.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8x8 pixels (UCI; CC BY 4.0).",
            features=features,
            homepage="https://archive.ics.uci.edu/dataset/80",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing to download
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, is_test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        with resources.as_file(resources.files(__name__) / "digits.npz") as path:
            shipped = np.load(path)
            images, labels, in_test = shipped["images"], shipped["labels"], shipped["is_test"]
        for index in np.flatnonzero(in_test == is_test).tolist():
            # 17 levels of grey spread over 0..255.
            image = np.round(images[index] * (255 / 16)).astype(np.uint8)
            png = cv2.imencode(".png", image)[1].tobytes()
            yield index, {"image": png, "label": int(labels[index])}
