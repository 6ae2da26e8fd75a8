"""Paths that people name, on every command's line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT
from xception_jax.errors import UsageError
from xception_jax.training import preflight
from xception_jax.utils import paths

URLS = ["http://host/x", "https://host/x", "gs://bucket/x", "s3://bucket/x", "file:///tmp/x",
        "hf://x", "GS://bucket/x", "http:/x", "S3:/bucket", "abfs://c@a.dfs/x",
        "hdfs:/x"]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_no_path(url):
    with pytest.raises(UsageError, match=r"^--workdir=\S+: a URL is not a path here; "):
        paths.local("--workdir", url)
    with pytest.raises(UsageError, match="a URL is not a path"):
        paths.local("--workdir", Path(url))


def test_what_is_a_path_and_what_is_not(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.local("--x", "a/b:c/d") == Path("a/b:c/d")
    assert paths.local("--x", "./gs:/x") == Path("./gs:/x")
    for path in ("12:/x", "C:/x", "exp1:/data", "C:\\x", "a:b/c", "gs:x", "my.gs:/x", "x-http:/y"):
        assert paths.local("--x", path) == Path(path)
    with pytest.raises(UsageError, match="a URL is not a path"):
        paths.local("--x", "exp1://data")
    assert paths.local("--x", "~/runs") == Path("/home/me/runs")
    assert paths.local("--x", "gs://bucket/x", paths.BUCKETS) == Path("gs://bucket/x")
    for wrong in ("", "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(UsageError, match=r"^--x="):
            paths.local("--x", wrong)


# For each command: its flags without one, and the flags that are paths.
COMMANDS = {
    "xception_jax.main": (["--config=configs/digits.py"], ["workdir"]),
    "xception_jax.evaluate": ([], ["workdir", "input", "report"]),
    "xception_jax.export": ([], ["workdir", "input", "output", "check"]),
    "xception_jax.predict": (["x.png"], ["workdir", "input", "exported", "explain", "parquet"]),
    "xception_jax.finetune": (["x"], ["input", "workdir"]),
    "xception_jax.convert": (["--from=keras"], ["input", "output"]),
    "xception_jax.prepare": (["--dataset=mnist"], ["data_dir", "manual_dir"]),
    "xception_jax.plan": (["--config=configs/digits.py"], ["csv", "plot"]),
    "xception_jax.contact_sheet": (["--config=configs/digits.py"], ["output"]),
    "launch.slurm": (["--dry-run"], ["workdir"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_takes_a_url_for_a_folder(command, tmp_path):
    others, flags = COMMANDS[command]
    separate = ["--", "--config=x.py"] if command.startswith("launch") else []
    for flag in flags:
        done = subprocess.run(
            [sys.executable, "-m", command, *others, f"--{flag}=ftp://host/x", *separate],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stdout == ""
        [line] = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert f"--{flag}=ftp://host/x: a URL is not a path here; download it" in line
    assert not (ROOT / "ftp:").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("init_from", "ftp://host/x.h5"), ("compilation_cache", "gs://bucket/x"),
     ("data.data_dir", "http://host/x"), ("data.data_dir", "file:///data"),
     ("data.dataset", "folder:s3://bucket/x")],
)  # fmt: skip
def test_no_field_takes_a_url_for_a_folder(small_config, field, value):
    small_config.update_from_flattened_dict({field: value})
    with pytest.raises(UsageError, match="a URL is not a path here"):
        preflight.check_without_data(small_config, 1)


def test_data_may_lie_in_a_bucket(small_config):
    small_config.data.data_dir = "gs://bucket/data"
    preflight.check_without_data(small_config, 1)
