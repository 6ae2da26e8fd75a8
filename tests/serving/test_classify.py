"""The script beside an exported program, against evaluation's own preprocessing and the model."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy.special import softmax
from sklearn.datasets import load_sample_images

from tests.weights import builders
from xception_jax import serving
from xception_jax.data.render import decode, presets
from xception_jax.data.render.decode import Images
from xception_jax.serving import classify
from xception_jax.training import state

SIZE = 96
# The crop of each preset, and how many grey levels of 255 its resize may be off.
PRESETS = {"area": (0.9, 1), "inception": (0.875, 0), "keras": (1.0, 0), "timm": (0.897, 0)}
NAMES = ("ant", "bee", "cat", "dog", "emu")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Photos, one of them with an EXIF orientation, and pictures smaller than the model's size."""
    folder = tmp_path_factory.mktemp("files")
    china, flower = load_sample_images().images
    found = [folder / "large.jpg", folder / "turned.jpg", folder / "small.png", folder / "half.png"]
    Image.fromarray(china).save(found[0], quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(flower[:300]).save(found[1], exif=exif)
    Image.fromarray(flower[100:170, 200:290]).convert("RGBA").save(found[2])
    Image.fromarray(china[: 2 * SIZE, : 2 * SIZE + 9]).convert("L").save(found[3])
    return found


def images_of(preset: str) -> Images:
    return Images(SIZE, eval_preset=preset, eval_crop=PRESETS[preset][0], exif=preset == "area")


def evaluated(file: Path, preset: str) -> np.ndarray:
    """What evaluation makes of a file, as `data.batches` does."""
    images = images_of(preset)
    whole = decode.decode(file.read_bytes(), exif=images.exif)
    return presets.PRESETS[preset](whole, SIZE, images.eval_crop)


@pytest.mark.parametrize("preset", PRESETS)
def test_its_resize_is_evaluations(preset):
    assert classify.RESIZES.keys() == presets.PRESETS.keys()
    rng = np.random.default_rng(0)
    crop, levels = PRESETS[preset]
    shapes = (5, 7), (96, 96), (97, 120), (192, 192), (211, 300), (333, 200), (2, 9000), (1, 1)
    for shape in shapes:
        picture = rng.integers(0, 256, (*shape, 3), np.uint8)
        for share in {crop, 1.0}:
            made = classify.RESIZES[preset](picture, SIZE, share)
            expected = presets.PRESETS[preset](picture, SIZE, share)
            assert (made.dtype, made.shape) == (np.uint8, (SIZE, SIZE, 3))
            off = np.abs(made.astype(int) - expected)
            assert off.max() <= levels, shape
            # OpenCV rounds the shares of an image that grows to 2048ths.
            assert shape[0] < 110 or not off.any(), shape


@pytest.fixture(scope="module")
def model(files):
    """A narrow Xception with random weights, whose classifier tells the files apart."""
    built = {"width": 0.05, "middle_blocks": 0, "stem_stride": 2}
    model = builders.create("xception", len(NAMES), **built)
    logits = logits_of(model, np.stack([evaluated(file, "keras") for file in files]))
    head = model.head.classifier
    head.bias[...] = 10 * (head.bias[...] - logits.mean(0))
    head.kernel[...] = 10 * head.kernel[...]
    return model


def logits_of(model, pixels: np.ndarray) -> np.ndarray:
    logits = jax.jit(lambda x: model(model.normalize(x)))(pixels)
    return np.asarray(logits, np.float64)


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory) -> dict[str, Path]:
    """An export for each preset. The caller resizes, so the program is the same."""
    graphdef, params, batch_stats = state.split(nnx.clone(model))
    weights = {"params": params, "batch_stats": batch_stats}
    program = serving.export(graphdef, weights, Images(SIZE), resizes=False, platforms=("cpu",))
    folder = tmp_path_factory.mktemp("exports")
    for preset in PRESETS:
        about = serving.describe(
            program, images_of(preset), activation="softmax", class_names=NAMES, source={}
        )
        serving.write(folder / preset, program, about)
    return {preset: folder / preset for preset in PRESETS}


ALONE = """
import runpy, sys
split = sys.argv.index("--")
for folder in sys.argv[1:split]:
    assert runpy.run_path(folder + "/classify.py")["main"](sys.argv[split + 1:]) == 0
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"xception_jax", "flax", "optax", "orbax", "grain", "cv2"}, loaded
"""


def test_it_alone_gives_what_evaluation_and_the_model_give(model, folders, files, tmp_path):
    """In an isolated process, in another folder, without this package."""
    process = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, *folders.values(), "--", *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    lines = [line.split("  ") for line in process.stdout.splitlines()]
    pixels = np.stack([evaluated(file, preset) for preset in PRESETS for file in files])
    expected = softmax(logits_of(model, pixels), 1)
    assert len(set(expected.argmax(1))) > 1
    assert [file for file, _, _ in lines] == [str(file) for file in files] * len(PRESETS)
    assert [name for _, name, _ in lines] == [NAMES[best] for best in expected.argmax(1)]
    off = np.abs([float(line[2]) for line in lines] - expected.max(1)).reshape(len(PRESETS), -1)
    for preset, each in zip(PRESETS, off, strict=True):
        # Six decimals are printed. Pixels of `area` differ by a grey level here and there.
        assert each.max() < (2e-3 if preset == "area" else 2e-6), preset


@pytest.mark.parametrize("preset", PRESETS)
def test_a_file_becomes_what_evaluation_makes_of_it(preset, folders, files):
    about = serving.load(folders[preset])[1]
    for file in files:
        off = np.abs(classify.load(str(file), about).astype(int) - evaluated(file, preset))
        assert off.max() <= PRESETS[preset][1], file


SAID = {
    "area": "the centred square of 0.9 of the shorter side, resized to 96 x 96 pixels (area",
    "inception": "the centre of both sides, 0.875 of each, resized to 96 x 96 pixels (bilinear",
    "keras": "the complete picture, resized to 96 x 96 pixels (nearest pixels)",
    "timm": "the centred 96 x 96 pixels, after the shorter side is resized to 107 (antialiased",
}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_readme_names_the_resize(preset, folders):
    text = (folders[preset] / "README.md").read_text()
    turns = "rotates an image by" if preset == "area" else "ignores"
    assert f"the caller {turns} its EXIF orientation; then the caller takes {SAID[preset]}" in text
    assert "images of 96 x 96 pixels" in text
    assert "python classify.py IMAGE..." in text
    assert [other for other in SAID if SAID[other] in text] == [preset]


def test_files_that_are_no_images_are_named_and_the_others_are_classified(folders, files, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "deep.png")
    names = "notes.txt", "deep.png", "gone.jpg", files[2]
    process = subprocess.run(
        [sys.executable, folders["timm"] / "classify.py", *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    said = process.stderr.splitlines()
    assert [line.split(" cannot be classified: ")[0] for line in said] == [
        f"error: {name}" for name in names[:3]
    ]
    [line] = process.stdout.splitlines()
    assert line.startswith(f"{files[2]}  ")
