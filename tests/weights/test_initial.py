"""What a run takes from its initial weights, in addition to the weights."""

import hashlib
import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from tests.processes import finish, result
from tests.weights import builders
from xception_jax import config as config_lib
from xception_jax import convert, train
from xception_jax.errors import UsageError
from xception_jax.finetuning import gathering
from xception_jax.predict import Classifier
from xception_jax.serving import inference
from xception_jax.training import build, state
from xception_jax.training.workdir import read_config
from xception_jax.weights import converted, initial, pretrained

BUILT = {"width": 0.1, "middle_blocks": 0, "stem_stride": 1}
MADE_FOR = {"image_size": 8, "eval_preset": "timm", "eval_crop": 0.75, "exif": True}

NFC, NFD = unicodedata.normalize("NFC", "Bär"), unicodedata.normalize("NFD", "Bär")


def write(path, preprocessing=MADE_FOR):
    """A converted file of a small model that says what images it was made for."""
    about = converted.About("xception", BUILT, 3, None, dict(preprocessing), {"format": "timm"})
    converted.write(path, about, builders.arrays(builders.create("xception", **BUILT)))
    return path


def resolved(path, begun=None, **changes):
    """Size, preset, crop and EXIF of a config that says these changes alone."""
    config = config_lib.default()
    config.init_from = str(path)
    config.data.update(changes)
    data = initial.resolve_with_weights(config, begun).data
    return data.image_size, data.eval_preset, data.eval_crop, data.exif


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (8, "timm", 0.75, "on")),
        # What is said counts, also where it is what a config has without weights.
        ({"image_size": 299}, (299, "timm", 0.75, "on")),
        ({"eval_crop": 0.875}, (8, "timm", 0.875, "on")),
        ({"exif": "off"}, (8, "timm", 0.75, "off")),
        # Crop and EXIF of timm's resizing are none of another one's.
        ({"eval_preset": "area"}, (8, "area", 1.0, "on")),
        ({"eval_preset": "keras"}, (8, "keras", 1.0, "off")),
        ({"eval_preset": "timm"}, (8, "timm", 0.75, "on")),
    ],
)
def test_images_are_the_weights_own_where_the_config_is_silent(changes, expected, path):
    assert resolved(path, **changes) == expected


def test_a_run_that_goes_on_needs_no_weights_for_that(path):
    config = config_lib.default()
    config.init_from = str(path)
    begun = initial.resolve_with_weights(config)
    path.unlink()
    assert resolved(path, begun) == (8, "timm", 0.75, "on")
    assert resolved(path, begun, eval_crop=0.5) == (8, "timm", 0.5, "on")


def test_of_a_librarys_own_file_the_library_tells(tmp_path):
    model = builders.create("xception", **BUILT)
    timm = builders.write_timm(model, tmp_path / "a.safetensors")
    config = config_lib.default()
    config.model.update(BUILT)
    for source, beside, expected in (
        (builders.write_keras(model, tmp_path / "a.weights.h5"), "", (299, "keras", 1.0, "off")),
        (timm, "", (299, "timm", 0.8975, "off")),
        (timm, '{"pretrained_cfg": {"crop_pct": 0.9, "input_size": [3, 150, 150]}}',
         (150, "timm", 0.9, "off")),
    ):  # fmt: skip
        if beside:
            (tmp_path / "config.json").write_text(beside)
        config.init_from = str(source)
        config.model.name = "xception" if source.suffix == ".h5" else "legacy_xception"
        data = initial.resolve_with_weights(config).data
        assert (data.image_size, data.eval_preset, data.eval_crop, data.exif) == expected


def test_a_converted_file_of_timm_without_a_crop_has_that_of_timms_model(tmp_path):
    made_for = {name: MADE_FOR[name] for name in ("image_size", "eval_preset")}
    path = write(tmp_path / "a.safetensors", made_for)
    assert resolved(path) == (8, "timm", 0.8975, "off")
    assert resolved(path, eval_preset="area") == (8, "area", 1.0, "on")
    again = pretrained.open_pretrained(path).about("xception")  # converted once more
    assert "eval_crop" not in again.preprocessing
    path = tmp_path / "b.safetensors"
    converted.write(path, again, pretrained.open_pretrained(tmp_path / "a.safetensors").read())
    assert resolved(path) == (8, "timm", 0.8975, "off")


NEW = "new classifier of 3 classes: the one of the weights "
NUMBERS = "new classifier of 3 classes: the weights name theirs by numbers, which differ"


@pytest.mark.parametrize(
    ("learnt", "names", "kept", "said"),
    [
        ((NFD, "cat", "dog"), (NFC, "cat", "dog"), [0, 1, 2], ""),
        (("cat", NFD, "dog"), (NFC, "cat", "dog"), [1, 0, 2],
         "classifier: 3 of 3 classes by name from the weights, which has others or another order"),
        (("cat", "dog"), ("cat", "cow", "dog"), [0, -1, 1],
         "classifier: 2 of 3 classes by name from the weights; new: cow"),
        (("a", "b", "c", "cat"), ("d", "e", "cat"), [-1, -1, 3],
         "classifier: 1 of 3 classes by name from the weights; new: d, e"),
        (("a", "b", "c"), ("d", "e", "f"), [-1, -1, -1], NEW + "is for other classes"),
        (("a", "b"), ("d", "e", "f"), [-1, -1, -1], NEW + "has 2"),
        # Numbers are no names: another data set has them too.
        (("0", "1"), ("0", "1", "2"), [-1, -1, -1], NEW + "has 2"),
        (("0", "1", "2"), ("0", "1", "2"), [0, 1, 2], ""),
        (("0", "1", "2"), ("cat", "cow", "dog"), [-1, -1, -1], NUMBERS),
        (("cat", "cow", "dog"), ("0", "1", "2"), [-1, -1, -1], NEW + "is for other classes"),
        (("0", "1", "2"), ("1", "2", "3"), [-1, -1, -1], NUMBERS),
        (("0", "1", "2", "3"), ("0", "1", "2"), [-1, -1, -1], NEW + "has 4"),
        # TFDS has them in their order, a folder sorts them as text.
        (("1", "2", "10"), ("1", "10", "2"), [0, 2, 1],
         "classifier: 3 of 3 classes by name from the weights, which has others or another order"),
    ],
)  # fmt: skip
def test_classes_are_kept_by_name_in_any_order_and_form_of_unicode(learnt, names, kept, said):
    source = pretrained.Pretrained(
        Path("a"), "xception_jax", len(learnt), dict, {}, class_names=learnt
    )
    found, note = initial._kept_classes(source, names)
    assert (found.tolist(), note) == (kept, said)


def test_a_classifier_without_names_is_kept_if_it_has_as_many_classes():
    for classes, kept in ((3, [0, 1, 2]), (2, [-1, -1, -1]), (None, [-1, -1, -1])):
        source = pretrained.Pretrained(Path("a"), "keras", classes, dict, {})
        found, note = initial._kept_classes(source, ("a", "b", "c"))
        assert found.tolist() == kept
        assert note.startswith("NOTE: the classifier of the weights is kept") == (classes == 3)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"input_size": [3, 224, 320]}, "input_size is [3, 224, 320], but the models here take"),
        ({"crop_mode": "squash"}, "crop_mode is 'squash', but images are cropped at the centre"),
        ({"crop_mode": 1}, "crop_mode is 1, but"),
        ({"input_size": [3, 96, 96], "crop_mode": "center", "interpolation": "bicubic"}, ""),
    ],
)
def test_images_of_timm_that_cannot_be_made_are_refused(told, said, tmp_path):
    path = builders.write_timm(builders.create("xception", **BUILT), tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": told}))
    if not said:
        assert pretrained.open_pretrained(path).notes() == []
        return
    with pytest.raises(UsageError) as refused:
        pretrained.open_pretrained(path)
    assert said in str(refused.value)


def test_another_interpolation_is_told_wherever_the_weights_go(tmp_path):
    """By the file itself, a converted one, a run that starts, `predict`, `evaluate`, `export`."""
    model = builders.create("legacy_xception")
    path = builders.write_timm(model, tmp_path / "a.safetensors")
    made_for = {"interpolation": "bilinear", "input_size": [3, 33, 33]}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": made_for}))
    note = ("NOTE: the weights expect images resized with interpolation bilinear; eval_preset timm "
            "resizes bicubic")  # fmt: skip
    source = pretrained.open_pretrained(path)
    assert source.notes() == [note]
    about = source.about("legacy_xception")
    overrides = pretrained.effective("legacy_xception", about.overrides | builders.SMALL)
    copy = tmp_path / "b.safetensors"
    converted.write(copy, replace(about, overrides=overrides), builders.arrays(model))
    assert pretrained.open_pretrained(copy).notes() == [note]
    assert Classifier(copy).notes == (note,)
    picture = tmp_path / "photos/0/a.png"
    for name in ("0", "1"):
        (tmp_path / f"photos/{name}").mkdir(parents=True)
        for file in ("a", "b"):
            Image.new("RGB", (33, 33)).save(tmp_path / f"photos/{name}/{file}.png")
    for command, *flags in (
        ("predict", str(picture)),
        ("export", f"--output={tmp_path}/out", "--platforms=cpu"),
        ("evaluate", f"--dataset=folder:{tmp_path}/photos", "--json"),
    ):
        done = finish(command, f"--input={copy}", *flags)
        assert done.returncode == 0, done.stderr
        assert note in " ".join(done.stderr.split()), command


def test_a_model_that_is_not_here_is_named(tmp_path):
    """Unless the user says which one it is."""
    path = builders.write_timm(builders.create("xception", **BUILT), tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "resnet50", "pretrained_cfg": {"input_size": [3, 96, 96]}})
    )
    config = config_lib.default()
    config.init_from = str(path)
    for ask in (
        lambda: inference.of_file(path),
        lambda: convert.convert(path, tmp_path / "b.safetensors", source_format="timm"),
        lambda: gathering.weights_facts(str(path), {}),
    ):
        with pytest.raises(UsageError, match=r"holds timm's resnet50, which is not one of the mod"):
            ask()
    assert pretrained.open_pretrained(path).model_name("xception") == "xception"
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match=r"--model is needed: .* does not name its model"):
        inference.of_file(path)


@pytest.mark.parametrize("shards", [1, 3])
def test_columns_of_the_classifier_are_copied_by_name_and_the_others_stay(small_config, shards,
                                                                          tmp_path):  # fmt: skip
    """On a classifier that is cut over devices, too."""
    about = converted.About("xception", BUILT, 3, ("cat", "cow", "dog"), MADE_FOR, {})
    tensors = builders.arrays(builders.create("xception", **BUILT))
    path = tmp_path / "a.safetensors"
    converted.write(path, about, tensors)
    small_config.init_from = str(path)
    config = initial.resolve_with_weights(small_config)
    names = ("dog", "emu", "cat")
    functions = build.build(config, build.DataSpec(len(names)))
    placed = NamedSharding(jax.make_mesh((shards,), ("data",), devices=jax.devices()[:shards]),
                           PartitionSpec())  # fmt: skip
    columns = NamedSharding(placed.mesh, PartitionSpec(None, "data"))
    shardings = jax.tree_util.tree_map_with_path(
        lambda path, _: columns if "classifier" in str(path) and "kernel" in str(path) else placed,
        functions.shapes,
    )
    fresh = state.initialize(functions.init, 0, shardings)
    filled, notes = initial.fill(config, fresh, names, [], tmp_path)
    assert "classifier: 2 of 3 classes by name from the weights; new: emu" in notes
    for tree in (filled.params, filled.ema["params"]):
        for leaf in ("kernel", "bias"):
            found = np.asarray(tree["head"]["classifier"][leaf])
            given = tensors[f"params.head.classifier.{leaf}"]
            before = np.asarray(fresh.params["head"]["classifier"][leaf])
            np.testing.assert_array_equal(found[..., 0], given[..., 2])
            np.testing.assert_array_equal(found[..., 1], before[..., 1])
            np.testing.assert_array_equal(found[..., 2], given[..., 0])
    kernel = filled.params["head"]["classifier"]["kernel"]
    assert kernel.sharding.is_equivalent_to(columns, 2)
    kept = json.loads((tmp_path / "init_from.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (kept["init_from"], kept["sha256"]) == (str(path), digest)


@pytest.mark.parametrize(
    ("made_for", "changes", "said"),
    [
        ({"eval_preset": "keras", "eval_crop": 1.0}, {"eval_crop": 0.9},
         "config.data.eval_crop is 0.9; it must be 1.0 with"),
        ({"eval_preset": "keras", "eval_crop": 0.5}, {}, "config.data.eval_crop is 0.5; it must"),
        ({"image_size": 10**9}, {}, "asks for images of 1,000,000,000 pixels"),
    ],
)  # fmt: skip
def test_what_weights_and_config_cannot_mean_together_is_refused(made_for, changes, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        resolved(write(tmp_path / "a.safetensors", made_for), **changes)


def test_without_weights_it_says_which_there_are(tmp_path):
    missing = tmp_path / "xception.safetensors"
    with pytest.raises(UsageError) as caught:
        resolved(missing)
    said = str(caught.value)
    assert said.startswith(f"config.init_from: there are no weights at {missing}; ")
    assert "python -m xception_jax.convert" in said
    assert "Published weights of xception: keras:xception; docs/weights.md" in said


def test_an_export_has_no_weights_to_take(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(UsageError, match="is an exported program with its weights as"):
        resolved(tmp_path)


@pytest.mark.slow
def test_a_run_keeps_and_says_what_it_took_and_evaluates_by_it(small_config, path, tmp_path):
    small_config.init_from, small_config.duration = str(path), "2 steps"
    small_config.eval.every = "2 steps"
    small_config.model.update(width=None, middle_blocks=None, stem_stride=None)
    small_config.data.update(image_size=None, eval_preset=None, eval_crop=0.5)
    from xception_jax.utils.console import make_console

    console = make_console()
    with console.capture() as captured:
        found = train.train(small_config, tmp_path / "run", console=console)
    said = captured.get()
    assert "images as the weights expect them (config.data): image_size 8, eval_preset timm, " \
           "exif on" in said.replace("\n", " ")  # fmt: skip
    assert "NOTE: config.data.eval_crop is 0.5, but the weights expect 0.75" in said
    data = read_config(tmp_path / "run").data
    assert (data.image_size, data.eval_preset, data.eval_crop, data.exif) == (8, "timm", 0.5, "on")
    again = result(finish("evaluate", f"--workdir={tmp_path / 'run'}", "--json"))
    assert again["top1"] == found.metrics["top1"]
    assert again["loss"] == pytest.approx(found.metrics["loss"], abs=1e-6)
    # And those who start from this run take it on.
    made_for = pretrained.open_pretrained(tmp_path / "run").preprocessing
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    images = {"image_size": 8, "eval_preset": "timm", "eval_crop": 0.5, "exif": True}
    assert made_for == images | half
    path.unlink()
    small_config.duration = "3 steps"
    assert train.train(small_config, tmp_path / "run", allow_config_changes=True).step == 3
