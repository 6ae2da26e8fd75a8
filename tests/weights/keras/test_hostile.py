"""Hostile Keras files end the command with one line, exit code 2, in bounded time and memory."""

import json
import subprocess
import sys

import pytest

from tests.weights.keras import hostile as hostile_keras


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of every file: by case, see `campaign`."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = {}
    for name, make in hostile_keras.CASES.items():
        (folder / name).mkdir()
        paths[name] = make(folder / name)
    command = [sys.executable, "-m", "tests.weights.campaign", *map(str, paths.values())]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = map(json.loads, process.stdout.splitlines())
    return dict(zip(paths, found, strict=True))


@pytest.mark.slow
def test_a_file_of_nothing_hostile_converts(tmp_path):
    path = tmp_path / "a.weights.h5"
    path.write_bytes(hostile_keras.valid())
    command = [sys.executable, "-m", "tests.weights.campaign", str(path)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(process.stdout.splitlines()[-1])  # the command prints before it
    assert (found["said"], found["written"]) == ("", ["out.safetensors"])


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile_keras.CASES)
def test_it_is_one_line_in_bounded_time_and_memory(name, outcomes):
    found = outcomes[name]
    assert found["code"] == 2, found
    [line] = found["said"].splitlines()
    assert line.startswith("error: ")
    assert found["path"] in line
    assert line.isprintable()
    assert len(line) < 700
    assert found["written"] == []
    assert found["seconds"] < 10
    assert found["megabytes"] < 2000
