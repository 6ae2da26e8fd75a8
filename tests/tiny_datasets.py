"""TFDS data sets that the tests prepare: real builders, whose files are read by name afterwards."""

from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds


def jpeg(rng: np.random.Generator, height: int, width: int, hue: int) -> bytes:
    """A noisy picture that a class' hue tells from the others'."""
    image = rng.integers(0, 60, (height, width, 3), np.uint8)
    image[..., hue % 3] += np.uint8(100 + 20 * (hue // 3 % 5))
    return cv2.imencode(".jpg", image)[1].tobytes()


def prepare(
    data_dir: Path,
    name: str,
    *,
    examples: dict[str, int],
    classes: int = 4,
    extra_image: bool = False,
    keys: tuple[str, str] | None = None,
) -> None:
    """Writes `name` with JPEG images of many sizes as array_record under `data_dir`.

    The builder is not registered with TFDS: what is found afterwards is found on disk.
    """
    features = {
        "photo": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "kind": tfds.features.ClassLabel(num_classes=classes),
        "id": tfds.features.Text(),
    }
    if extra_image:
        features["thumbnail"] = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")

    def info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description="test",
            supervised_keys=keys,
        )

    def generate(split):
        rng = np.random.default_rng(len(split))
        for i in range(examples[split]):
            kind = i % classes
            image = jpeg(rng, 20 + i % 7, 24 + i % 5, kind)
            example = {"photo": image, "kind": kind, "id": f"{split}-{i}"}
            yield i, example | ({"thumbnail": image} if extra_image else {})

    with tfds.core.registered.skip_registration():
        builder = type(
            name.title().replace("_", ""),
            (tfds.core.GeneratorBasedBuilder,),
            {
                "name": name,
                "VERSION": tfds.core.Version("1.0.0"),
                "_info": info,
                "_split_generators": lambda self, _: {s: generate(s) for s in examples},
                "_generate_examples": None,
                "__doc__": "test",
            },
        )
    tfds.disable_progress_bar()
    builder(data_dir=data_dir, file_format="array_record").download_and_prepare()
