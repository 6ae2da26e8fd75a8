"""TFDS builders that register themselves when this module is imported, as a user's own would."""

import os
import time
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.download.extractor import iter_archive
from tensorflow_datasets.core.download.resource import guess_extract_method

from tests.tiny_datasets import jpeg


def photo(i: int) -> tuple[int, dict]:
    return i, {"image": jpeg(np.random.default_rng(i), 20, 24, i % 3), "label": i % 3}


class SamplePhotos(tfds.core.GeneratorBasedBuilder):
    """Six photos of three classes; a file named in PAUSE_AT is made before the fourth one."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, description="test")

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(6)), "test": self._generate_examples([7])}

    def _generate_examples(self, numbers):
        for i in numbers:
            if i == 3 and "PAUSE_AT" in os.environ:
                Path(os.environ["PAUSE_AT"]).touch()
                time.sleep(120)
            yield photo(i)


class SampleByHand(SamplePhotos):
    """Wants an archive that TFDS knows the size of, and another file."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Register at example.org, and put photos.tar and perhaps
    notes.txt into the folder."""
    url_infos = {"https://example.org/photos.tar": UrlInfo(10, "0" * 64, None)}  # noqa: RUF012


class SampleArchive(SamplePhotos):
    """Reads the photos from an archive that TFDS does not know the size of, without TensorFlow."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put an archive of photos into the folder."

    def _split_generators(self, dl_manager):
        [path] = dl_manager.manual_dir.glob("photos.*")
        return {"train": self._generate_examples(path)}

    def _generate_examples(self, path):
        with path.open("rb") as file:
            for name, photo in iter_archive(file, guess_extract_method(path.name)):
                yield name, {"image": photo, "label": 0}


class SampleExtracted(SampleArchive):
    """Has TFDS extract the archive, which takes TensorFlow."""

    def _split_generators(self, dl_manager):
        [path] = dl_manager.manual_dir.glob("photos.*")
        return {"train": self._generate_examples(dl_manager.extract(path))}

    def _generate_examples(self, path):
        for photo in path.iterdir():
            yield photo.name, {"image": photo, "label": 0}


class SampleHuge(SamplePhotos):
    """Downloads more than any disk holds."""

    url_infos = {"https://example.org/huge.zip": UrlInfo(2**60, "0" * 64, None)}  # noqa: RUF012


class SampleEmpty(SamplePhotos):
    """Finds nothing, as a builder with a wrong path would."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples([])}


class SampleBeam(SamplePhotos):
    """Made by an Apache Beam pipeline."""

    def _generate_examples(self, numbers):
        beam = tfds.core.lazy_imports.apache_beam
        return beam.Create(list(numbers)) | beam.Map(photo)
