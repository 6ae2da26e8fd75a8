"""Evaluation's presets beside the libraries whose names they bear."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy import ndimage

from tests import pictures as odd_pictures
from xception_jax import config as config_lib
from xception_jax.data.batches import Reader
from xception_jax.data.render import decode, presets
from xception_jax.data.source import Source

SIZES = [(375, 500), (500, 333), (299, 299), (120, 90), (301, 1000), (334, 335)]


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Smooth and rough ones, of many shapes."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (7, 9, 3), np.uint8) for _ in SIZES]
    smooth = [
        cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)
        for picture, (height, width) in zip(coarse, SIZES, strict=True)
    ]
    return smooth + [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def test_area_is_the_mean_of_what_a_pixel_covers():
    image = np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4), np.ones((6, 6), np.uint8))
    image = np.repeat(image[..., None], 3, 2)
    made = presets.area(np.pad(image, ((0, 0), (5, 5), (0, 0))), 4, 1.0)
    np.testing.assert_array_equal(made[..., 0], np.arange(16).reshape(4, 4))


@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_inception_interpolates_between_the_pixels_of_the_centre(pictures, crop):
    for picture in pictures:
        starts = [int((side - side * crop) / 2) for side in picture.shape[:2]]
        centre = picture[tuple(slice(start, -start or None) for start in starts)]
        rows, columns = (np.arange(99) * side / 99 for side in centre.shape[:2])
        places = np.meshgrid(rows, columns, indexing="ij")
        made = presets.inception(picture, 99, crop)
        for channel in range(3):
            plane = centre[..., channel].astype(float)
            expected = ndimage.map_coordinates(plane, places, order=1, mode="nearest")
            np.testing.assert_allclose(made[..., channel], expected, atol=0.51)


@pytest.mark.slow
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_inception_preset_is_slims(pictures, crop):
    tf = pytest.importorskip("tensorflow", reason="comes with the extra [prepare]")
    for picture in pictures:
        centre = tf.image.central_crop(tf.cast(picture, tf.float32), crop)
        [theirs] = tf.compat.v1.image.resize_bilinear(centre[None], (299, 299))
        made = presets.inception(picture, 299, crop)
        np.testing.assert_allclose(made, theirs.numpy(), atol=0.51)


def test_keras_takes_the_nearest_pixel_of_all_of_the_picture(pictures):
    for picture in pictures:
        height, width = (side - 1 + side % 2 for side in picture.shape[:2])  # even ones have ties
        picture = picture[:height, :width]
        rows, columns = (
            np.floor((np.arange(99) + 0.5) * side / 99).astype(int) for side in (height, width)
        )
        made = presets.keras(picture, 99, 1.0)
        np.testing.assert_array_equal(made, picture[rows[:, None], columns])
    with pytest.raises(ValueError, match="Keras takes all of the picture"):
        presets.keras(pictures[0], 99, 0.9)


@pytest.mark.slow
def test_keras_preset_is_keras_load_img(pictures):
    keras = pytest.importorskip("keras", reason="comes with the extra [peers]")
    for picture in pictures:
        encoded = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
        theirs = keras.utils.load_img(io.BytesIO(encoded), target_size=(299, 299))
        ours = presets.keras(decode.decode(encoded), 299, 1.0)
        np.testing.assert_array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_timms_centre_of_a_long_picture_is_the_same_made_alone(monkeypatch, crop):
    rng = np.random.default_rng(0)
    for height, width in [(20, 900), (900, 21), (301, 400)]:
        # Coarse, since Pillow clips between its two passes, whose order may be another.
        coarse = rng.integers(64, 192, (height // 9 + 1, width // 9 + 1, 3), np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        whole = presets.timm(picture, 99, crop)
        with monkeypatch.context() as patch:
            patch.setattr(presets, "_LARGE", 0)
            alone = presets.timm(picture, 99, crop)
        np.testing.assert_allclose(alone.astype(int), whole, atol=2)
        assert whole.std() > 5


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    """A picture of 40 x 56 whose EXIF says how it is turned."""
    exif = Image.Exif()
    exif[0x112] = orientation
    buffer = io.BytesIO()
    quality = {"quality": 95} if kind == "JPEG" else {}
    Image.fromarray(odd_pictures.PIXELS).save(buffer, kind, exif=exif, **quality)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_applied_or_ignored_as_pillow_does(orientation, kind):
    encoded = turned(orientation, kind)
    image = Image.open(io.BytesIO(encoded))
    for exif, theirs in ((False, image), (True, ImageOps.exif_transpose(image))):
        np.testing.assert_array_equal(
            decode.decode(encoded, exif=exif), np.asarray(theirs.convert("RGB"))
        )
        part = decode.decode_part(encoded, lambda h, w: (3, 5, h - 7, w - 9), exif=exif)
        np.testing.assert_array_equal(part, np.asarray(theirs.convert("RGB"))[3:-4, 5:-4])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["train", "eval"])
def test_the_reader_of_a_preset_sees_what_its_library_sees(orientation, kind):
    """By the config alone: training and evaluation of `keras` and `timm` ignore EXIF."""
    config = config_lib.default()
    config.data.image_size, config.data.batch_size = 24, 1
    config.data.eval_preset = "keras"
    records = [{"image": turned(orientation), "label": 0}]
    source = Source("one", ("a", "b"), records, "image", "label")
    plain = Source("one", ("a", "b"), [{"image": turned(1), "label": 0}], "image", "label")

    def image_of(source):
        reader = Reader.from_config(config_lib.resolve(config), source)
        if kind == "train":
            return next(reader.training_batches(batch_size=1, seed=0))["image"]
        return next(reader.evaluation_batches(batch_size=1))["image"]

    np.testing.assert_array_equal(image_of(source), image_of(plain))
    config.data.eval_preset = "area"
    assert np.array_equal(image_of(source), image_of(plain)) == (orientation == 1)
    config.data.exif = "off"
    np.testing.assert_array_equal(image_of(source), image_of(plain))


@pytest.mark.slow
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_of_the_presets_is_as_in_keras_and_timm(orientation, tmp_path):
    keras = pytest.importorskip("keras", reason="comes with the extra [peers]")
    pytest.importorskip("torch", reason="comes with the extra [peers]")
    from benchmarks.peers import torchvision_operators

    torchvision_operators.declare()
    from timm.data import create_transform
    from timm.data.readers import create_reader

    path = tmp_path / "train/a/turned.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(turned(orientation))
    records = [{"image": path.read_bytes(), "label": 0}]
    source = Source("one", ("a", "b"), records, "image", "label")

    def ours(preset):
        config = config_lib.default()
        config.data.image_size, config.data.eval_preset, config.data.eval_crop = 24, preset, 1.0
        reader = Reader.from_config(config_lib.resolve(config), source)
        return next(reader.evaluation_batches(batch_size=1))["image"][0]

    theirs = keras.utils.load_img(path, target_size=(24, 24), interpolation="nearest")
    np.testing.assert_array_equal(ours("keras"), np.asarray(theirs))
    file, _ = create_reader("", str(tmp_path / "train"))[0]
    transform = create_transform(
        24, crop_pct=1.0, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    with file:
        tensor = transform(Image.open(file).convert("RGB")).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(ours("timm").astype(np.float32) / 127.5 - 1, tensor, atol=1e-6)


def peak_kib() -> int:
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("shape", [(2, 1_000_000), (1_000_000, 2)])
def test_no_preset_takes_much_memory_for_a_long_picture(preset, shape):
    """NumPy and Pillow ask for it; a run would end for want of it."""
    picture = np.full((*shape, 3), 77, np.uint8)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is held now
    before = peak_kib()
    made = presets.PRESETS[preset](picture, 299, 1.0)
    np.testing.assert_array_equal(made, np.full((299, 299, 3), 77))
    assert peak_kib() - before < 256 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("crop", [1.0, 0.875, 0.8975])
def test_timm_preset_is_timms_transform(pictures, crop):
    pytest.importorskip("torch", reason="comes with the extra [peers]")
    from benchmarks.peers import torchvision_operators

    torchvision_operators.declare()
    from timm.data import create_transform

    transform = create_transform(
        299, crop_pct=crop, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    for picture in pictures:
        theirs = transform(Image.fromarray(picture)).numpy().transpose(1, 2, 0)
        ours = presets.timm(picture, 299, crop).astype(np.float32) / 127.5 - 1
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
