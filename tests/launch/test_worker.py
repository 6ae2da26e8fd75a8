"""What runs on the machines, and the archive that it comes in."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import source, worker
from tests.launch.cloud import git
from tests.processes import ROOT


def run_worker(home: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, worker.__file__, *words],
        env={**os.environ, "XCEPTION_JAX_HOME": str(home)},
        capture_output=True, text=True, timeout=30, check=False, **more,
    )  # fmt: skip


def test_a_run_whose_machine_was_restarted_is_known_to_be_lost(tmp_path):
    assert json.loads(run_worker(tmp_path, "state").stdout) == {"state": "none"}
    (tmp_path / "state.json").write_text(json.dumps({"state": "running", "pid": 1}))
    assert json.loads(run_worker(tmp_path, "state").stdout)["state"] == "lost"
    end = json.loads(run_worker(tmp_path, "follow", "0").stdout)["end"]
    assert end["state"] == "lost"


def test_a_start_without_an_installation_fails_and_says_why(tmp_path):
    done = run_worker(tmp_path, "start", "code.tar.gz", str(tmp_path / "logs"), "--", "--config=c")
    assert done.returncode == 1
    assert "training could not be started: " in done.stderr
    assert "No such file or directory" in done.stderr


@pytest.mark.parametrize(
    ("code", "sends", "expected"),
    [(0, False, 0), (3, False, 3), (0, True, 75), (3, True, 3), ("kill", True, 137)],
)
def test_a_container_that_was_stopped_does_not_count_as_done(code, sends, expected, tmp_path):
    end = "os.kill(os.getpid(), signal.SIGKILL)" if code == "kill" else f"sys.exit({code})"
    program = (
        "import os, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: {end})\n"
        "print('up', flush=True)\n"
        f"time.sleep({60 if sends else 0}); {end}\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "launch.worker", "container", "--", sys.executable, "-c", program],
        cwd=ROOT, env={**os.environ, "XCEPTION_JAX_HOME": str(tmp_path)},
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        if sends:
            process.terminate()
    assert process.returncode == expected


def test_the_worker_needs_no_newer_python_than_the_images_have_and_no_package():
    tree = ast.parse(Path(worker.__file__).read_text(), feature_version=(3, 10))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported <= sys.stdlib_module_names


def test_the_archive_holds_what_git_does_not_ignore(tmp_path):
    git(tmp_path, "init", "-q")
    for name in ("kept", "changed", "deleted"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("ignored\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    clean = source.pack(tmp_path)
    assert clean.changed == 0
    assert source.pack(tmp_path).packed == clean.packed
    (tmp_path / "changed").write_text("other")
    (tmp_path / "deleted").unlink()
    for name in ("new é", "ignored"):
        (tmp_path / name).write_text("")
    dirty = source.pack(tmp_path)
    assert dirty.changed == 3
    assert dirty.digest != clean.digest
    packed = tmp_path / "x.tar"
    packed.write_bytes(dirty.packed)
    listed = subprocess.run(
        ["tar", "-xOf", str(packed), "changed"], capture_output=True, text=True, check=True
    )
    assert listed.stdout == "other"
    names = subprocess.run(
        ["tar", "--quoting-style=literal", "-tf", str(packed)], capture_output=True, check=True
    )
    assert names.stdout.decode().split("\n")[:-1] == [".gitignore", "changed", "kept", "new é"]
