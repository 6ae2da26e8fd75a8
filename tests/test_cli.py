"""The commands from outside: help, bad input, and what they import."""

import itertools
import json
import os
import platform
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from tests.processes import ROOT, finish, run_code
from tests.runtime.test_cache import program
from xception_jax import config as config_lib
from xception_jax import train
from xception_jax.commands import cli
from xception_jax.errors import UsageError
from xception_jax.runtime import allocator

DIGITS = "--config=configs/digits.py"


COMMANDS = {
    "main": ["--workdir", "--[no]keep_freed_memory"],
    "evaluate": ["--workdir", "--[no]keep_freed_memory"],
    "plan": ["--topology", "--fit", "--sweep"],
    "prepare": ["--dataset"],
    "convert": ["--from", "--to"],
    "export": ["--input", "--check"],
    "contact_sheet": ["--output"],
    "models": ["--model", "--[no]json"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_waits_for_no_heavy_import(command):
    code = (
        f"import sys; sys.argv = [{command!r}, '--help']\n"
        "import runpy\n"
        f"try: runpy.run_module('xception_jax.{command}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: print('code:', end.code)\n"
        "print('heavy:', {'jax', 'flax', 'grain', 'tensorflow_datasets'} & set(sys.modules))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.splitlines()[-2:] == ["code: 0", "heavy: set()"]
    assert f"python -m xception_jax.{command} --" in out.stdout
    for flag in COMMANDS[command]:
        assert flag in out.stdout


def test_the_table_of_models_waits_for_no_heavy_import():
    code = (
        "import sys; sys.argv = ['models', '--json']\n"
        "import runpy\n"
        "try: runpy.run_module('xception_jax.models', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code\n"
        "print({'jax', 'flax'} & set(sys.modules))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    table, heavy = out.stdout.splitlines()
    assert len(json.loads(table)["models"]) == 8
    assert heavy == "set()"


@pytest.mark.slow
def test_training_and_evaluation_import_no_tensorflow(small_config, tmp_path):
    code = (
        "train.train(given, folder)\n"
        "evaluate.evaluate(folder)\n"
        "print('tensorflow' in sys.modules)\n"
    )
    small_config.duration = "1 step"
    out = run_code(code, small_config, tmp_path / "run")
    assert out.stdout.splitlines()[-1] == "False"


def test_all_fields_are_listed():
    process = finish("main", "--list_fields")
    assert process.returncode == 0
    assert all(f"  {name} = " in process.stdout for name in config_lib.SCHEMA)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config and --workdir are needed"),
        ([DIGITS, "--workdir={folder}", "--config.data.batchsize=3"],
         "config has no field 'data.batchsize'; did you mean 'data.batch_size'?"),
        ([DIGITS, "--workdir={folder}", "--config.data.batch_size=many"], "data.batch_size"),
        ([DIGITS, "--workdir={folder}", "--config.data.batch_size=63"],
         "config.data.batch_size is 63, not divisible by the 8 devices; use 56 or 64"),
        ([DIGITS, "--workdir={folder}", "--config.data.dataset=optical_digit"],
         "no data set 'optical_digit'"),
        ([DIGITS, "--workdir={folder}/file"], "/file is a file; give a folder"),
        ([DIGITS, "--workdir={folder}/file/run"], "/file/run cannot be created: Not a directory"),
        ([DIGITS, "--workdri={folder}"], "Unknown command line flag 'workdri'"),
        ([DIGITS, "--workdir={folder}", "leftover"], "unexpected argument 'leftover'"),
        (["--config=nowhere.py", "--workdir={folder}"], "nowhere.py"),
        (["--config={folder}/broken.py", "--workdir={folder}"], "broken.py:4: "),
        (["--config={folder}/lacking.py", "--workdir={folder}"],
         "lacking.py:1: No module named 'nowhere_at_all'"),
        (["--config={folder}/file", "--workdir={folder}"], "error: "),
        ([DIGITS, "--workdir={folder}", "--config.data.image_size=3"],
         "config.data.image_size is 3; the model takes at least 5"),
        (["--config=configs/imagenet.py", "--workdir={folder}"],
         "imagenet2012 is not prepared in"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, flags, message):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "broken.py").write_text(
        "from xception_jax import config\n"
        "def get_config():\n"
        "    c = config.default()\n"
        "    c.optimizer.learning_rte = 0.1\n"
        "    return c\n"
    )
    (tmp_path / "lacking.py").write_text("import nowhere_at_all\n")
    before = sorted(tmp_path.iterdir())
    process = finish("main", *(flag.format(folder=tmp_path) for flag in flags))
    assert process.returncode == 2
    assert process.stdout == ""
    [line] = process.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert sorted(tmp_path.iterdir()) == before, "nothing was written"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--workdir is needed"),
        (["--workdir={folder}"], "no run in"),
        (["--workdir={folder}", "--weights=best"], "weights"),
        (["--workdir={folder}", "--batch_size=-1"], "batch_size"),
    ],
)
def test_bad_input_of_evaluate(tmp_path, flags, message):
    process = finish("evaluate", *(flag.format(folder=tmp_path) for flag in flags))
    assert process.returncode == 2
    [line] = process.stderr.splitlines()
    assert message in line


# An ASCII locale, out of which Python does not help itself.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_names_are_told_where_the_locale_has_no_letters_for_them():
    code = (
        "import sys\n"
        "from xception_jax.utils import console\n"
        "from xception_jax.commands import cli\n"
        "def main():\n"
        "    drawn = console.table('h\\u00e9risson', ('', ''), [('a', 'b\\u2026')])\n"
        "    console.make_console().print(drawn)\n"
        "    raise cli.UsageError('no h\\u00e9risson')\n"
        "cli.run(sys.modules[__name__])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, env=os.environ | ASCII
    )
    assert done.returncode == 2
    assert rb"h\xe9risson" in done.stdout
    assert done.stderr == b"error: no h\\xe9risson\n"


@pytest.mark.slow
@pytest.mark.long  # it trains for it; what names become there is above
def test_a_class_with_an_accent_is_exported_under_an_ascii_locale(small_config, tmp_path):
    for split, name in itertools.product(("train", "test"), ("chat", "h\u00e9risson")):
        for i in range(8):
            path = tmp_path / "data" / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(path)
    small_config.data.dataset, small_config.data.batch_size = f"folder:{tmp_path / 'data'}", 8
    small_config.duration = "1 step"
    train.train(small_config, tmp_path / "run")
    for command in (
        [
            "export",
            f"--workdir={tmp_path / 'run'}",
            f"--output={tmp_path / 'out'}",
            "--platforms=cpu",
        ],
        ["export", f"--check={tmp_path / 'out'}"],
    ):
        process = finish(*command, env=os.environ | ASCII)
        assert process.returncode == 0, process.stderr
    about = json.loads((tmp_path / "out" / "model.json").read_text(encoding="utf-8"))
    assert about["classes"] == ["chat", "h\u00e9risson"]


@pytest.fixture
def jax_options(monkeypatch):
    """What the options of JAX are set to, and no environment that says otherwise."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(platform, "node", lambda: "host-7")
    set_to = {}
    monkeypatch.setattr(jax.config, "update", set_to.__setitem__)
    return set_to


@pytest.mark.parametrize(
    ("asked", "kept"),
    [("", "cache/xception_jax/compiled/host-7"), ("{folder}/other", "other/host-7")],
)
def test_compiled_programs_are_kept_for_each_host(jax_options, monkeypatch, tmp_path, asked, kept):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cli.keep_compiled(asked.format(folder=tmp_path))
    assert jax_options == {"jax_compilation_cache_dir": str(tmp_path / kept)}
    assert (tmp_path / kept).stat().st_mode & 0o777 == 0o700


def test_programs_of_any_host_go_where_they_take_too_much(jax_options, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hosts = tmp_path / "xception_jax" / "compiled"
    old = program(hosts / "host-6", "old", 1e9, size=4_000_000_000)
    new = program(hosts / "host-7", "new", 2e9, size=4_000_000_000)
    hosts.parent.chmod(0o700)
    cli.keep_compiled()
    assert (old.exists(), new.exists()) == (False, True)


def test_compiled_programs_are_not_kept_or_where_the_environment_says(jax_options, monkeypatch):
    cli.keep_compiled("none")
    assert jax_options == {"jax_enable_compilation_cache": False}
    jax_options.clear()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "there")
    cli.keep_compiled("here")
    assert not jax_options, "JAX reads JAX_COMPILATION_CACHE_DIR itself"


def test_no_program_comes_from_a_folder_that_others_can_write_to(
    jax_options, monkeypatch, tmp_path, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    cli.keep_compiled()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("NOTE: compiled programs are not kept: ")
    assert f"others can write to {tmp_path}/cache; chmod go-w" in line
    assert "XDG_CACHE_HOME=FOLDER" in line
    assert "--config.compilation_cache=FOLDER" in line
    with pytest.raises(UsageError, match=r"^config\.compilation_cache: .* others can write to"):
        cli.keep_compiled(str(tmp_path / "cache" / "mine"))
    assert not jax_options


@pytest.mark.parametrize(("flag", "calls"), [("", 1), ("--nokeep_freed_memory", 0)])
def test_freed_memory_is_kept_on_cpu_unless_told_otherwise(flag, calls, monkeypatch):
    kept = []
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: kept.append(True))
    with flagsaver.flagsaver():
        flags.FLAGS(["main", "--nodistributed", *filter(None, [flag])])
        cli.settle()
    assert len(kept) == calls
