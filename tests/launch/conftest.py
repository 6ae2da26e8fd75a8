"""A checkout to launch from, and the clouds that are not there."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.cloud import Cloud, git
from tests.processes import ROOT


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A clone to launch from; what runs the tests may have come without its .git."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("launch", "xception_jax", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, root)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "x")
    return root


@pytest.fixture
def cloud(tmp_path, checkout) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path, checkout)
    yield cloud
    for state in tmp_path.glob("machines/*/xception_jax/state.json"):
        found = json.loads(state.read_text())
        if found["state"] == "running":  # a test that failed left it
            os.kill(found["supervisor"], signal.SIGKILL)
            os.kill(found["pid"], signal.SIGKILL)
