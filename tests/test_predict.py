"""Predictions: the same as evaluation's, in the order of the input, of whatever names a picture."""

import io
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import make_small_config
from tests.processes import ROOT, command
from tests.weights.remote import server
from xception_jax import evaluate, export, train
from xception_jax.data import imagenet, pictures, readers
from xception_jax.data.batches import Reader
from xception_jax.data.render.decode import Images
from xception_jax.errors import ExampleError, UsageError
from xception_jax.predict import Classifier
from xception_jax.serving import inference, parquet, resize
from xception_jax.training import sharding, step


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of 12 steps on the digits at 8x8."""
    folder = tmp_path_factory.mktemp("predict") / "run"
    train.train(make_small_config(), folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """The first 40 test digits as files, named by their place."""
    folder = tmp_path_factory.mktemp("photos")
    source = readers.open_split("optical_digits", "test")
    for i in range(40):
        (folder / f"{i}.png").write_bytes(source[i].encoded)
    return folder


def files(folder: Path) -> list[str]:
    return [str(folder / f"{i}.png") for i in range(40)]


def test_logits_are_those_of_evaluation(run, photos):
    """Bit for bit at the same batch on the same devices; in other batches to rounding."""
    model = inference.of_run(run)
    layout = sharding.Layout.replicated(sharding.make_mesh())
    [batch] = Reader(pictures.source(files(photos)), model.images).evaluation_batches(batch_size=40)
    applied = jax.jit(
        lambda weights, pixels: step.apply(model.graphdef, weights, pixels)[0],
        in_shardings=(layout.weights, sharding.by_example(layout.mesh)),
    )
    expected = np.asarray(applied(jax.device_put(model.weights, layout.weights), batch["image"]))
    found = Classifier(run, batch_size=40).predict(files(photos))
    np.testing.assert_array_equal(np.stack([each.logits for each in found]), expected)
    others = Classifier(run, batch_size=16).predict(files(photos))
    for each, row in zip(others, expected.astype(np.float64), strict=True):
        np.testing.assert_allclose(each.logits, row, rtol=0, atol=2e-5)
        shares = np.exp(row) / np.exp(row).sum()
        np.testing.assert_allclose(each.probabilities, shares, atol=1e-5)
        assert each.top(1)[0][0] == str(row.argmax())


def test_counts_are_those_of_evaluate(run):
    source = readers.open_split("optical_digits", "test")
    arrays = [cv2.imdecode(np.frombuffer(source[i].encoded, np.uint8), 1) for i in range(360)]
    labels = [source[i].label for i in range(360)]
    found = Classifier(run).predict(arrays)
    right = sum(each.top(1)[0][0] == str(label) for each, label in zip(found, labels, strict=True))
    loss = -np.mean(
        [np.log(each.probabilities[label]) for each, label in zip(found, labels, strict=True)]
    )
    told = evaluate.evaluate(run)
    assert right / 360 == pytest.approx(told.metrics["top1"])
    assert loss == pytest.approx(told.metrics["loss"], abs=1e-5)


def test_an_export_answers_as_the_run(run, photos, tmp_path):
    """Whichever of the two resizes."""
    expected = np.stack([each.probabilities for each in Classifier(run).predict(files(photos))])
    for by in ("inside", "outside"):
        export.export_run(run, tmp_path / by, platforms=("cpu",), resize=by)
        found = Classifier(tmp_path / by).predict(files(photos))
        np.testing.assert_allclose([each.probabilities for each in found], expected, atol=1e-5)
        assert found[0].class_names == tuple("0123456789")
        assert found[0].logits.size == 0


@pytest.mark.parametrize("crop", [0.875, 0.9, 0.94, 0.3, 1.0])
@pytest.mark.parametrize("size", [8, 96, 299])
def test_padding_undoes_the_crop_of_a_program(crop, size):
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    side = resize.side_before(size, crop)
    before = (side - size) // 2
    padded = np.pad(image, ((0, 0), *[(before, side - size - before)] * 2, (0, 0)))
    np.testing.assert_array_equal(resize.area(padded, size, crop), image)


def test_arrays_pillow_images_and_files_are_the_same(run, photos):
    names = files(photos)[:3]
    opened = [Image.open(name).convert("RGB") for name in names]
    forms = [names, [Path(name) for name in names], opened, [np.asarray(image) for image in opened]]
    classifier = Classifier(run, features=True)
    found = [[each.logits for each in classifier.predict(form)] for form in forms]
    for others in found[1:]:
        np.testing.assert_array_equal(others, found[0])
    assert classifier.predict(opened)[2].name == "image 2"
    assert classifier.predict([]) == []
    features = np.stack([each.features for each in classifier.predict(names)])
    weights = inference.of_run(run).weights["params"]["head"]["classifier"]
    logits = features @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])
    np.testing.assert_allclose(logits, found[0], atol=1e-4)


def test_flip_is_the_mean_of_both(run, photos):
    names = files(photos)[:8]
    mirrored = [np.asarray(Image.open(name).convert("RGB"))[:, ::-1] for name in names]
    both = [Classifier(run).predict(form) for form in (names, mirrored)]
    expected = [(a.probabilities + b.probabilities) / 2 for a, b in zip(*both, strict=True)]
    found = [each.probabilities for each in Classifier(run, flip=True).predict(names)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_cannot_be_used_is_told_in_its_place(run, photos, tmp_path):
    """Of an array the shape, of a file the reason; an address that nobody answers too."""
    (tmp_path / "bad.png").write_bytes(b"no image" * 9)
    with server.serving() as hub:
        content = (photos / "0.png").read_bytes()
        hub.repositories["a/b"] = server.Repository({"0.png": content})
        address = f"{hub.address}/a/b/cdn/main/0.png"
        given = [
            str(photos / "0.png"), str(tmp_path / "bad.png"), str(tmp_path / "none.png"),
            np.zeros((8, 8), np.uint8), address, f"{address}x", "http://127.0.0.1:9/x.png",
        ]  # fmt: skip
        found = Classifier(run).predict(given)
    errors = [each.error for each in found]
    assert [bool(error) for error in errors] == [False, True, True, True, False, True, True]
    np.testing.assert_array_equal(found[4].logits, found[0].logits)
    for error, part in zip(errors, ["", "not an image", "No such file", "uint8 [8, 8]", "", "404",
                                    "Connection refused"], strict=True):  # fmt: skip
        assert part in error
        assert "\n" not in error
    assert found[1].top(3) == []


@pytest.mark.parametrize(
    "address", ["http://h/a b.jpg", "http://h:99x/a.jpg", "http://[::1/a.jpg", "http:///a.jpg"]
)
def test_a_malformed_address_is_a_bad_picture(address):
    with pytest.raises(ExampleError, match="cannot be read"):
        pictures.source([address])[0]


def test_a_server_that_speaks_no_http_is_a_bad_picture():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            connection.recv(1000)
            connection.sendall(b"220 mail.example.org\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ExampleError, match="cannot be read"):
            pictures.source([f"http://127.0.0.1:{listening.getsockname()[1]}/a.jpg"])[0]
        thread.join()


def test_a_pillow_image_is_turned_as_its_file_is():
    """By its EXIF orientation, unless the model's images are not."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # turned to the right
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    for turned in (True, False):
        opened = Image.open(io.BytesIO(buffer.getvalue()))
        reader = Reader(pictures.source([opened], exif=turned), Images(8, exif=turned))
        expected = np.rot90(pixels, -1) if turned else pixels
        np.testing.assert_array_equal(reader.decoded(reader.source[0]), expected)
    deep = Image.fromarray(np.full((4, 4), 30000, np.uint16))
    with pytest.raises(ExampleError, match="mode I;16 has no range"):
        pictures.source([deep])[0]
    with pytest.raises(ExampleError, match="is no image"):
        pictures.source([np.zeros((0, 5, 3), np.uint8)])[0]


def test_options_that_do_not_apply_are_refused(run):
    for options, told in (
        ({"model": "xception"}, "knows its model"),
        ({"activation": "relu"}, "no activation 'relu'"),
        ({"weights": "raw", "source": "README.md"}, "are of a run"),
    ):
        with pytest.raises(UsageError, match=told):
            Classifier(**{"source": run, **options})


def test_names_stand_for_pictures_in_order(tmp_path):
    for name in ("a/2.png", "a/10.png", "a/b/1.jpg", "a/.hidden.png", "a/notes.txt", "c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "list.csv").write_text("id,file\n1,a/10.png\n2,\n3,https://example.org/x.jpg\n")
    inside = [str(tmp_path / name) for name in ("a/2.png", "a/10.png", "a/b/1.jpg")]

    def find(*names: str, **options) -> list[str]:
        return pictures.find([str(tmp_path / name) for name in names], **options)

    assert find("c.webp", "a") == [str(tmp_path / "c.webp"), *inside]
    assert find("a/*.png") == inside[:2]
    assert find("**/*.jpg") == inside[2:]
    assert find("list.csv", column="file") == [inside[1], "https://example.org/x.jpg"]
    listed = io.StringIO("x.jpg\n\n  y z.png \n")
    assert pictures.find(["-"], listed=listed) == ["x.jpg", "  y z.png "]
    (tmp_path / "empty").mkdir()
    for name, told in (
        ("none.png", "no file"),
        ("*.tif", "no file matches"),
        ("empty", "no image"),
    ):
        with pytest.raises(UsageError, match=told):
            find(name)
    with pytest.raises(UsageError, match="no column 'path'; it has: id, file"):
        find("list.csv", column="path")


def test_the_names_of_imagenet():
    """As timm's and Keras' weights order them."""
    names = imagenet.class_names()
    assert len(set(names)) == imagenet.CLASSES
    assert (names[0], names[999], names[281]) == ("tench", "toilet tissue", "tabby")
    assert list(imagenet.synsets()) == sorted(imagenet.synsets())
    assert imagenet.readable(tuple(imagenet.synsets())) == names
    assert imagenet.readable(("n01440764", "cat")) == ("n01440764", "cat")


def ask(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("predict", *arguments), cwd=ROOT, input=stdin, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def test_the_command(run, photos, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image" * 9)
    names = [*files(photos)[:2], str(tmp_path / "bad.png"), files(photos)[2]]
    done = ask("-", f"--workdir={run}", "--json", "--top=2", "--strict", stdin="\n".join(names))
    assert done.returncode == 1
    told = done.stderr.splitlines()
    assert told[0].startswith(f"skipped: {names[2]}")
    assert told[-1] == "1 of 4 pictures cannot be used"
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["name"] for answer in answers] == names
    assert "error" in answers[2]
    expected = Classifier(run).predict(names)
    for answer, each in zip(answers, expected, strict=True):
        if not each.error:
            assert [(top["class"], pytest.approx(top["probability"], abs=1e-5))
                    for top in answer["top"]] == each.top(2)  # fmt: skip
    table = ask(f"--workdir={run}", names[0], "--csv", "--top=1")
    assert table.returncode == 0
    header, row = table.stdout.splitlines()
    assert header == "name,class1,probability1"
    assert row.startswith(f"{names[0]},{expected[0].top(1)[0][0]},0.")


def test_answers_go_to_a_file_while_a_terminal_shows_the_progress(run, photos, tmp_path):
    """Though rich draws a bar on standard error. A name of two lines is one line."""
    odd = tmp_path / "x.png\nforged.png: 7 99.9%"
    odd.write_bytes((photos / "0.png").read_bytes())
    controller, terminal = os.openpty()
    with (tmp_path / "answers").open("wb") as answers:
        done = subprocess.run(
            command("predict", f"--workdir={run}", "--top=1", "--json", *files(photos)[:3]),
            cwd=ROOT, stdout=answers, stderr=terminal, check=False,
        )  # fmt: skip
    os.close(terminal)
    os.close(controller)
    assert done.returncode == 0
    assert len((tmp_path / "answers").read_text().splitlines()) == 3
    plain = ask(f"--workdir={run}", "--top=1", str(odd))
    assert len(plain.stdout.splitlines()) == 1


def test_a_file_of_all_probabilities(run, photos, tmp_path):
    """Read by pandas' own engine; a file that is not complete has no name."""
    (tmp_path / "bad.png").write_bytes(b"no image")
    path, names = tmp_path / "answers.parquet", [*files(photos)[:3], str(tmp_path / "bad.png")]
    done = ask(f"--workdir={run}", f"--parquet={path}", "--features", *names)
    assert (done.returncode, done.stdout) == (0, "")
    table = pytest.importorskip("pyarrow.parquet").read_table(path)
    assert json.loads(table.schema.metadata[b"class_names"]) == list("0123456789")
    rows = table.to_pylist()
    assert [row["name"] for row in rows] == names
    expected = Classifier(run, features=True).predict(names)
    for row, each in zip(rows[:3], expected, strict=False):
        assert (row["class"], row["error"]) == (each.top(1)[0][0], None)
        np.testing.assert_allclose(row["probabilities"], each.probabilities, atol=1e-5)
        np.testing.assert_allclose(row["features"], each.features, atol=1e-4)
        assert row["probability"] == max(row["probabilities"])
    assert rows[3]["probabilities"] is None
    assert "not an image" in rows[3]["error"]

    def interrupted() -> None:
        with parquet.writing(path, "ab") as write:
            write(expected[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes()[:4] == b"PAR1"
    assert [left.name for left in tmp_path.glob("*.parquet*")] == [path.name]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "one of --workdir, --input and --exported"),
        (["--workdir=nowhere"], "name a picture"),
        (["--exported=docs", "README.md"], "has no model.json"),
        (["--workdir=README.md", "README.md"], "is no folder of a run"),
        (["--workdir=nowhere", "README.md", "--json", "--csv"], "only one can be written"),
        (["--workdir=docs", "README.md", "--features"], "give --parquet=FILE"),
        (["--workdir=docs", "README.md", "--parquet=none/x"], "is in no folder that exists"),
        (["--workdir=docs", "none.png"], "there is no file none.png"),
        (["--workdir=docs", "-"], "the list on standard input is empty"),
        (["--workdir=nowhere", "README.md"], "nowhere"),
        (["--workdir=docs", "README.md"], "docs"),
        (["--input=README.md", "README.md"], "is not a weights file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_usage_is_one_line(arguments, told):
    done = ask(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("write", ["print", "console.make_console().print"])
def test_a_reader_that_has_enough_ends_it_quietly(write):
    """As `| head -1`; 141 is what a shell shows of a program that SIGPIPE has ended."""
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS.replace("WRITE", write)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "a line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


ENDLESS = """
import types
from xception_jax.commands import cli
from xception_jax.utils import console
def main():
    write = WRITE
    while True:
        write("a line")
cli.run(types.SimpleNamespace(main=main, __doc__="", __name__="endless"))
"""


def test_a_prediction_does_not_wait_for_what_it_does_not_use():
    code = "import json, sys, xception_jax.predict; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    unused = {"tensorflow_datasets", "scipy.special", "xception_jax.training.telemetry.log"}
    assert not unused & set(json.loads(done.stdout))
