"""An exported model: a run's own probabilities, by JAX alone, in a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import expit, softmax

from tests.processes import finish, result
from tests.weights import builders
from xception_jax import serving
from xception_jax.data.render import presets
from xception_jax.data.render.decode import Images
from xception_jax.errors import RunError, UsageError
from xception_jax.serving import classify, folders
from xception_jax.training import sharding, state, step
from xception_jax.training.checkpoint.checkpoints import Checkpoints
from xception_jax.training.workdir import read_config
from xception_jax.utils import seal
from xception_jax.weights import converted, pretrained

BATCHES = (1, 3, 8)
FILES = ["model.json", "model.bin", "README.md", "classify.py"]


@pytest.fixture(scope="module")
def exported(undisturbed, tmp_path_factory) -> Path:
    """The best checkpoint of a run, for all platforms."""
    folder = tmp_path_factory.mktemp("export") / "model"
    flags = f"--workdir={undisturbed}", f"--output={folder}", "--step=best", "--json"
    about = result(finish("export", *flags))
    assert about == json.loads((folder / "model.json").read_text())
    return folder


@cache
def run_of(workdir: Path, weights: str = "ema"):
    """The best checkpoint of a run: structure, weights and class names."""
    config = read_config(workdir)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.find("best")
        names = checkpoints.restore(step, {})[1].class_names
        make = state.model_maker(config, len(names))
        shapes = state.shapes_of(lambda key: state.create_weights(make, key))
        target = sharding.place(shapes, sharding.replicated(sharding.make_mesh(1)))
        items, _ = checkpoints.restore(step, {"ema": target} if weights == "ema" else target)
    graphdef = state.graphdef_of(make, config.data.image_size)
    return graphdef, items["ema"] if weights == "ema" else items, names


@partial(jax.jit, static_argnums=0)
def logits_of(graphdef, weights, pixels):
    """The model's own logits of uint8 pixels of its size."""
    return step.apply(graphdef, weights, pixels)[0]


def own(workdir: Path, pixels: np.ndarray, weights: str = "ema") -> np.ndarray:
    """The run's own probabilities."""
    return np.asarray(jax.nn.softmax(logits_of(*run_of(workdir, weights)[:2], pixels)))


def pixels(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, height, width, 3), np.uint8)


ALONE = """
import sys, numpy as np, jax
from jax import export
folder, given, found = sys.argv[1:]
model = jax.jit(export.deserialize(open(f"{folder}/model.bin", "rb").read()).call)
with np.load(given) as images:
    np.savez(found, **{name: model(images[name]) for name in images})
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"xception_jax", "flax", "optax", "orbax", "grain", "cv2"}, loaded
"""


def alone(folder: Path, given: dict[str, np.ndarray], tmp_path: Path) -> dict[str, np.ndarray]:
    """What an exported model gives for some batches, in a process that imports JAX only."""
    np.savez(tmp_path / "given.npz", **given)
    arguments = [folder, tmp_path / "given.npz", tmp_path / "found.npz"]
    subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, arguments)],
        cwd=tmp_path,  # away from the clone, where the package could be imported
        check=True,
    )
    with np.load(tmp_path / "found.npz") as found:
        return dict(found)


def test_jax_alone_gives_the_models_own_probabilities(exported, undisturbed, tmp_path):
    given = {str(batch): pixels(batch, 8, 8) for batch in BATCHES}
    given["large"] = pixels(2, 20, 31)
    found = alone(exported, given, tmp_path)
    for batch in BATCHES:
        expected = own(undisturbed, given[str(batch)])
        np.testing.assert_allclose(found[str(batch)], expected, rtol=0, atol=1e-6)
    resized = np.stack([presets.area(image, 8, 1.0) for image in given["large"]])
    # One grey level of 255 here and there.
    np.testing.assert_allclose(found["large"], own(undisturbed, resized), rtol=0, atol=1e-4)


def check_file(folder: Path, model, size: int, tmp_path: Path) -> None:
    """Holds what was exported of a file against the model whose weights the file is."""
    brightness = np.array([0.2, 0.6, 1])[:, None, None, None]
    given = (pixels(3, size, size) * brightness).astype(np.uint8)
    logits = jax.jit(lambda x: model(model.normalize(x)))(given)
    expected = softmax(np.asarray(logits, np.float64), 1)
    assert np.ptp(expected) > 0.1
    found = alone(folder, {"given": given}, tmp_path)["given"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """An Xception of timm's, whose epsilon and padding are not ours, as a converted file."""
    folder = tmp_path_factory.mktemp("narrow")
    built = {"width": 0.05, "middle_blocks": 0, "bn_epsilon": 1e-5, "pool_padding": "symmetric"}
    model = builders.create("xception", 5, stem_stride=2, **built)
    source = pretrained.open_pretrained(builders.write_timm(model, folder / "timm.safetensors"))
    about = source.about("xception")
    # The command takes timm's own sizes only.
    about = replace(about, overrides=about.overrides | built)
    about.preprocessing.update(image_size=96)
    converted.write(folder / "ours.safetensors", about, source.tensors(model, "xception"))
    return model, folder / "ours.safetensors"


def test_a_converted_file_gives_the_models_own_probabilities(narrow, tmp_path):
    model, path = narrow
    flags = f"--input={path}", f"--output={tmp_path / 'out'}", "--platforms=cpu", "--json"
    about = result(finish("export", *flags))
    assert about["input"]["shape"] == ["batch", 96, 96, 3]
    assert about["output"]["activation"] == "softmax"
    assert about["classes"] == list("01234")
    assert about["source"]["model"] == "xception"
    assert about["source"]["of"]["file"] == "timm.safetensors"
    assert about["resize"] == {"by": "caller", "preset": "timm", "size": 96, "crop": 0.8975}
    assert (
        "(antialiased bicubic); the weights do not specify the crop, 0.8975 is a usual value"
        in (about["preprocessing"])
    )
    check_file(tmp_path / "out", model, 96, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "built"),
    [
        ("keras", "xception", {"stem_stride": 2}),
        ("timm", "inception_v3", {"stem_stride": 2, "bn_scale": True, "count_padding": True}),
        ("timm", "xception41p", {"stem_stride": 2, "bn_epsilon": 1e-5}),
    ],
)
def test_from_a_librarys_file_by_the_commands_to_jax_alone(kind, name, built, tmp_path):
    model = builders.create(name, 5, width=1.0, **built)
    ours = tmp_path / "ours.safetensors"
    theirs = tmp_path / {"keras": "theirs.weights.h5", "timm": "theirs.safetensors"}[kind]
    {"keras": builders.write_keras, "timm": builders.write_timm}[kind](model, theirs)
    flags = f"--from={kind}", f"--model={name}", f"--input={theirs}", f"--output={ours}", "--json"
    result(finish("convert", *flags))
    result(finish("export", f"--input={ours}", f"--output={tmp_path / 'out'}", "--json"))
    check_file(tmp_path / "out", model, 299, tmp_path)
    flags = f"--input={theirs}", f"--model={name}", f"--output={tmp_path / 'direct'}", "--json"
    about = result(finish("export", *flags, "--activation=softmax", "--platforms=cpu"))
    assert about["resize"]["preset"] == kind
    check_file(tmp_path / "direct", model, 299, tmp_path)


def single(path, kind, activation=None):
    """A converted file of a model of one class, from a file of a library."""
    built = {"width": 0.05, "middle_blocks": 0, "stem_stride": 1}
    about = converted.About(
        "xception", built, 1, None, {"image_size": 8, "eval_preset": "area"}, {"format": kind},
        activation,
    )  # fmt: skip
    converted.write(path, about, builders.arrays(builders.create("xception", 1, **built)))
    return f"--input={path}", f"--output={path.with_name('out')}", "--platforms=cpu", "--json"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("keras", "is from a Keras file without an activation"),
        ("timm", "softmax over one class is 1.0 for every image"),
    ],
)
def test_one_class_needs_an_activation(kind, said, tmp_path):
    process = finish("export", *single(tmp_path / "a.safetensors", kind))
    assert process.returncode == 2
    [line] = process.stderr.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()


def test_the_activation_of_a_converted_file_is_the_programs(tmp_path):
    told = result(finish("export", *single(tmp_path / "a.safetensors", "keras", "sigmoid")))
    assert told["output"]["activation"] == "sigmoid"


def test_a_file_that_cannot_be_exported_is_told_in_one_line(narrow, tmp_path):
    builders.write_timm(narrow[0], tmp_path / "timm.safetensors")
    of = {"format": "xception_jax", "of": {"format": "xception_jax", "step": 3}}
    made_for = {"image_size": 8, "eval_preset": "area"}
    for name, preprocessing, source in (("run", made_for, of), ("bare", {}, {})):
        about = converted.About("xception", {}, 5, None, preprocessing, source)
        converted.write(tmp_path / f"{name}.safetensors", about, {})
    files = set(tmp_path.iterdir())
    for file, said in (
        ("timm.safetensors", "--model is needed: "),
        ("run.safetensors", "give --activation=softmax or sigmoid"),
        ("bare.safetensors", "does not specify the images for its weights"),
    ):
        process = finish("export", f"--input={tmp_path / file}", f"--output={tmp_path / 'out'}")
        assert process.returncode == 2
        [line] = process.stderr.splitlines()
        assert said in line
    assert set(tmp_path.iterdir()) == files


def test_classify_gives_a_runs_own_probability(exported, undisturbed, digits, tmp_path):
    (tmp_path / "digit.png").write_bytes(digits["test"][0].encoded)
    large = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    Image.fromarray(large).save(tmp_path / "large.png")
    process = subprocess.run(
        [sys.executable, "-I", exported / "classify.py", "digit.png", "large.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    image = np.asarray(Image.open(tmp_path / "digit.png").convert("RGB"))
    given = np.stack([presets.area(picture, 8, 1.0) for picture in (image, large)])
    expected = own(undisturbed, given)
    lines = [line.split() for line in process.stdout.splitlines()]
    assert [file for file, _, _ in lines] == ["digit.png", "large.png"]
    for (_, name, probability), each, bound in zip(lines, expected, (2e-6, 1e-4), strict=True):
        assert name == run_of(undisturbed)[2][int(each.argmax())]
        assert float(probability) == pytest.approx(float(each.max()), abs=bound)


def test_what_it_says_of_itself(exported, undisturbed):
    program, about = serving.load(exported)
    assert about["input"] == {
        "shape": ["batch", "height", "width", 3], "dtype": "uint8", "channels": "RGB",
    }  # fmt: skip
    assert about["output"]["shape"] == ["batch", 10]
    assert about["platforms"] == list(program.platforms) == ["cpu", "cuda", "tpu"]
    assert about["jax"] == jax.__version__
    assert about["calling_convention"] == program.calling_convention_version
    assert about["classes"] == list(run_of(undisturbed)[2])
    assert about["source"]["weights"] == "ema"
    # Each platform has its own form of each operation, see `models.ops`.
    text = program.mlir_module()
    assert "stablehlo.case" in text
    assert "feature_group_count = 1" in text
    assert about["resize"] == {"by": "program", "preset": "area", "size": 8, "crop": 1.0}
    assert {path.name for path in exported.iterdir()} == set(FILES)
    assert (exported / "classify.py").read_text() == Path(classify.__file__).read_text()


def test_raw_weights_of_the_models_size_for_one_platform(undisturbed, tmp_path):
    flags = f"--workdir={undisturbed}", f"--output={tmp_path / 'raw'}", "--step=best", "--json"
    chosen = "--weights=raw", "--platforms=cpu", "--resize=outside"
    about = result(finish("export", *flags, *chosen))
    assert about["input"]["shape"] == ["batch", 8, 8, 3]
    assert about["platforms"] == ["cpu"]
    program, _ = serving.load(tmp_path / "raw")
    images = pixels(3, 8, 8)
    expected = own(undisturbed, images, "raw")
    np.testing.assert_allclose(jax.jit(program.call)(images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_that_are_sure(activation, undisturbed):
    """The run is short and unsure; its logits, made large, span the whole range."""
    graphdef, weights, _ = run_of(undisturbed)
    head = weights["params"]["head"]["classifier"]
    params = weights["params"] | {
        "head": {"classifier": {"kernel": head["kernel"] * 5e4, "bias": head["bias"]}}
    }
    weights = weights | {"params": params}
    program = serving.export(
        graphdef, weights, Images(8), activation=activation, platforms=("cpu",)
    )
    images = pixels(3, 8, 8)
    logits = np.asarray(logits_of(graphdef, weights, images), np.float64)
    expected = softmax(logits, 1) if activation == "softmax" else expit(logits)
    assert np.ptp(expected) > 0.5
    # What two programs round otherwise in such logits is more than a millionth of a probability,
    # and neither activation is steeper than a quarter.
    bound = 1e-6 * max(1, np.abs(logits).max() / 4)
    np.testing.assert_allclose(jax.jit(program.call)(images), expected, rtol=0, atol=bound)


def test_it_checks_an_export(exported):
    process = finish("export", f"--check={exported}")
    assert process.returncode == 0, process.stderr
    files, ran = process.stdout.splitlines()
    assert files == f"{exported}: 4 files are as they were written: {', '.join(FILES)}"
    assert re.fullmatch(
        r"the program runs on cpu: 2 pictures of 64 x 64 random pixels gave probabilities, their "
        r"sums differ from 1 by at most \d\.\de-\d\d \(0\.001 is allowed\)",
        ran,
    )


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_a_flipped_bit_is_found_and_named(copy):
    program = bytearray((copy / "model.bin").read_bytes())
    program[len(program) // 2] ^= 1
    (copy / "model.bin").write_bytes(program)
    with pytest.raises(RunError, match=r"copy/model\.bin is damaged"):
        serving.load(copy)
    (copy / "model.json").write_text("{")
    process = finish("export", f"--check={copy}")
    assert process.returncode == 1
    assert re.fullmatch(r"error: .*copy/model\.json is damaged: .*\n", process.stderr)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [("calling_convention", 10**6, "export again"), ("format", 5, "reads formats 1, 2, 3, 4")],
)
def test_a_program_of_another_age_is_refused(copy, field, value, complaint):
    about = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(seal.sealed({**about, field: value})))
    with pytest.raises(UsageError, match=complaint):
        serving.load(copy)


def damaged(folder: Path, check=serving.check) -> str | None:
    """What is said of an export in one line, None where nothing is; anything else is raised."""
    try:
        check(folder)
    except RunError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return str(error)
    return None


def test_no_flip_of_a_description_goes_unnoticed(copy):
    """Every byte, a bit of each in turn; and the class names reversed, as a hand would do it."""
    path = copy / "model.json"
    whole, about = path.read_bytes(), serving.load(copy)[1]
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        said = damaged(copy, folders.described)
        if said is None:  # a space between two fields that became another one
            assert json.loads(flipped) == about
            assert not bytes((whole[place], flipped[place])).strip()
        else:
            assert said.startswith(f"{path} is damaged: ")
    path.write_text(json.dumps({**about, "classes": about["classes"][::-1]}))
    assert damaged(copy) == f"{path} is damaged: is not what was sealed"


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_an_export_that_is_not_what_was_written_is_named(name, copy, tmp_path):
    path, whole = copy / name, (copy / name).read_bytes()
    other = tmp_path / "other"
    shape = jax.export.symbolic_shape("batch, height, width, 3")
    program = jax.export.export(jax.jit(lambda pixels: pixels[:, 0, 0, :2] / 255.0))(
        jax.ShapeDtypeStruct(shape, np.uint8)
    )
    serving.write(other, program, serving.describe(
        program, Images(8), activation="sigmoid", class_names=("a", "b"), source={}
    ))  # fmt: skip
    assert damaged(other) is None
    for data in (b"", whole[:-2], whole[: len(whole) // 2], whole + b"x", b"\0" + whole[1:]):
        path.write_bytes(data)
        said = damaged(copy)
        assert said is not None, data[-9:]
        assert said.startswith(f"{path} is damaged: ")
    path.write_bytes((other / name).read_bytes())
    said = damaged(copy)
    if name == "classify.py":  # every export has the same
        assert said is None
    else:
        assert said is not None, "a file of another export"
        assert "is damaged: " in said
    path.unlink()
    for made in (lambda: None, lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero")):
        path.unlink(missing_ok=True)
        made()
        assert damaged(copy) == f"{path} is damaged: it is missing, or not a file"
    process = finish("export", f"--check={copy}")
    assert process.returncode == 1
    assert process.stderr == f"error: {path} is damaged: it is missing, or not a file\n"


FIRST_FIELDS = (
    "source", "input", "output", "preprocessing", "platforms", "jax", "calling_convention",
    "classes", "program",
)  # fmt: skip


def of_format(number: int, folder: Path) -> dict:
    """Makes an export what format 1 or 2 had; returns what its description says."""
    now = json.loads((folder / "model.json").read_text())
    about = {"format": number} | {name: now[name] for name in FIRST_FIELDS}
    if number == 2:
        about = seal.sealed(
            {**about, **{name: now[name] for name in ("exif_orientation", "readme")}}
        )
    (folder / "classify.py").unlink()
    (folder / "model.json").write_text(json.dumps(about))
    return about


@pytest.fixture
def first_format(copy) -> dict:
    """An export as the first format had it, and what its description says."""
    return of_format(1, copy)


@pytest.mark.parametrize(("number", "files"), [(1, FILES[:2]), (2, FILES[:3])])
def test_exports_of_older_formats_are_read(number, files, copy):
    about = of_format(number, copy)
    assert serving.load(copy)[1] == about
    found = serving.check(copy)
    assert (list(found.files), found.platform) == (files, "cpu")
    assert found.largest_difference < 1e-6
    (copy / "README.md").write_text("another")
    assert (damaged(copy) is None) == (number == 1)  # which had no digest of it


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [(None, "classes", ["0"] * 9), (None, "classes", "0123456789"), (None, "format", True),
     (None, "format", []), (None, "platforms", ["cpu"]), (None, "calling_convention", 9),
     (None, "calling_convention", "x"), (None, "source", None), (None, "more", 1),
     ("input", "shape", ["batch", 8, 8, 3]), ("input", "dtype", ["uint8"]),
     ("output", "activation", "softmin"), ("output", "shape", []), ("output", "shape", None),
     ("program", "bytes", 3), ("program", "file", "../model.bin"), ("program", "sha256", 0)],
)  # fmt: skip
def test_what_the_first_format_cannot_say_is_noticed(copy, first_format, section, field, value):
    part = first_format[section] if section else first_format
    part[field] = value
    (copy / "model.json").write_text(json.dumps(first_format))
    said = damaged(copy, serving.load)
    assert said is not None
    assert "model.json is damaged: " in said or "model.bin is damaged: " in said


def test_a_folder_that_holds_something_is_left_alone(undisturbed, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    process = finish("export", f"--workdir={undisturbed}", f"--output={tmp_path / 'mine'}")
    assert process.returncode == 2
    assert re.fullmatch(r"error: --output=.*mine is not empty; .*\n", process.stderr)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_nothing_is_left_of_a_folder_that_cannot_be_made(exported, tmp_path):
    program, about = serving.load(exported)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        serving.write(tmp_path / "file" / "model", program, about)
    (tmp_path / "empty").mkdir()
    serving.write(tmp_path / "empty", program, about)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "empty"}


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ([], "--workdir and --output are needed"),
        (["--check=x", "--output=y"], "--check excludes --workdir"),
        (["--input=README.md", "--output=y", "--weights=raw"], "--weights are of a run, and"),
        (["--input=x", "--output=y", "--weights=raw"], "no weights at x"),
        (["--input=tests", "--output=y"], "no run in tests: it has no config.json"),
        (["--workdir=nowhere", "--output=y"], "no run in nowhere"),
        (["--check=nowhere"], "no exported model in nowhere"),
    ],
)
def test_bad_usage_is_told_in_one_line(flags, complaint):
    process = finish("export", *flags)
    assert process.returncode == 2
    assert complaint in process.stderr
    assert process.stderr.count("\n") == 1


def test_an_unknown_platform_is_refused(undisturbed, tmp_path):
    flags = f"--workdir={undisturbed}", f"--output={tmp_path / 'model'}"
    process = finish("export", *flags, "--platforms=cpu,cudda")
    assert process.returncode == 2
    assert "did you mean 'cuda'" in process.stderr
    assert not any(tmp_path.iterdir())


def test_what_only_the_host_can_do_is_refused():
    with pytest.raises(UsageError, match="--resize=outside"):
        serving.export(None, {}, Images(8, eval_preset="timm"))
