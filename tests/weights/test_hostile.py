"""Hostile files end the command with one line, exit code 2, in bounded time and memory."""

import json
import os
import subprocess
import sys

import pytest

from tests.weights import hostile
from xception_jax import config as config_lib
from xception_jax.errors import UsageError
from xception_jax.weights import initial


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
    assert line.isprintable()
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
        initial.resolve(config)
