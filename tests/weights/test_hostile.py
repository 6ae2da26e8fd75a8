"""Hostile files end the command with one line, exit code 2, in bounded time and memory."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.weights import hostile, pickled
from xception_jax import config as config_lib
from xception_jax.errors import UsageError
from xception_jax.utils import text
from xception_jax.weights import converted, initial, pretrained


def run(names, folder):
    """What becomes of the files of some cases, see `campaign`."""
    paths = {}
    for name in names:
        (folder / name).mkdir()
        paths[name] = hostile.CASES[name](folder / name)
    command = [sys.executable, "-m", "tests.weights.campaign", *map(str, paths.values())]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(names, map(json.loads, process.stdout.splitlines()), strict=True))


def check(name, found):
    assert found["code"] == 2, found
    [line] = found["said"].splitlines()
    assert line.startswith("error: ")
    assert found["path"] in line or f"{name}/config.json" in line
    assert line == text.printable(line)
    assert "weights_only" not in line
    assert len(line) < 700
    assert found["written"] == []  # neither the output nor what the file would run
    assert found["seconds"] < 10
    assert found["megabytes"] < 2000


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    names = [name for name in hostile.CASES if name not in hostile.SLOW]
    return run(names, tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("name", [name for name in hostile.CASES if name not in hostile.SLOW])
def test_it_is_one_line_in_bounded_time_and_memory(name, outcomes):
    check(name, outcomes[name])


@pytest.mark.slow
def test_those_that_take_seconds(tmp_path):
    for name, found in run(sorted(hostile.SLOW), tmp_path).items():
        check(name, found)


def test_a_run_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    config = config_lib.default()
    config.init_from = str(tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"a.pth is a named pipe"):
        initial.resolve_with_weights(config)


ARRAYS = {
    "fc.bias": np.arange(3, dtype=np.float32),
    "fc.weight": np.arange(6, dtype=np.float32).reshape(3, 2),
}


def _ours(path):
    preprocessing = {"range": [-1, 1], "mean": [0.5] * 3, "image_size": 299}
    about = converted.About("xception", {"width": 0.5, "fc_units": ()}, 3, ("a", "b", "c"),
                            preprocessing, {"format": "timm", "file": "x"})  # fmt: skip
    converted.write(path, about, ARRAYS)


WHOLE = {
    "zip.pth": lambda path: pickled.zipped(path, *pickled.state(ARRAYS)),
    "legacy.pth": lambda path: pickled.legacy(path, *pickled.state(ARRAYS, (None,))),
    "timm.safetensors": lambda path: save_file(ARRAYS, path),
    "ours.safetensors": _ours,
}


def _read(path):
    try:
        source = pretrained.open_pretrained(path)
        found = {key: np.asarray(array) for key, array in source.read().items()}
        source.about("legacy_xception" if source.format == "timm" else "xception")
    except UsageError as error:
        return None, str(error)
    return found, ""


@pytest.mark.parametrize("name", WHOLE)
def test_a_mutated_file_is_read_or_refused(name, tmp_path):
    """Bits flipped, bytes replaced, ends cut off; where there is a checksum, none is read wrong."""
    path, rng = tmp_path / name, np.random.default_rng(0)
    WHOLE[name](path)
    whole, read = path.read_bytes(), 0
    for i in range(200):
        data = bytearray(whole)
        place = rng.integers(len(data))
        if i % 3 == 0:
            data[place] ^= 1 << rng.integers(8)
        elif i % 3 == 1:
            data[place : place + rng.integers(9)] = rng.bytes(rng.integers(9))
        else:
            del data[place:]
        path.write_bytes(data)
        found, said = _read(path)
        if found is None:
            assert said == text.printable(said)
            assert name in said
            continue
        read += 1
        if name in ("zip.pth", "ours.safetensors"):
            assert found.keys() == ARRAYS.keys()
            assert all(np.array_equal(found[key], ARRAYS[key]) for key in ARRAYS)
    assert read < 100
