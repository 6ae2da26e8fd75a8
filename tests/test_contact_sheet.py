"""The contact sheet: its cells against the images that the step makes, and bad input."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.processes import finish
from xception_jax import contact_sheet, train
from xception_jax.data import augment, randaugment
from xception_jax.errors import UsageError

DIGITS = "--config=configs/digits.py"


def cells(sheet, rows, columns, cell):
    """The pictures, `[rows, columns, cell, cell, 3]`, without the labels and the gaps."""
    pitch = cell + contact_sheet._GAP
    assert sheet.shape == (rows * pitch, contact_sheet._LABELS + contact_sheet._GAP
                           + columns * pitch, 3)  # fmt: skip
    pictures = sheet[:, contact_sheet._LABELS + contact_sheet._GAP :]
    return pictures.reshape(rows, pitch, columns, pitch, 3).swapaxes(1, 2)[:, :, :cell, :cell]


def test_cells_are_what_the_first_step_makes(small_config):
    config = small_config
    config.augment.shift, config.augment.cutmix = 0, 0.5
    images = jnp.asarray(next(train.prepare(config).batches(0))["image"])[:4]
    keys = augment.example_keys(config.seed, jnp.asarray(0), 4)
    only = ["cutmix", "randaugment.invert"]
    sheet = contact_sheet.draw(config, examples=3, only=only, cell=8)
    original, mixed, inverted = cells(sheet, 3, 3, 8)
    np.testing.assert_array_equal(original, images[:3])
    mix = jax.jit(augment.mix, static_argnums=0)
    expected, _ = mix(augment.Augmentation(cutmix=0.5), keys, images, jnp.eye(4))
    np.testing.assert_array_equal(mixed, expected[:3])
    np.testing.assert_array_equal(inverted, 255 - images[:3])
    labels = sheet[:, : contact_sheet._LABELS].reshape(3, -1)
    assert (labels.min(1) < 128).all(), "every row has a name"


def test_rows_have_the_configs_strength_or_one_that_shows():
    settings = augment.Augmentation(mixup=0.3, flip=True, magnitude=5.0, erase_area=(0.1, 0.2))
    alone = {
        name: contact_sheet._alone(settings, name, 64)[1]
        for name in contact_sheet.names()
        if "." not in name
    }
    kept = {"magnitude": 5.0, "erase_area": (0.1, 0.2)}
    assert alone["mixup"] == augment.Augmentation(mixup=0.3, **kept)
    assert alone["shift"] == augment.Augmentation(shift=8, **kept)
    for name, only in alone.items():
        assert only != augment.Augmentation(**kept), name
    strengths = {"magnitude", "erase_area", "erase_aspect"}
    assert alone.keys() | strengths == set(vars(settings)), "no augmentation is left out"
    assert len(contact_sheet.names()) == len(alone) + len(randaugment.NAMES)


@pytest.mark.slow
def test_the_command_writes_a_picture(tmp_path):
    path = tmp_path / "sheet.png"
    process = finish(
        "contact_sheet", DIGITS, f"--output={path}", "--examples=2", "--only=flip", "--cell=16"
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [str(path)]
    assert cv2.imread(str(path)).shape == (2 * 20, contact_sheet._LABELS + 4 + 2 * 20, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([DIGITS], "--config and --output are needed"),
        ([DIGITS, "--output={folder}/sheet.gif"], "sheet.gif must end in .png or .jpg"),
        ([DIGITS, "--output={folder}/no/sheet.png"], "there is no folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, flags, message):
    process = finish("contact_sheet", *(flag.format(folder=tmp_path) for flag in flags))
    assert process.returncode == 2
    [line] = process.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_rows_and_columns_that_there_are_not(small_config):
    with pytest.raises(UsageError, match="no augmentation 'cutmx'; did you mean 'cutmix'"):
        contact_sheet.draw(small_config, only=["cutmx"])
    with pytest.raises(UsageError, match="--examples=65 takes a batch of 66"):
        contact_sheet.draw(small_config, examples=65)


def test_a_picture_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(UsageError, match=r"sheet\.png cannot be written: Is a directory"):
        contact_sheet._write(tmp_path / "sheet.png", np.zeros((4, 4, 3), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
