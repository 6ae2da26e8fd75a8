"""The commands with weights by name, from a server on loopback."""

import inspect
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from tests.conftest import make_small_config
from tests.processes import ROOT, command
from tests.weights.remote import server
from tests.weights.remote.server import Hub, Repository
from xception_jax import config as config_lib
from xception_jax import models
from xception_jax.weights import converted, pretrained, remote
from xception_jax.weights.tensors import abstract, to_library, variables

pytest.importorskip("huggingface_hub", reason="is not installed: '.[hub]'")

CARD = b"---\nlicense: mit\n---\n"


@pytest.fixture
def hub():
    with server.serving() as hub:
        yield hub


def start(hub: Hub, folder: Path, name: str, *arguments: str, **environment: str):
    own = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(folder / "hf"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return subprocess.run(
        command(name, *arguments), cwd=ROOT, env={**os.environ, **own, **environment},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def timm_files(folder: Path) -> dict[str, bytes]:
    """A repository as timm lays it out: a network of three classes, all weights 0.01."""
    model = abstract("xception41", 3, {})
    shapes = {name: variable.get_value().shape for name, variable in variables(model).items()}
    tensors = {name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()}
    save_file(to_library(pretrained.tensor_map("timm", model), tensors), folder / "model")
    config = {
        "architecture": "xception41", "num_classes": 3, "label_names": ["ant", "bee", "cat"],
        "pretrained_cfg": {"input_size": [3, 96, 96], "crop_pct": 0.9, "mean": [0.5] * 3,
                           "std": [0.5] * 3, "interpolation": "bicubic", "license": "mit"},
    }  # fmt: skip
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": (folder / "model").read_bytes(),
        "README.md": CARD,
    }


@pytest.mark.slow
def test_a_repository_says_what_it_is(hub, tmp_path):
    """Model, classes, size, crop and license; no flag names them."""
    hub.repositories["me/net"] = Repository(timm_files(tmp_path))
    output = tmp_path / "net.safetensors"
    flags = ["--from=timm", "--input=hf:me/net", f"--output={output}"]
    done = start(hub, tmp_path, "convert", *flags)
    assert done.returncode == 0, done.stderr
    about = pretrained.open_pretrained(output)
    assert (about.model, about.class_names) == ("xception41", ("ant", "bee", "cat"))
    stated = {"image_size": 96, "eval_preset": "timm", "eval_crop": 0.9}
    assert {key: about.preprocessing[key] for key in stated} == stated
    origin = about.origin.get("of", about.origin)
    assert (origin["name"], origin["license"]) == ("hf:me/net", "mit")
    Image.fromarray(np.zeros((120, 100, 3), np.uint8)).save(tmp_path / "0.png")
    flags = ["--input=hf:me/net", "--json", str(tmp_path / "0.png")]
    asked = start(hub, tmp_path, "predict", *flags)
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)["top"]
    assert {each["class"] for each in found} == {"ant", "bee", "cat"}
    # All weights of the head are equal, and so are the classes.
    assert [each["probability"] for each in found] == pytest.approx([1 / 3] * 3, abs=1e-6)


@pytest.mark.slow
def test_training_starts_from_an_address(hub, tmp_path):
    """The source is told and kept; a run that has begun needs no network."""
    config = make_small_config()
    config.duration = "2 steps"
    overrides = {k: v for k, v in config_lib.model_overrides(config).items() if v is not None}
    model = models.create("xception", num_classes=10, rngs=nnx.Rngs(7), **overrides)
    about = converted.About("xception", pretrained.effective("xception", overrides), 10)
    tensors = {name: np.asarray(variable[...]) for name, variable in variables(model).items()}
    converted.write(tmp_path / "net.safetensors", about, tensors)
    content = (tmp_path / "net.safetensors").read_bytes()
    hub.repositories["a/b"] = Repository({"net.safetensors": content})
    digest = server.sha256(content)
    address = f"{hub.address}/a/b/cdn/main/net.safetensors"
    shown, name = (f"{address}{query}#sha256={digest}" for query in ("", "?token=hidden"))
    run = tmp_path / "run"
    flags = [
        "--config=tests/default_config.py", f"--workdir={run}",
        *(f"--config.{key}={value}" for key, value in changes(config).items()),
    ]  # fmt: skip
    done = start(hub, tmp_path, "train", *flags, f"--config.init_from={name}")
    assert done.returncode == 0, done.stderr
    assert f"starts from {shown}" in done.stdout
    assert "hidden" not in done.stdout + done.stderr
    assert f"sha256 {digest}" in done.stdout
    kept = json.loads((run / "init_from.json").read_text())
    assert kept["init_from"] == kept["name"] == shown
    assert kept["sha256"] == digest
    hub.repositories.clear()
    (tmp_path / "cache").rename(tmp_path / "gone")
    again = start(hub, tmp_path, "train", *flags, f"--config.init_from={name}")
    assert again.returncode == 0, again.stderr
    other = start(hub, tmp_path, "train", *flags, f"--config.init_from={name}",
                  f"--workdir={tmp_path / 'other'}")  # fmt: skip
    assert other.returncode == 1
    [line] = other.stderr.splitlines()
    assert "answers 401" in line
    assert not (tmp_path / "other").exists()


def changes(config) -> dict[str, object]:
    """The fields in which the small config differs from the defaults."""
    flat, default = config_lib.flatten(config), config_lib.flatten(config_lib.default())
    return {key: value for key, value in flat.items() if value != default[key]}


def test_every_name_of_keras_is_listed():
    listed = {
        found["download"] for name in models.names() for found in models.describe(name)["published"]
    }
    assert {name for name in listed if name and name.startswith("keras:")} == set(
        remote.addresses.KERAS
    )
    assert {"hf:timm/xception65.ra3_in1k", "hf:timm/xception41p.ra3_in1k"} <= listed


@pytest.mark.slow
def test_addresses_and_hashes_are_those_of_keras():
    pytest.importorskip("keras")
    from keras.src.applications import inception_v3, xception

    for module, name in ((xception, "keras:xception"), (inception_v3, "keras:inception_v3")):
        url, md5 = remote.addresses.KERAS[name]
        assert url == module.WEIGHTS_PATH
        hashes = re.findall('file_hash="([0-9a-f]+)"', inspect.getsource(module))
        assert md5 == hashes[0]
