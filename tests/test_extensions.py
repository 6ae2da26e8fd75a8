"""Extensions: models, data sources and the like in files outside of the package."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.processes import ROOT, finish
from tests.weights import builders
from xception_jax import config as config_lib
from xception_jax import contact_sheet, convert, models, train, weights
from xception_jax.augment import pipeline
from xception_jax.config import Field, declared, overrides, registry, schema
from xception_jax.data import readers, splits
from xception_jax.data.source import Source
from xception_jax.errors import UsageError
from xception_jax.models import registry as model_registry
from xception_jax.planning.data import find_spec
from xception_jax.training import build, optimizer, preflight, workdir
from xception_jax.utils import imports
from xception_jax.weights import converted, pretrained
from xception_jax.weights.keras import names as keras_names
from xception_jax.weights.tensors import abstract
from xception_jax.weights.timm import names as timm_names

FOLDER = Path(__file__).parent / "extensions"
FILES = (
    "my_augmentation.py", "my_data.py", "my_model.py", "my_optimizer.py", "my_relatives.py",
    "my_schedule.py",
)  # fmt: skip
TABLES = (
    schema.SCHEMA, schema.ADDED, schema.FIXED, registry._OUTSIDE,
    model_registry.MODELS._entries, readers._READERS._entries, optimizer._OPTIMIZERS._entries,
    optimizer._SCHEDULES._entries, pipeline._OPERATIONS._entries,
)  # fmt: skip


@pytest.fixture
def clean(monkeypatch):
    """Takes back what a test registers and imports."""
    before = [copy.copy(table) for table in TABLES]
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for table, held in zip(TABLES, before, strict=True):
        table.clear()
        table.update(held)
    for file in FILES:
        sys.modules.pop(Path(file).stem, None)


@pytest.fixture
def extended(clean):
    """With everything that the files register."""
    imports.load([str(FOLDER / file) for file in FILES])


def write_shapes(path: Path) -> None:
    """A data set of two classes, dark and bright, 32 images to train on and 16 to evaluate."""
    rng, arrays = np.random.default_rng(0), {"classes": np.array(["dark", "bright"])}
    for split, count in {"train": 32, "test": 16}.items():
        labels = np.arange(count) % 2
        noise = rng.integers(0, 100, (count, 8, 8, 3))
        arrays[f"{split}_images"] = (noise + 150 * labels[:, None, None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels
    np.savez(path, **arrays)


@pytest.fixture
def own_config(extended, monkeypatch, tmp_path):
    """The config of the files, with its data."""
    write_shapes(tmp_path / "shapes.npz")
    monkeypatch.syspath_prepend(FOLDER)
    from my_config import get_config

    config = get_config()
    config.data.data_dir, config.mesh.data = str(tmp_path), 1
    yield config
    del sys.modules["my_config"]


@pytest.mark.parametrize("file", FILES)
def test_an_extension_is_short(file):
    assert len((FOLDER / file).read_text().splitlines()) < 30


def test_all_of_them_train_together(own_config, tmp_path):
    done = train.train(own_config, tmp_path / "run")
    assert (done.step, done.metrics["examples"]) == (4, 16)
    held = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (held["model.depth"], held["optimizer.lion_beta"]) == (3, 0.95)
    assert held["augment.negative"] == 0.5


def test_a_model_brings_its_option(extended, small_config):
    _, changes = overrides.take(["--config.model.depth=5", "--config.model.name=plain"])
    config = config_lib.default()
    overrides.apply(config, changes)
    assert config_lib.model_overrides(config) == {"depth": 5}
    config.data.image_size = 8
    assert build.build_graphdef(config, 3) is not None
    made = nnx.eval_shape(lambda: models.create("plain", num_classes=3, rngs=nnx.Rngs(0), depth=5))
    assert [name for name, _ in made.blocks()] == [f"conv{i}" for i in range(5)]
    assert models.overrides("plain")["depth"] == 2
    assert "depth" in converted.architecture("plain")
    config.model.depth = 0
    with pytest.raises(UsageError, match=r"model\.depth is 0; it takes at least 1"):
        config_lib.check_fields(config)
    small_config.model.depth = 2
    with pytest.raises(UsageError, match=r"xception does not take config\.model\.depth; add "):
        preflight.check_without_data(small_config, 1)
    small_config.model.update(name="plain", depth=None)
    with pytest.raises(UsageError, match=r"plain does not take .*, config\.model\.width; add"):
        preflight.check_without_data(small_config, 1)
    assert "  model.depth = None\n      convolutions; None: 2\n  data." in config_lib.describe()


def test_weights_of_a_library_are_not_those_of_an_own_model(extended, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"conv1.weight": np.zeros((8, 3, 3, 3), np.float32)}, path)
    model = models.create("plain", num_classes=2, rngs=nnx.Rngs(0))
    with pytest.raises(UsageError, match="timm has no plain; it has: inception_v3, "):
        weights.load(model, path)


@pytest.mark.parametrize("kind", ["keras", "timm"])
def test_a_class_derived_from_one_here_has_its_names_elsewhere(extended, tmp_path, kind):
    write = {"keras": builders.write_keras, "timm": builders.write_timm}[kind]
    own = models.elsewhere(kind)["short_xception"].overrides
    model = builders.create("short_xception", **own)
    path = write(model, tmp_path / {"keras": "a.weights.h5", "timm": "a.safetensors"}[kind])
    names = {"keras": keras_names, "timm": timm_names}[kind].tensor_map
    same = abstract("xception", 3, {**builders.SMALL, "middle_blocks": 2})
    assert names(model) == names(same)
    other = builders.create("short_xception", seed=1, **own)
    weights.load(other, path)
    for name, array in builders.arrays(model).items():
        np.testing.assert_array_equal(array, builders.arrays(other)[name], err_msg=name)
    source = pretrained.open_pretrained(path)
    assert source.usual_crop("short_xception") == {"keras": 1.0, "timm": 0.9}[kind]
    assert source.num_classes == 3


def test_a_model_of_torch_is_read_by_names_of_its_own(extended, tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    features = []
    for channels in (3, 16):
        conv = torch.nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        features += [conv, torch.nn.BatchNorm2d(16, eps=1e-3), torch.nn.ReLU()]
    theirs = torch.nn.Sequential()
    theirs.features, theirs.classifier = torch.nn.Sequential(*features), torch.nn.Linear(16, 5)
    for norm in (features[1], features[4]):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    images = np.random.default_rng(0).uniform(-1, 1, (2, 9, 9, 3)).astype(np.float32)
    with torch.no_grad():
        maps = theirs.eval().features(torch.from_numpy(images).permute(0, 3, 1, 2))
        expected = theirs.classifier(maps.mean((2, 3))).numpy()
    model = models.create("plain_torch", num_classes=5, rngs=nnx.Rngs(0))
    weights.load(model, tmp_path / "a.pth")
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)
    headless = models.create("plain_torch", num_classes=None, rngs=nnx.Rngs(0))
    weights.load(headless, tmp_path / "a.pth")
    np.testing.assert_allclose(headless(images), maps.mean((2, 3)).numpy(), rtol=1e-4, atol=1e-5)
    output = tmp_path / "back.safetensors"
    ours = tmp_path / "b.safetensors"
    convert.convert(tmp_path / "a.pth", ours, source_format="timm", model="plain_torch")
    convert.convert(ours, output, source_format="xception_jax", target_format="timm")
    back = load_file(output)
    for name, tensor in theirs.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(back[name], tensor.numpy(), err_msg=name)


def test_a_model_without_written_facts_is_counted(extended):
    facts = models.describe("plain")
    assert facts["parameters"] == (27 + 9 * 16) * 16 + 4 * 16 + 16 * 1000 + 1000
    assert facts["multiply_adds"] == 299**2 * (27 + 9 * 16) * 16 + 16 * 1000
    assert (facts["min_image_size"], facts["published"]) == (1, [])
    assert "plain" in models.names()


def test_a_data_source_is_read_by_its_prefix(extended, tmp_path):
    write_shapes(tmp_path / "shapes.npz")
    source = readers.open_split("npz:shapes.npz", "test", str(tmp_path))
    assert (source.class_names, len(source)) == (("dark", "bright"), 16)
    assert source[3].label == 1
    assert readers.prefix_of("npz:shapes.npz") == "npz:"
    assert readers.prefix_of("optical_digits:1.0.0") == ""
    assert readers.prefixes() == ["folder:", "npz:"]


def test_an_optimizer_is_optax_own_with_decay_and_rate(extended):
    ours = optimizer.make_optimizer(
        "lion", optax.constant_schedule(0.1), weight_decay=0.2, lion_beta=0.8, decay_all=True
    )
    theirs = optax.lion(0.1, b1=0.9, b2=0.8, weight_decay=0.2)
    params = {"kernel": jnp.array([0.3, -2.0, 1.0])}
    gradients = {"kernel": jnp.array([1.0, -0.5, -3.0])}
    found = [one.update(gradients, one.init(params), params)[0] for one in (ours, theirs)]
    np.testing.assert_allclose(found[0]["kernel"], found[1]["kernel"], rtol=1e-6)
    assert "lion" in schema.SCHEMA["optimizer.name"].choices
    assert "polynomial" in schema.SCHEMA["optimizer.schedule"].choices


def test_a_schedule_falls_to_zero_at_the_end(extended):
    config = config_lib.default()
    config.duration, config.data.batch_size, config.optimizer.warmup = "120 steps", 16, "20 steps"
    config.optimizer.schedule, config.optimizer.decay_power = "polynomial", 2.0
    config_lib.check_fields(config)
    _, rate = optimizer.from_config(config, 1000)
    highest = 0.045 * 16 / 256
    for step, share in {10: 0.5, 20: 1.0, 70: 0.25, 120: 0.0}.items():
        assert float(rate(step)) == pytest.approx(highest * share, rel=1e-5)
    flat = config_lib.flatten(config)
    assert not config_lib.may_change("duration", flat)
    assert "optimizer.decay_power" in config_lib.portable(flat)


@pytest.mark.parametrize(("schedule", "may"), [("cosine", False), ("staircase", True)])
def test_a_schedule_says_whether_the_duration_may_change(schedule, may):
    flat = config_lib.flatten(config_lib.default())
    assert config_lib.may_change("duration", flat | {"optimizer.schedule": schedule}) is may


def test_a_duration_of_an_own_schedule_is_in_steps(clean, small_config):
    pause = Field("1 epoch", "of late", str, duration=True)

    @optimizer.register_schedule("late", options={"pause": pause})
    def late(fields):
        return lambda count: fields.learning_rate * (count >= fields.pause)

    small_config = config_lib.settled(small_config, None)
    small_config.optimizer.schedule, small_config.optimizer.pause = "late", "1.5 epochs"
    _, rate = optimizer.from_config(small_config, 128)  # three steps of 64
    assert [bool(rate(step)) for step in range(5)] == [False, False, False, True, True]


@pytest.mark.parametrize("default", ["auto", None])
def test_a_duration_may_be_unset(clean, small_config, default):
    pause, seen = Field(default, "of late", str, duration=True), []

    @optimizer.register_schedule("late", options={"pause": pause})
    def late(fields):
        seen.append(fields.pause)
        return lambda count: fields.learning_rate

    small_config = config_lib.settled(small_config, None)
    small_config.optimizer.schedule = "late"
    config_lib.check_fields(small_config)
    optimizer.from_config(small_config, 128)
    small_config.optimizer.pause = "2 steps"
    optimizer.from_config(small_config, 128)
    assert seen == [default, 2]


def test_an_optimizer_gets_what_it_is_said_to_get(clean, extended):
    seen, rest = {}, Field("1 epoch", "of mine", str, duration=True)

    @optimizer.register("mine", options={"rest": rest})
    def mine(fields, schedule):
        seen.update(vars(fields))
        return optax.identity()

    config = config_lib.default()
    config.optimizer.name, config.optimizer.decay_mode = "mine", "l2"
    config.data.batch_size, config.optimizer.rest = 64, "1.5 epochs"
    optimizer.from_config(config, 128)
    common = ("momentum", "nesterov", "beta1", "beta2", "epsilon", "initial_squares", "decay_all")
    assert seen == {
        **{name: config.optimizer[name] for name in common}, "decay_mode": "l2", "rest": 3,
    }  # fmt: skip


def test_optimizers_and_schedules_are_those_that_the_schema_names():
    assert sorted(schema.SCHEMA["optimizer.name"].choices) == optimizer._OPTIMIZERS.names()
    assert sorted(schema.SCHEMA["optimizer.schedule"].choices) == optimizer._SCHEDULES.names()
    for one in declared.declarations("training/optimizer.py", "register_schedule"):
        said = ("duration",) if one.value("until_end") else ()
        assert schema.FIXED["optimizer.schedule", one.name] == said, "of the import above"


def test_an_augmentation_acts_on_its_share_of_the_images(extended):
    images = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), np.uint8)
    config = config_lib.default()
    assert pipeline.Augmentation.from_config(config.augment) == pipeline.Augmentation()
    config.augment.negative = 0.5
    settings = pipeline.Augmentation.from_config(config.augment)
    config.augment.flip = True
    both = pipeline.Augmentation.from_config(config.augment)

    @jax.jit
    def augmented(images):
        keys = pipeline.example_keys(0, jnp.asarray(0), 64)
        return [pipeline.augment(each, keys, images) for each in (settings, both)]

    made, flipped = map(np.asarray, augmented(images))
    negative = (made == 255 - images).all((1, 2, 3))
    assert ((made == images).all((1, 2, 3)) != negative).all()
    assert 16 < negative.sum() < 48
    sums = (flipped.sum((1, 2, 3)), made.sum((1, 2, 3)))
    np.testing.assert_array_equal(*sums, "what one draws does not depend on what else is on")
    assert contact_sheet._on(settings) == ["negative"]
    assert contact_sheet._alone(pipeline.Augmentation(flip=True), "negative", 8) == (
        1.0,
        pipeline.Augmentation(registered=(("negative", 1.0),)),
    )


def test_a_config_of_a_run_that_needs_them_says_so(own_config, tmp_path):
    flat = config_lib.portable(config_lib.flatten(own_config))
    for table in (schema.SCHEMA, schema.ADDED):
        for name in ("model.depth", "optimizer.lion_beta", "augment.negative"):
            table.pop(name)
    model_registry.MODELS._entries.pop("plain")
    with pytest.raises(UsageError) as caught:
        workdir._config(tmp_path, flat)
    assert str(caught.value) == (
        f"{tmp_path}/config.json has config.augment.negative, config.model.depth, "
        f"config.optimizer.lion_beta, model 'plain', which this package does not have; if the run "
        f"was trained with your own Python files, give them here too: --imports=FILE"
    )


def test_a_config_of_a_run_with_an_own_schedule_says_so(clean, small_config, tmp_path):
    flat = config_lib.portable(config_lib.flatten(small_config))
    flat["optimizer.schedule"] = "polynomial"
    with pytest.raises(UsageError, match=r"/config.json has schedule 'polynomial', which .*--imp"):
        workdir._config(tmp_path, flat)
    imports.load([str(FOLDER / "my_schedule.py")])
    assert workdir._config(tmp_path, flat).optimizer.decay_power == 1.0


def test_a_config_of_a_run_with_an_own_data_source_says_so(clean, tmp_path):
    """It has no field of the file, so that only the data can tell."""
    config = config_lib.default()
    config.data.dataset, config.data.data_dir = "npz:shapes.npz", str(tmp_path)
    write_shapes(tmp_path / "shapes.npz")
    found = workdir._config(tmp_path, config_lib.portable(config_lib.flatten(config)))
    opened = (splits.open_training, splits.open_evaluation, find_spec, preflight.validate)
    for act in opened:  # a run, evaluation, a plan, and the checks before a run
        with pytest.raises(UsageError, match=r"^no data set 'npz:shapes.npz': .* --imports=FILE"):
            act(found)
    imports.load([str(FOLDER / "my_data.py")])
    assert find_spec(found).examples == 32


def test_a_run_that_does_not_use_them_needs_none_of_them(extended, small_config):
    flat = config_lib.portable(config_lib.flatten(small_config))
    assert not {"model.depth", "optimizer.lion_beta", "augment.negative"} & flat.keys()
    assert not config_lib.differences(config_lib.complete(flat), config_lib.flatten(small_config))


def test_a_run_that_uses_them_keeps_their_defaults(extended, small_config):
    """They are the user's, and may change with his file."""
    config = config_lib.default()
    config.optimizer.name = "lion"
    flat = config_lib.portable(config_lib.flatten(config))
    assert flat["optimizer.lion_beta"] == 0.99
    assert "augment.negative" not in flat


def test_a_config_of_before_gets_the_fields_that_were_added_since(clean):
    config = config_lib.default()
    imports.load([str(FOLDER / "my_optimizer.py")])
    config.optimizer.name = "lion"
    config_lib.check_fields(config)
    assert config_lib.settled(config, None).optimizer.lion_beta == 0.99


def test_the_process_that_compiles_a_plan_has_them_too(own_config, tmp_path):
    request = {"imports": registry.outside_modules(), "path": sys.path,
               "config": config_lib.flatten(own_config)}  # fmt: skip
    assert set(request["imports"]) >= {Path(file).stem for file in FILES}
    code = (
        "import json, sys\n"
        "from xception_jax.planning import program\n"
        "config = program.config_of(json.loads(sys.argv[1]))\n"
        "print(config.model.name, config.model.depth, config.optimizer.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(request)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout == "plain 3 lion\n", done.stderr


def test_what_is_taken_is_refused(extended):
    def make(*_, depth=2):
        raise AssertionError

    with pytest.raises(UsageError, match=r"model 'xception' of .*make is already registered by "):
        models.register("xception")(make)
    with pytest.raises(UsageError, match="the option 'width' must be an argument of "):
        models.register("mine", options={"width": Field(None, "of mine", int)})(Narrow)
    with pytest.raises(UsageError, match=r"model mine cannot add config\.model\.depth: .*plain"):
        models.register("mine", options={"depth": Field(None, "metres", float)})(Narrow)
    with pytest.raises(UsageError, match=r"cannot add config.optimizer.warmup: .*this package"):
        optimizer.register("mine", options={"warmup": Field(3, "mine", int)})(make)
    with pytest.raises(UsageError, match="a prefix is a word and a colon"):
        readers.register("npz")(make)
    with pytest.raises(UsageError, match="the default of its Field must be off"):
        pipeline.register("mine", Field(1.0, "mine", float))(make)
    for name in ("steps", "total_steps", "decay_steps", "learning_rate"):
        with pytest.raises(UsageError, match=f"schedule 'mine' cannot have an option '{name}', wh"):
            optimizer.register_schedule("mine", options={name: Field(1, "mine", int)})(make)
    momentum = {"momentum": schema.SCHEMA["optimizer.momentum"]}
    with pytest.raises(UsageError, match="optimizer 'mine' cannot have an option 'momentum', whi"):
        optimizer.register("mine", options=momentum)(make)
    for mode in ("L2", "auto"):
        with pytest.raises(UsageError, match=f"decay_mode is '{mode}'; it takes: l2, decoupled"):
            optimizer.register("mine", decay_mode=mode)(make)
    with pytest.raises(
        UsageError, match=r"model 'mine': .*Narrow takes no 'dept'; did you mean 'd"
    ):
        models.register("mine", dept=8)(Narrow)
    with pytest.raises(UsageError, match="takes no 'dtype'"):
        models.register("mine", dtype=None)(Narrow)
    models.register("mine", options={"depth": schema.SCHEMA["model.depth"]})(Narrow)
    models.register("mine", options={"depth": schema.SCHEMA["model.depth"]})(Narrow)  # again


def test_lambdas_are_told_apart_by_their_code(clean):
    def add(target):
        optimizer.register_schedule("mine")(target)

    def made(power):
        return lambda fields: fields.learning_rate**power

    for power in (1, 2):  # the same code
        add(made(power))
    with pytest.raises(UsageError, match=r"'mine' of .*<lambda> is already registered by .*<lam"):
        add(lambda fields: 0.0)

    def local(fields):
        raise AssertionError

    first = type("Local", (), {"write": local})
    first.__qualname__ = "test.<locals>.Local"
    second = type("Local", (), {"write": made})
    second.__qualname__ = first.__qualname__
    own = registry.Registry("thing")
    for target in (first, first):
        own.add("mine", target, target)
    with pytest.raises(UsageError, match="already registered by "):
        own.add("mine", second, second)


def test_a_config_file_cannot_register(tmp_path):
    """It has another name in this process than it would have in others."""
    path = tmp_path / "own.py"
    text = (FOLDER / "my_schedule.py").read_text()
    path.write_text(f"{text}\n\nfrom xception_jax.config import default as get_config\n")
    process = finish("main", "--list_fields", f"--config={path}")
    assert (process.returncode, process.stderr.splitlines()) == (2, [
        "error: schedule 'polynomial' is registered in the config file, which other "
        "processes cannot import; register it in a file of its own and import that"
    ])  # fmt: skip
    path.write_text("import my_schedule\nfrom xception_jax.config import default as get_config\n")
    shutil.copy(FOLDER / "my_schedule.py", tmp_path)
    process = finish("main", "--list_fields", f"--config={path}")
    assert (process.returncode, "optimizer.decay_power = 1.0" in process.stdout) == (0, True)


class Narrow(nnx.Module):
    def __init__(self, num_classes, *, rngs, dtype=None, depth=1):
        raise AssertionError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("(", "SyntaxError: "),
    ],
)
def test_a_file_that_cannot_be_imported_is_told_in_one_line(clean, tmp_path, text, message):
    path = tmp_path / "faulty_extension.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as caught:
        imports.load([str(path)])
    assert str(caught.value).startswith(f"--imports={path}: {message}")


def test_a_file_of_the_name_of_another_module_is_refused(clean, tmp_path):
    (tmp_path / "json.py").write_text("")
    with pytest.raises(UsageError, match=r"json/__init__.py is a module of the same name"):
        imports.load([str(tmp_path / "json.py")])


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder that is not the repository's."""
    return subprocess.run(
        [sys.executable, "-m", "xception_jax", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_commands_take_files_beside_a_users_config(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "mine")
    write_shapes(tmp_path / "shapes.npz")
    here = tmp_path / "empty"
    here.mkdir()
    done = run(
        here, "train", "--config.model.depth=4", "--config=../mine/my_config.py", "--workdir=run",
        "--config.data.data_dir=..", "--config.data.workers=1", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 4
    assert json.loads((here / "run" / "config.json").read_text())["model.depth"] == 4
    refused = run(here, "evaluate", "--workdir=run")
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert line.startswith("error: run/config.json has config.")
    assert line.endswith("--imports=FILE")
    files = "--imports=" + ",".join(f"../mine/{file}" for file in FILES)
    evaluated = run(here, "evaluate", "--workdir=run", files, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["examples"] == 16
    exported = run(here, "export", "--workdir=run", "--output=out", "--platforms=cpu", files)
    assert exported.returncode == 0, exported.stderr
    convert = ("convert", "--from=xception_jax", "--input=run", files)
    assert run(here, *convert, "--output=plain.safetensors").returncode == 0
    other = run(here, *convert, "--to=timm", "--output=timm.safetensors")
    assert (other.returncode, len(other.stderr.splitlines())) == (2, 1)
    assert "timm has no plain; it has: " in other.stderr
    again = run(
        here, "train", files, "--config=../mine/my_config.py", "--config.model.depth=None",
        "--config.data.data_dir=..", "--config.init_from=plain.safetensors", "--workdir=again",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert json.loads((here / "again" / "config.json").read_text())["model.depth"] == 4


def test_the_fields_of_an_extension_are_listed():
    process = finish("main", "--list_fields", f"--imports={FOLDER / 'my_model.py'}")
    assert process.returncode == 0, process.stderr
    assert "  model.depth = None\n" in process.stdout


def test_the_model_of_an_extension_is_in_the_table():
    process = finish("models", "--model=plain", "--json", f"--imports={FOLDER / 'my_model.py'}")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["models"][0]["min_image_size"] == 1


def test_the_data_of_an_extension_may_be_mixed_with_others(own_config, monkeypatch, tmp_path):
    shutil.copy(tmp_path / "shapes.npz", tmp_path / "more.npz")
    own_config.data.mix = ("npz:more.npz",)
    joined = splits.open_training(own_config)
    assert isinstance(joined, Source)
    assert len(joined) == 64


@pytest.mark.parametrize("file", FILES)
def test_contributing_shows_the_file(file):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"```python\n{(FOLDER / file).read_text(encoding='utf-8')}```" in text
