"""Answers of a model on pictures: the library behind `python -m xception_jax.predict`.

from xception_jax.predict import Classifier

classifier = Classifier("runs/pets")
for prediction in classifier.predict(["cat.jpg", "dog.jpg"]):
    print(prediction.name, prediction.top(3))
"""

if __name__ == "__main__":  # first: --help and a misspelt flag need not wait for JAX
    from xception_jax import commands

    commands.run("predict")

import collections
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from xception_jax import serving
from xception_jax.data import imagenet, pictures, transfer
from xception_jax.data.batches import Reader
from xception_jax.data.render.decode import Images
from xception_jax.data.skips import Skip, Skips
from xception_jax.data.source import Source
from xception_jax.errors import UsageError
from xception_jax.serving import calibration, heat, inference, onnx_files
from xception_jax.serving.prediction import Prediction
from xception_jax.serving.resize import side_before
from xception_jax.training import sharding
from xception_jax.utils import paths
from xception_jax.weights import pretrained

__all__ = ["Classifier", "Prediction"]

# Batches that are computed before the first one's results are fetched.
_BATCHES_AHEAD = 2


class Classifier:
    """A trained model that answers questions about pictures.

    Args:
      source: a run's folder, `RUN/checkpoints/STEP`, a file of weights, an export's folder, or the
        name of weights, `hf:OWNER/REPO`, `keras:xception` or `https://...#sha256=HASH`.
      step, weights: of a run, see `xception_jax.evaluate`.
      model: name of the model, where a file of weights does not say it.
      activation: `softmax` or `sigmoid`, where the source does not say it, or in its place.
      batch_size: over all devices; 0: see `inference.batch_size_of`.
      flip: average the probabilities of each image and its mirror image.
      features: give the features too.
      explain: give the heat too.

    Attributes:
      images: how an image is made of a picture.
      class_names: in the order of `Prediction.probabilities`.
      notes: lines about the weights for the user.
      activation: what makes probabilities of the logits.
      temperature: divides the logits before it, see `xception_jax.evaluate.calibrate`; 1 without.
      thresholds: with sigmoid, the probability of each class from which on it is one of
        `Prediction.labels`: as calibrated, else 0.5. None with softmax.

    Raises:
      UsageError: there is no such model, or an option does not go with it.
      RunError: it is damaged.
    """

    images: Images
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    activation: str
    temperature: float = 1.0
    thresholds: np.ndarray | None = None
    _answer: Callable[[jax.Array], dict[str, jax.Array]]

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        step: str = "latest",
        weights: str | None = None,
        model: str | None = None,
        activation: str | None = None,
        batch_size: int = 0,
        flip: bool = False,
        features: bool = False,
        explain: bool = False,
    ):
        text = os.fspath(source)
        path: str | Path = text if paths.is_weights_name(text) else paths.expanded(text)
        self._batch_size = batch_size
        if jax.process_count() > 1:
            raise UsageError("predictions are made by one process; start it without a cluster")
        is_export = isinstance(path, Path) and (path / serving.ABOUT).exists()
        run = pretrained.run_of(path, step) if isinstance(path, Path) and not is_export else None
        if run is None and (weights or step != "latest"):
            raise UsageError(f"step and weights are of a run, and {path} is none")
        if (run or is_export) and model:
            raise UsageError(f"{path} knows its model; leave out {model}")
        if is_export:
            if activation or features or explain:
                raise UsageError(f"{path} is an export, which gives its own probabilities alone")
            self._open_export(Path(path), flip)
            return
        if run is not None:
            inferred = inference.of_run(*run, weights, activation)
        else:
            inferred = inference.of_file(path, model, activation)
        self.notes = inferred.notes
        self.images, self.activation = inferred.images, inferred.activation
        self.temperature = inferred.temperature
        self.class_names = imagenet.readable(inferred.class_names)
        self._settle_thresholds(inferred.thresholds)
        wanted = {"probabilities", "logits"} | ({"features"} if features else set())
        wanted |= {"heat"} if explain else set()
        layout = sharding.Layout.replicated(sharding.make_mesh())
        self._sharding = sharding.by_example(layout.mesh)
        answer = jax.jit(
            partial(
                _answers,
                inferred.graphdef,
                wanted,
                activation=inferred.activation,
                temperature=inferred.temperature,
                flip=flip,
            ),
            in_shardings=(layout.weights, self._sharding),
            out_shardings=sharding.replicated(layout.mesh),
        )
        self._answer = partial(answer, jax.device_put(inferred.weights, layout.weights))

    def _open_export(self, folder: Path, flip: bool) -> None:
        about = serving.described(folder)
        is_onnx = about["format"] == serving.ONNX_FORMAT
        if is_onnx:
            call = onnx_files.load(folder, about)
        else:
            exported, about = serving.load(folder)
            serving.check_platform(folder, exported)
            call = exported.call
        resize = about.get("resize")
        if resize is None:
            raise UsageError(f"{folder} does not say how pictures are resized; export it again")
        self.images = Images(
            resize["size"], eval_preset=resize["preset"], eval_crop=resize["crop"],
            exif=about["exif_orientation"] == "applied", white=about.get("white_level", 0),
        )  # fmt: skip
        self.class_names = imagenet.readable(tuple(about["classes"]))
        self.activation = about["output"]["activation"]
        self._settle_thresholds(about["source"].get("calibration", {}).get("thresholds", ()))
        side = self.images.size
        if resize["by"] == "program":
            side = side_before(side, self.images.eval_crop)
        mesh = sharding.make_mesh(1)
        self._sharding = sharding.by_example(mesh)
        answer = partial(_answers_of_export, call, side, flip)
        self._answer = answer if is_onnx else jax.jit(answer)

    def _settle_thresholds(self, fitted: Sequence[float]) -> None:
        if self.activation == "sigmoid":
            usual = [calibration.THRESHOLD] * len(self.class_names)
            self.thresholds = np.asarray(fitted or usual)

    def predict(self, images: Sequence[Any]) -> list[Prediction]:
        """The predictions of some pictures, in their order.

        Args:
          images: paths, `http(s)` addresses, Pillow images, or arrays, uint8
            `[height, width, 3]`, RGB.
        """
        return list(self.stream(images))

    def stream(self, images: Sequence[Any]) -> Iterator[Prediction]:
        """As `predict`, one after the other: while pictures are read, others are computed."""
        if images:
            yield from self.stream_split(pictures.source(images, self.images.exif))

    def stream_split(self, source: Source) -> Iterator[Prediction]:
        """The predictions of all records of a split, in their order."""
        bad, devices = _Unusable(), self._sharding.num_devices
        size = inference.batch_size_of(devices, len(source), self._batch_size)
        reader = Reader(source, self.images)
        batches = reader.evaluation_batches(batch_size=size, skips=bad)
        waiting: collections.deque[dict[str, jax.Array]] = collections.deque()
        done = 0
        for batch in transfer.to_devices(batches, self._sharding):
            waiting.append(self._answer(batch["image"]))
            if len(waiting) > _BATCHES_AHEAD:
                yield from self._predictions(waiting.popleft(), source, done, bad)
                done += size
        for answers in waiting:
            yield from self._predictions(answers, source, done, bad)
            done += size

    def draw(self, image: Any, prediction: Prediction, path: Path) -> None:
        """Writes a JPEG of a picture with the heat of its prediction, see `serving.heat`.

        Args:
          image: the picture, as `predict` was given it.
          prediction: of it, by a `Classifier` with `explain`.
          path: of the file.

        Raises:
          ExampleError: the picture cannot be read any more.
          OSError: the file cannot be written.
        """
        picture = Reader(pictures.source([image], self.images.exif), self.images)
        drawn = heat.draw(picture.decoded(picture.source[0]), prediction.heat, self.images)
        draft = path.with_name(f"{path.name}.tmp")
        Image.fromarray(drawn).save(draft, "JPEG", quality=90)
        os.replace(draft, path)

    def _predictions(
        self, answers: dict[str, jax.Array], source: Source, first: int, bad: "_Unusable"
    ) -> Iterator[Prediction]:
        """Those of a batch, whose first row is the picture `first`."""
        arrays = {name: np.asarray(array) for name, array in jax.device_get(answers).items()}
        nothing = np.zeros(0, np.float32)
        rows = len(arrays["probabilities"])
        for row, index in enumerate(range(first, min(first + rows, len(source)))):
            error = bad.reasons.get(index, "")
            found = {} if error else {name: array[row] for name, array in arrays.items()}
            yield Prediction(
                source.name_of(index),
                self.class_names,
                found.get("probabilities", nothing),
                found.get("logits", nothing),
                found.get("features", nothing),
                found.get("heat", nothing),
                error,
                self._labels(found),
            )

    def _labels(self, found: Mapping[str, np.ndarray]) -> tuple[str, ...] | None:
        if self.thresholds is None or not found:
            return None
        there = np.flatnonzero(found["probabilities"] >= self.thresholds)
        return tuple(self.class_names[i] for i in there)


class _Unusable(Skips):
    """Takes the pictures that cannot be used, any number of them."""

    def __init__(self) -> None:
        self.reasons: dict[int, str] = {}

    def add(self, source: Source, skipped: list[Skip]) -> None:
        self.reasons |= {record: reason for record, _, reason in skipped}


def _answers(
    graphdef: Any, wanted: Set[str], weights: Any, pixels: jax.Array, **how: Any
) -> dict[str, jax.Array]:
    """What `inference.answers` gives of pixels, as far as it is wanted."""
    found = inference.answers(graphdef, weights, pixels, explain="heat" in wanted, **how)
    return {name: array for name, array in found.items() if name in wanted}


def _answers_of_export(
    call: Callable[[jax.Array], Any], side: int, flip: bool, pixels: jax.Array
) -> dict[str, jax.Array]:
    """Probabilities, by a program of images of this side, of which it may crop the middle."""
    before = (side - pixels.shape[1]) // 2
    margin = before, side - pixels.shape[1] - before
    pixels = jnp.pad(pixels, ((0, 0), margin, margin, (0, 0)))
    probabilities = call(pixels)
    if flip:
        probabilities = (probabilities + call(pixels[:, :, ::-1])) / 2
    return {"probabilities": probabilities}
