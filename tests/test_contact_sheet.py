"""The contact sheet: its cells against the images that the step makes, and bad input."""

from collections import Counter
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.processes import finish
from tests.weights.test_initial import write
from xception_jax import contact_sheet, train
from xception_jax.augment import pipeline, randaugment
from xception_jax.data import readers
from xception_jax.errors import RunError, UsageError

DIGITS = "--config=configs/digits.py"


def cells(sheet, rows, columns, cell):
    """The pictures, `[rows, columns, cell, cell, 3]`, without the names and the gaps."""
    pitch, left = cell + contact_sheet._GAP, contact_sheet._LABELS + contact_sheet._GAP
    top = contact_sheet._HEADER
    assert sheet.shape == (top + rows * pitch, left + columns * pitch, 3)
    pictures = sheet[top:, left:]
    return pictures.reshape(rows, pitch, columns, pitch, 3).swapaxes(1, 2)[:, :, :cell, :cell]


def test_cells_are_what_the_first_step_makes(small_config):
    config = small_config
    config.augment.shift, config.augment.cutmix = 0, 0.5
    images = jnp.asarray(next(train.build_run(config).batches(0))["image"])[:4]
    keys = pipeline.example_keys(config.seed, jnp.asarray(0), 4)
    only = ["cutmix", "randaugment.invert"]
    sheet = contact_sheet.draw(config, examples=3, only=only, cell=8)
    original, mixed, inverted = cells(sheet, 3, 3, 8)
    np.testing.assert_array_equal(original, images[:3])
    mix = jax.jit(pipeline.mix, static_argnums=0)
    expected, _ = mix(pipeline.Augmentation(cutmix=0.5), keys, images, jnp.eye(4))
    np.testing.assert_array_equal(mixed, expected[:3])
    np.testing.assert_array_equal(inverted, 255 - images[:3])


def test_rows_are_what_is_on_and_columns_are_named(small_config, monkeypatch):
    """Of digits, `squared` would be the original again."""
    drawn = {}
    monkeypatch.setattr(
        contact_sheet, "_sheet", lambda header, rows, cell: drawn.update(header=header, rows=rows)
    )
    small_config.augment.flip = False
    contact_sheet.draw(small_config, examples=4)
    assert [name for name, _ in drawn["rows"]] == ["original", "shift 1", "the config"]
    batch = next(train.build_run(small_config).batches(0))
    assert drawn["header"] == [f"{label} {label}" for label in np.asarray(batch["label"])[:4]]


def test_images_are_as_the_weights_say_where_the_config_is_silent(
    small_config, tmp_path, monkeypatch
):
    """As the run itself has it; the file's model is as narrow as the config's."""
    made_for = {"image_size": 20, "eval_preset": "area", "eval_crop": 1.0}
    path = write(tmp_path / "a.safetensors", made_for)
    small_config.init_from, small_config.data.image_size = str(path), None
    monkeypatch.setattr(contact_sheet, "_sheet", lambda header, rows, cell: dict(rows))
    rows = contact_sheet.draw(small_config, examples=2, only=["flip"])
    assert rows["flip"][0].shape == (20, 20, 3)


def test_only_what_is_on_has_a_row():
    assert contact_sheet._on(pipeline.Augmentation()) == []
    assert contact_sheet._on(pipeline.Augmentation(cutmix=0.5, flip=True)) == ["flip", "cutmix"]
    several = contact_sheet._on(pipeline.Augmentation(randaugment=2))
    assert several == ["randaugment", *(f"randaugment.{name}" for name in randaugment.NAMES)]


def test_the_original_is_whole_and_the_class_is_written(tmp_path, small_config):
    for i, name in enumerate(("hérisson", "猫", "a long name of a class that has no room")):
        for number in range(8):
            image = np.full((8, 24, 3), 80 * i, np.uint8)
            image[:, -1] = 255  # a centred square has not got it
            path = tmp_path / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    small_config.data.dataset, small_config.data.batch_size = f"folder:{tmp_path}", 16
    small_config.data.image_size = 8
    sheet = contact_sheet.draw(small_config, examples=6, only=["flip"], cell=24)
    original, squared, _ = cells(sheet, 3, 6, 24)
    assert (original[:, 8:16, 23] == 255).all()
    assert (original[:, :8] == 255).all(), "paper above a wide image"
    assert (squared < 255).all()
    header = sheet[: contact_sheet._HEADER, contact_sheet._LABELS :]
    pitch = 24 + contact_sheet._GAP
    columns = [header[:, contact_sheet._GAP + i * pitch :][:, :pitch] for i in range(6)]
    assert all(column.min() < 200 for column in columns), "something is written in each"
    assert all(column[:, 24:].min() > 200 for column in columns), "and none reaches the next"
    names = sheet[contact_sheet._HEADER :, : contact_sheet._LABELS].reshape(3, -1)
    assert (names.min(1) < 128).all(), "every row has a name"


def test_without_a_font_of_the_machine_names_are_written_in_ascii():
    assert contact_sheet._plain("0 hérisson, 猫") == "0 herisson, ?"


def test_rows_have_the_configs_strength_or_one_that_shows():
    settings = pipeline.Augmentation(mixup=0.3, flip=True, magnitude=5.0, erase_area=(0.1, 0.2))
    alone = {
        name: contact_sheet._alone(settings, name, 64)[1]
        for name in contact_sheet.names()
        if "." not in name
    }
    kept = {"magnitude": 5.0, "erase_area": (0.1, 0.2)}
    assert alone["mixup"] == pipeline.Augmentation(mixup=0.3, **kept)
    assert alone["shift"] == pipeline.Augmentation(shift=8, **kept)
    for name, only in alone.items():
        assert only != pipeline.Augmentation(**kept), name
    strengths = {"magnitude", "erase_area", "erase_aspect", "registered"}
    assert alone.keys() | strengths == set(vars(settings)), "no augmentation is left out"
    assert len(contact_sheet.names()) == len(alone) + len(randaugment.NAMES)


@pytest.fixture
def greys(tmp_path) -> Path:
    """Sixteen pictures, each of a grey of its own, to train on; one of them is cut short."""
    for split, count in (("train", 16), ("test", 2)):
        for i in range(count):
            path = tmp_path / split / f"half-{2 * i // count}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((8, 8, 3), 10 * i, np.uint8))
    cut = tmp_path / "train/half-0/05.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    return tmp_path


def test_the_command_draws_and_names_what_the_run_would_skip(tmp_path, greys, flags):
    path = tmp_path / "sheet.png"
    config, _, *overrides = flags(
        tmp_path, data__dataset=f"folder:{greys}", data__batch_size=16, data__max_skipped=0.07
    )
    process = finish(
        "contact_sheet", config, *overrides, f"--output={path}", "--examples=16", "--only=flip",
        "--cell=8",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [str(path)]
    [line] = process.stderr.splitlines()
    assert line.startswith(f"skipped: {greys}/train/half-0/05.png cannot be decoded: ")
    source = readers.open_split(f"folder:{greys}", "train")
    records = [int(Path(source[i].name).stem) for i in range(16)]
    expected = {10 * i: 1 for i in range(16) if i != 5}
    expected[10 * records[(records.index(5) + 1) % 16]] += 1  # the next record takes the place
    originals, _ = cells(cv2.imread(str(path)), 2, 16, 8)
    assert Counter(originals[:, 0, 0, 0].tolist()) == expected
    assert {p.name for p in tmp_path.iterdir()} == {"sheet.png", "train", "test"}


def test_more_than_a_run_may_skip_is_not_drawn(greys, small_config):
    small_config.data.dataset, small_config.data.batch_size = f"folder:{greys}", 16
    small_config.data.max_skipped = 0.06
    said = []
    with pytest.raises(
        RunError, match=r"^1 of the 16 examples of \S+ cannot be used, more than the share of 0.06 "
        r"that may be skipped; fix those named above, or raise --config\.data\.max_skipped$"
    ):  # fmt: skip
        contact_sheet.draw(small_config, say=said.append)
    [line] = said
    assert line.startswith(f"skipped: {greys}/train/half-0/05.png cannot be decoded: ")


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
        contact_sheet.write(tmp_path / "sheet.png", np.zeros((4, 4, 3), np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
