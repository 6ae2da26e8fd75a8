"""Keras' Xception, fine-tuned by the recipe of Keras' guide to transfer learning.

    python benchmarks/peers/tuned_keras.py FOLDER START SIDE SEED

START is a `.weights.h5` of `keras.applications.Xception(include_top=False)`, which
`xception_jax.convert --to=keras` writes. The recipe (guides/transfer_learning): random flips and
rotations by up to a tenth, dropout of 0.2, and the base in inference mode throughout. It has 20
epochs of the classifier alone with Adam, then 10 of everything with a rate of 1e-5, in batches of
64. All training pictures are trained on, and the last weights are tested. Prints the number of test
pictures and the share with errors, as JSON.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np


def pictures(folder: str, split: str, side: int):
    """All pictures of a split, float32, and their labels."""
    root, images, labels = Path(folder) / split, [], []
    for label, name in enumerate(sorted(path.name for path in root.iterdir())):
        for path in sorted((root / name).iterdir()):
            image = keras.utils.load_img(path, target_size=(side, side))
            images.append(keras.utils.img_to_array(image))
            labels.append(label)
    return np.stack(images), np.array(labels)


def build(start: str, side: int, classes: int) -> tuple[keras.Model, keras.Model]:
    """The model and its base."""
    base = keras.applications.Xception(weights=None, input_shape=(side, side, 3), include_top=False)
    base.load_weights(start)
    base.trainable = False
    inputs = keras.Input((side, side, 3))
    x = keras.layers.RandomFlip("horizontal")(inputs)
    x = keras.layers.RandomRotation(0.1)(x)
    x = keras.layers.Rescaling(scale=1 / 127.5, offset=-1)(x)
    x = keras.layers.GlobalAveragePooling2D()(base(x, training=False))
    outputs = keras.layers.Dense(classes)(keras.layers.Dropout(0.2)(x))
    return keras.Model(inputs, outputs), base


def main(folder: str, start: str, side: str, seed: str) -> None:
    """Trains by the recipe and prints the error on the test pictures."""
    keras.utils.set_random_seed(int(seed))
    images, labels = pictures(folder, "train", int(side))
    model, base = build(start, int(side), int(labels.max()) + 1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for trainable, rate, epochs in ((False, 1e-3, 20), (True, 1e-5, 10)):
        base.trainable = trainable
        model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
        model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)
    images, labels = pictures(folder, "test", int(side))
    right = model.evaluate(images, labels, batch_size=50, verbose=0)[1]
    print(json.dumps({"tested": len(labels), "error": 1 - right}))


if __name__ == "__main__":
    main(*sys.argv[1:])
