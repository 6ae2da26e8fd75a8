"""The schema: what is let through, what is refused, and what the refusal says."""

import runpy
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from tests import tiny_datasets
from xception_jax import config as config_lib
from xception_jax.config.fields import Duration
from xception_jax.data import splits
from xception_jax.errors import UsageError
from xception_jax.training import preflight

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "examples", "steps"),
    [
        ("90 epochs", 90 * 1000, 2813),
        ("1 epoch", 1000, 32),
        ("0.5 epochs", 500, 16),
        ("7 steps", 7 * 32, 7),
        ("3000000 examples", 3_000_000, 93_750),
        ("33 examples", 33, 2),
        ("0 steps", 0, 0),
    ],
)
def test_durations(text, examples, steps):
    duration = Duration.parse(text)
    assert duration.examples(batch_size=32, epoch=1000) == examples
    assert duration.steps(batch_size=32, epoch=1000) == steps


@pytest.mark.parametrize("number", [float("inf"), -float("inf"), float("nan")])
def test_no_field_takes_what_is_not_finite(number):
    fields = {name: field for name, field in config_lib.SCHEMA.items() if not field.texts}
    numbers = [field for field in fields.values() if field.kind in (float, tuple)]
    assert len(numbers) > 30
    for field in numbers:
        assert field.check(number if field.kind is float else (1.0, number)) is not None, field.help


@pytest.mark.parametrize(
    "text", ["90", "epochs", "90 days", "-1 steps", "many steps", "1/0 steps", "", "inf epochs",
             "1e16 steps", "1e999999999 epochs"]
)  # fmt: skip
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="is not a duration; it takes a number and a unit, as"):
        Duration.parse(text)


def test_the_default_is_valid():
    preflight.validate(config_lib.default())


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_configs_are_valid_on_the_devices_there_are(path, tmp_path):
    config = runpy.run_path(str(path))["get_config"]()
    if config.data.dataset == "imagenet2012":
        # The very config on data that can be had here: 1000 classes of any pictures.
        splits = {"train": 1000, "validation": 1000}
        tiny_datasets.prepare(tmp_path, "many_classes", examples=splits, classes=1000)
        config.data.dataset, config.data.data_dir = "many_classes", str(tmp_path)
    elif config.data.dataset == "folder:PATH":
        for i in range(4):
            folder = tmp_path / ("train", "test")[i // 2] / "ab"[i % 2]
            folder.mkdir(parents=True)
            (folder / "1.jpg").write_bytes(tiny_datasets.jpeg(np.random.default_rng(i), 20, 20, i))
        config.data.dataset = f"folder:{tmp_path}"
    if config.loss.name == "sigmoid":
        config.optimizer.warmup = "0 steps"  # of so few examples it is longer than the run
        splits = {"train": 8, "validation": 8}
        nested = "/" in config.data.label
        tiny_datasets.prepare_multilabel(tmp_path, "scenes", examples=splits, objects=nested)
        config.data.dataset, config.data.data_dir = "scenes", str(tmp_path)
        config.data.label = config.data.label.replace("objects_trainable", "objects")
    preflight.validate(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "duration",
            "90 days",
            "is '90 days', which is not a duration; it takes a number and a",
        ),
        ("duration", "0 steps", "is '0 steps'; it must be above 0"),
        ("log.every", "0 steps", "is '0 steps'; it must be above 0"),
        ("seed", -1, "is -1; it takes at least 0 and at most 4294967295"),
        ("model.dropout", 1.5, "is 1.5; it takes at least 0.0 and at most 0.99"),
        ("model.dtype", "float16", "is 'float16'; did you mean 'bfloat16'? It takes: auto, "),
        ("model.fc_units", ("a",), "is ('a',); it takes whole numbers"),
        ("model.fc_units", (16.5,), "is (16.5,); it takes whole numbers"),
        ("data.crop_area", ("a", 1), "is ('a', 1); it takes numbers"),
        ("optimizer.name", "sdg", "is 'sdg'; did you mean 'sgd'? It takes: sgd, "),
        ("optimizer.learning_rate", float("nan"), "is nan; it takes finite numbers"),
        ("optimizer.learning_rate", float("inf"), "is inf; it takes finite numbers"),
        ("data.crop_area", (0.5,), "is (0.5,); expected (smallest, largest)"),
        ("data.crop_area", (0.5, 0.2), "is (0.5, 0.2); expected (smallest, largest)"),
        ("augment.erase_aspect", (2.0, 0.5), "is (2.0, 0.5); expected (smallest, largest)"),
        ("augment.magnitude", 11.0, "is 11.0; it takes at least 0.0 and at most 10.0"),
        ("augment.mixup", 0.001, "is 0.001; use 0 (off) or at least 0.01"),
        ("data.batch_size", 60, "is 60, not divisible by the 8 devices; use 56 or 64"),
        ("data.batch_size", 4, "is 4, not divisible by the 8 devices; use 8"),
        ("optimizer.microbatch", 4, "is 4 and each device has 8 images of the batch"),
        ("data.eval_preset", "tim", "is 'tim'; did you mean 'timm'?"),
        ("mesh.data", 9, "is 9; there are 8 devices"),
        ("mesh.data", 0, "is 0; there are 8 devices"),
        ("mesh.model", 3, "is 3, but the 8 devices are not divisible by it"),
        ("mesh.model", 0, "is 0; it takes at least 1"),
        ("mesh.shard", "al", "is 'al'; did you mean 'all'? It takes: none, optimizer, all"),
    ],
)
def test_values_that_are_refused(field, value, message):
    complaint = refusal(**{field: value})
    assert complaint.startswith(f"config.{field} {message}")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.bn_virtual_batch", 24, "config.data.batch_size is 64, not a multiple of config."),
        ("model.name", "xceptoin", "no model 'xceptoin'; did you mean 'xception'?"),
        ("data.dataset", "optical_digit", "no data set 'optical_digit'"),
        ("data.dataset", "imagenet2012", "imagenet2012 is not prepared in"),
        ("data.dataset", "", "data set '' cannot be opened: "),
        ("data.dataset", "mnist:9.9.9", "data set 'mnist:9.9.9' cannot be opened: "),
        ("data.dataset", "mnist/foo", "data set 'mnist/foo' cannot be opened: "),
        ("data.dataset", "optical_digits:9.9.9", "no data set 'optical_digits:9.9.9'; there is"),
        ("data.data_dir", "/etc/passwd", "optical_digits cannot be prepared in /etc/passwd"),
        ("data.train_split", "train[5:2]", "'train[5:2]' of optical_digits in"),
        ("data.train_split", "trian", "optical_digits has no split 'trian'; it has: test, train"),
        ("data.eval_split", "test[:0]", "'test[:0]' of optical_digits in"),
    ],
)
def test_what_does_not_fit_together_or_is_not_there(field, value, message):
    assert refusal(**{field: value}).startswith(message)


@pytest.mark.parametrize(
    ("duration", "batch", "epoch", "period"),
    [
        ("90 epochs", 256, 1_281_167, "1 epoch"),
        ("100 epochs", 64, 640, "10 epochs"),  # 100 steps
        ("24 epochs", 64, 1437, "3 epochs"),  # a tenth of the run's 539 steps
        ("1 step", 64, 1437, "1 epoch"),
    ],
)
def test_auto_is_whole_epochs_that_are_not_tiny(duration, batch, epoch, period):
    config = config_lib.default()
    config.duration, config.data.batch_size = duration, batch
    for name in ("eval.every", "checkpoint.every"):
        assert config_lib.period(config, name, epoch) == Duration.parse(period)
    config.eval.every = "1 epoch"
    assert config_lib.period(config, "eval.every", epoch) == Duration.parse("1 epoch"), "as asked"
    assert config_lib.SCHEMA["log.every"].check("auto").startswith("is 'auto', which is not a dur")


def test_a_run_that_has_begun_keeps_its_periods(small_config):
    begun = config_lib.resolve(small_config)
    small_config.eval.every = small_config.checkpoint.every = "auto"
    again = config_lib.resolve(small_config, begun)
    assert (again.eval.every, again.checkpoint.every) == ("6 steps", "2 steps")


def test_a_warm_up_longer_than_the_run_is_refused():
    assert refusal(**{"optimizer.warmup": "2 epochs", "duration": "30 steps"}) == (
        "config.optimizer.warmup is '2 epochs', 45 steps, but the run has only 30 (config.duration "
        "'30 steps'); shorten the warmup or lengthen the run"
    )


def test_a_run_that_began_with_such_a_warm_up_goes_on(small_config):
    small_config.optimizer.warmup, small_config.duration = "31 steps", "30 steps"
    preflight.validate(small_config, begun=config_lib.resolve(small_config))
    with pytest.raises(UsageError, match="shorten the warmup or lengthen the run"):
        preflight.validate(small_config)


def test_keras_preset_takes_all_of_the_picture():
    message = refusal(**{"data.eval_preset": "keras", "data.eval_crop": 0.9})
    assert message.startswith("config.data.eval_crop is 0.9; it must be 1.0 with")


def refusal(**changes) -> str:
    """The one line that refuses the default config with some fields changed."""
    config = config_lib.default()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UsageError) as caught:
        preflight.validate(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fields_of_the_wrong_type_unknown_or_missing():
    nested = config_lib.default().to_dict()
    nested["data"]["batch_size"] = "64"
    with pytest.raises(UsageError, match="batch_size is '64', a str; it takes a whole number"):
        preflight.validate(ConfigDict(nested))
    nested = config_lib.default().to_dict()
    nested["optimizer"]["learning_rte"] = 0.1
    with pytest.raises(
        UsageError, match=r"'optimizer.learning_rte'; did you mean 'optimizer.learning_rate'"
    ):
        preflight.validate(ConfigDict(nested))
    nested = config_lib.default().to_dict()
    del nested["ema"]["decay"]
    with pytest.raises(UsageError, match=r"config has no ema\.decay; start from"):
        preflight.validate(ConfigDict(nested))


@pytest.mark.parametrize(
    ("batch", "limit", "virtual", "devices", "parts"),
    [
        (256, 0, None, 1, 1),
        (256, 64, 32, 8, 1),
        (256, 64, 32, 4, 1),
        (256, 64, 32, 1, 4),
        (96, 30, 4, 1, 4),  # 3 parts of 32 are too large
        (512, 32, 32, 8, 2),
    ],
)
def test_microbatch_count(batch, limit, virtual, devices, parts):
    config = config_lib.default()
    config.data.batch_size, config.optimizer.microbatch = batch, limit
    config.model.bn_virtual_batch = virtual
    assert config_lib.microbatch_count(config, devices) == parts


@pytest.mark.parametrize(("limit", "devices"), [(16, 1), (16, 8)])
def test_a_part_holds_whole_virtual_batches_on_every_device(limit, devices):
    config = config_lib.default()
    config.data.batch_size, config.optimizer.microbatch = 256, limit
    config.model.bn_virtual_batch = 32
    with pytest.raises(UsageError, match=rf"microbatch is {limit}, .* on {devices} devices cannot"):
        config_lib.microbatch_count(config, devices)


def test_a_config_survives_json_and_differences_are_named():
    config = config_lib.default()
    flat = config_lib.flatten(config)
    assert list(flat) == list(config_lib.SCHEMA) or set(flat) == set(config_lib.SCHEMA)
    again = config_lib.flatten(config_lib.from_flat(flat))
    assert config_lib.differences(flat, again) == []
    again["seed"], again["data.crop_area"] = 3, [0.5, 1.0]
    assert config_lib.differences(flat, again) == ["seed", "data.crop_area"]


def test_what_is_left_to_the_hardware_is_settled():
    config = config_lib.default()
    assert config_lib.resolve(config).model.dtype == "float32", "on CPU"
    assert config.model.dtype == "auto"
    begun = config_lib.default()
    begun.model.dtype = "bfloat16"
    assert config_lib.resolve(config, begun).model.dtype == "bfloat16", "begun on a GPU"
    assert config_lib.resolve(begun).model.dtype == "bfloat16"


def test_exif_is_settled_by_the_preset_and_a_run_keeps_what_it_settled():
    config = config_lib.default()
    for preset, settled in (
        ("area", "on"),
        ("inception", "off"),
        ("keras", "off"),
        ("timm", "off"),
    ):
        config.data.eval_preset = preset
        assert config_lib.resolve(config).data.exif == settled
        assert config_lib.applies_exif(config) == (settled == "on")
        for asked in ("on", "off"):
            config.data.exif = asked
            assert config_lib.resolve(config).data.exif == asked
        config.data.exif = "auto"


@pytest.mark.parametrize(
    ("preset", "settled"),
    [(None, ("area", 1.0)), ("area", ("area", 1.0)), ("inception", ("inception", 0.875)),
     ("keras", ("keras", 1.0)), ("timm", ("timm", 0.875))],
)  # fmt: skip
def test_images_that_are_left_open_are_settled(preset, settled):
    config = config_lib.default()
    config.data.eval_preset = preset
    found = config_lib.resolve(config).data
    assert (found.eval_preset, found.eval_crop) == settled
    assert found.image_size == 299
    begun = config_lib.resolve(config)
    begun.data.image_size, begun.data.eval_crop = 150, 0.5
    again = config_lib.resolve(config, begun).data
    assert (again.image_size, again.eval_crop) == (150, 0.5), "a run keeps what it settled"
    config.data.image_size, config.data.eval_crop = 299, 0.75
    found = config_lib.resolve(config, begun).data
    assert (found.image_size, found.eval_crop) == (299, 0.75), "what is said counts"


def test_a_config_from_before_a_field_means_what_runs_did_then():
    config = config_lib.default()
    config.data.eval_preset = "timm"
    flat = config_lib.flatten(config)
    for name in (
        "exif", "white_level", "image_size", "eval_crop", "folder_rules", "mean", "std",
    ):  # fmt: skip
        del flat[f"data.{name}"]
    del flat["model.matmul_precision"]
    old = config_lib.from_flat(flat)
    assert old.model.matmul_precision == "default"
    assert (old.data.image_size, old.data.eval_crop) == (299, 1.0)
    assert (old.data.exif, old.data.white_level, old.data.folder_rules) == ("on", 65_535, 1)
    assert old.data.mean == old.data.std == (0.5, 0.5, 0.5)
    again = config_lib.resolve(config, old)
    assert config_lib.differences(config_lib.flatten(old), config_lib.flatten(again)) == [
        "model.dtype"
    ], "the same command goes on"
    new = config_lib.resolve(config).data
    assert (new.exif, new.folder_rules) == ("off", 2), "a new run"


def test_a_mesh_of_more_devices_than_there_are():
    complaint = refusal(**{"mesh.data": 4, "mesh.model": 4})
    assert complaint.startswith(
        "config.mesh.model is 4 and config.mesh.data 4, but there are 8 devices"
    )
    complaint = refusal(**{"mesh.data": 2, "mesh.model": 3, "data.batch_size": 64})
    assert complaint.startswith("config.data.batch_size is 64, not divisible by the 6 devices")


def test_a_virtual_batch_and_a_share_that_do_not_fit():
    complaint = refusal(**{"data.batch_size": 96, "model.bn_virtual_batch": 32})
    assert complaint.startswith("config.model.bn_virtual_batch is 32 and each device has")
    assert "12" in complaint


@pytest.mark.parametrize("field", ["augment.mixup", "augment.cutmix"])
def test_an_odd_batch_cannot_be_mixed(field):
    changes = {"mesh.data": 1, "data.batch_size": 63}
    config = config_lib.default()
    config.update_from_flattened_dict(changes)
    preflight.validate(config)
    complaint = refusal(**changes, **{field: 1.0})
    assert complaint.startswith(
        "config.data.batch_size is 63, which is odd, but config.augment.mixup"
    )


def test_files_that_are_gone_are_missed_at_once(tmp_path):
    tiny_datasets.prepare(tmp_path, "tiny_gone", examples={"train": 4, "test": 4})
    for path in tmp_path.rglob("*train*.array_record*"):
        path.unlink()
    config = config_lib.default()
    config.data.dataset, config.data.data_dir = "tiny_gone", str(tmp_path)
    with pytest.raises(UsageError, match=r"tiny_gone/1\.0\.0:train cannot be read: "):
        preflight.validate(config)


def test_a_trace_beside_a_libtpu_that_would_crash_it_is_refused(monkeypatch):
    there = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.0.1" if name == "libtpu" else there(name)
    )
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    complaint = refusal(**{"profile.steps": (1, 2)})
    assert "cannot trace with libtpu 0.0.1, only with ==" in complaint
    config = config_lib.default()
    preflight.validate(config)
    config.profile.steps = (1, 2)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    preflight.validate(config)


def test_every_field_is_described():
    text = config_lib.describe()
    for name, field in config_lib.SCHEMA.items():
        assert f"  {name} = " in text
        assert field.help


def test_what_cannot_be_mixed_or_sampled():
    digits = ("optical_digits",)
    assert "mix_splits has 1 splits, but config.data.mix has 0" in refusal(
        **{"data.mix_splits": digits}
    )
    assert "mix_weights has 2 numbers" in refusal(**{"data.mix_weights": (1.0, 2.0)})
    assert "cannot be combined" in refusal(
        **{"data.mix": digits, "data.mix_weights": (1.0, 1.0), "data.balanced": True}
    )
    assert "not a multiple of config.data.repeats, 3" in refusal(**{"data.repeats": 3})
    assert "mix each image with itself" in refusal(
        **{"data.batch_size": 8, "data.repeats": 8, "augment.mixup": 0.2}
    )
    assert "it takes a tuple of text" in refusal(**{"data.mix": (3,)})
    assert "no data set 'optical_digit'" in refusal(**{"data.mix": ("optical_digit",)})


def test_sets_are_mixed_and_their_splits_named():
    config = config_lib.default()
    config.data.mix, config.data.mix_splits = ("optical_digits",) * 2, ("test", "train[:10]")
    preflight.validate(config)
    opened = splits.open_training(config)
    assert opened.name == (
        "optical_digits/1.0.0:train + optical_digits/1.0.0:test + optical_digits/1.0.0:train[:10]"
    )
    assert len(opened) == 1437 + 360 + 10
    config.data.mix_splits = ()
    assert len(splits.open_training(config)) == 3 * 1437
