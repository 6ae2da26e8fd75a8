"""TFDS data sets that the tests prepare: real builders, whose files are read by name afterwards."""

import json
import shutil
import struct
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

    def generate(split):
        rng = np.random.default_rng(len(split))
        for i in range(examples[split]):
            kind = i % classes
            image = jpeg(rng, 20 + i % 7, 24 + i % 5, kind)
            example = {"photo": image, "kind": kind, "id": f"{split}-{i}"}
            yield i, example | ({"thumbnail": image} if extra_image else {})

    _write(data_dir, name, features, {split: generate(split) for split in examples}, keys)


KINDS = 6  # of a multi-label picture: a colour in its left or its right half


def kinds(split: str, count: int) -> np.ndarray:
    """Which kinds each picture of a multi-label split shows, bool `[count, KINDS]`; some none."""
    return np.random.default_rng(len(split)).random((count, KINDS)) < 0.35


def prepare_multilabel(
    data_dir: Path, name: str, *, examples: dict[str, int], objects: bool = True
) -> None:
    """Writes `name` with pictures that show any number of kinds, named by `id` as `train-3`.

    `tags` lists what a picture shows; `objects`, as in Open Images, what a machine or a person saw,
    some twice, some with confidence 0: not there.
    """
    labels = tfds.features.ClassLabel(num_classes=KINDS)
    features = {
        "photo": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "id": tfds.features.Text(),
        "tags": tfds.features.Sequence(labels),
    }
    if objects:
        source = tfds.features.ClassLabel(names=["machine", "person"])
        entry = {"label": labels, "confidence": np.int32, "source": source}
        features["objects"] = tfds.features.Sequence(entry)

    def generate(split):
        rng = np.random.default_rng(0)
        for i, shown in enumerate(kinds(split, examples[split])):
            image = rng.integers(0, 60, (16, 16, 3), np.uint8)
            for kind in np.flatnonzero(shown):
                image[:, 8 * (kind // 3) :][:, :8, kind % 3] += 150
            guessed = rng.random(KINDS) < 0.5  # by a machine, right or wrong
            looked_at = shown | guessed | (rng.random(KINDS) < 0.5)  # by a person, who knows
            entries = [(kind, 7, "machine") for kind in np.flatnonzero(guessed)]
            entries += [
                (kind, 10 * int(shown[kind]), "person") for kind in np.flatnonzero(looked_at)
            ]
            example = {
                "photo": cv2.imencode(".png", image[..., ::-1])[1].tobytes(),
                "id": f"{split}-{i}",
                "tags": np.flatnonzero(shown),
                "objects": [
                    dict(zip(("label", "confidence", "source"), e, strict=True)) for e in entries
                ],
            }
            yield i, {key: example[key] for key in features}

    _write(data_dir, name, features, {split: generate(split) for split in examples})


def _write(data_dir, name, features, splits, keys=None) -> None:
    def info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description="test",
            supervised_keys=keys,
        )

    with tfds.core.registered.skip_registration():
        builder = type(
            name.title().replace("_", ""),
            (tfds.core.GeneratorBasedBuilder,),
            {
                "name": name,
                "VERSION": tfds.core.Version("1.0.0"),
                "_info": info,
                "_split_generators": lambda self, _: splits,
                "_generate_examples": None,
                "__doc__": "test",
            },
        )
    tfds.disable_progress_bar()
    builder(data_dir=data_dir, file_format="array_record").download_and_prepare()


def as_tfrecord(source: Path, target: Path, shards: int) -> dict[str, list[bytes]]:
    """Copies a prepared array_record version folder as tfrecord, which TFDS writes by TensorFlow.

    Args:
      source: a folder such as `tiny_photos/1.0.0`.
      target: the copy; its last two parts are the data set's name and version.
      shards: how many files each split is cut into.

    Returns:
      Each split's serialized examples, in order.
    """
    builder = tfds.builder_from_directory(source)
    info = json.loads((source / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    target.mkdir(parents=True)
    records = {}
    for split in info["splits"]:
        name = split["name"]
        whole = builder.as_data_source(
            name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        records[name] = list(whole)
        parts = [list(part) for part in np.array_split(np.arange(len(whole)), shards)]
        split["shardLengths"] = [str(len(part)) for part in parts]
        for number, part in enumerate(parts):
            file = target / f"{info['name']}-{name}.tfrecord-{number:05}-of-{shards:05}"
            file.write_bytes(b"".join(tfrecord_frame(whole[int(i)]) for i in part))
    (target / "dataset_info.json").write_text(json.dumps(info))
    shutil.copy(source / "features.json", target)
    return records


def tfrecord_frame(record: bytes) -> bytes:
    """A record as tfrecord frames it: length, its checksum, the record, its checksum."""
    length = struct.pack("<Q", len(record))
    return length + _masked_crc32c(length) + record + _masked_crc32c(record)


def _masked_crc32c(data: bytes) -> bytes:
    """Bit by bit, from the polynomial (RFC 3720, appendix B.4) and TensorFlow's rotation."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)
