"""tf.data as in ImageNet recipes: shuffled files, a random crop decoded, resized, flipped.

Variants: `bicubic` (antialiased) and `bilinear` give float32 in [-1, 1]; `bilinear_uint8` gives
uint8, as our input.
"""

from collections.abc import Callable
from pathlib import Path

import tensorflow as tf
from worker import Work


def build(work: Work) -> Callable[[int], None]:
    """See `worker`."""
    files = sorted(str(path) for path in Path(work.data).rglob("*.jpg"))
    classes = sorted({Path(path).parent.name for path in files})
    labels = [classes.index(Path(path).parent.name) for path in files]

    def example(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded),
            tf.zeros([0, 0, 4]),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        box = tf.concat([begin[:2], size[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(encoded, box, channels=3)
        method = "bicubic" if work.variant == "bicubic" else "bilinear"
        image = tf.image.resize(
            image, (work.side, work.side), method=method, antialias=method == "bicubic"
        )
        image = tf.image.random_flip_left_right(image)
        if work.variant == "bilinear_uint8":
            return tf.cast(image, tf.uint8), label
        return image / 127.5 - 1, label

    data = (
        tf.data.Dataset.from_tensor_slices((files, labels))
        .shuffle(len(files))
        .repeat()
        .map(example, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(work.batch, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )
    batches = iter(data)

    def run(steps: int) -> None:
        for _ in range(steps):
            next(batches)

    return run
