"""The commands by their names, the recipes by theirs, and the library that they stand on."""

import json
import os
import subprocess
import sys

import pytest

from tests.processes import ROOT, run_code
from xception_jax import commands, recipes
from xception_jax import config as config_lib
from xception_jax.errors import UsageError


def said(*words: str, cwd=ROOT) -> subprocess.CompletedProcess[str]:
    """What a Python program prints, which finds the package wherever it runs."""
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_without_a_name_all_commands_are_listed():
    listed = said("-m", "xception_jax")
    assert listed.returncode == 0
    lines = listed.stdout.splitlines()[-len(commands.NAMES) :]
    assert [line.split()[0] for line in lines] == [*commands.NAMES]
    assert all(len(line.split()) > 3 for line in lines), "each says what it does"
    present = {path.stem for path in (ROOT / "xception_jax/commands").glob("*.py")}
    assert present - {"__init__", "cli"} == {*commands.NAMES}


@pytest.mark.parametrize("name", commands.NAMES)
def test_a_command_has_two_names_and_one_help(name):
    by_module, by_name = (
        said("-m", f"xception_jax.{name}", "--help"),
        said("-m", "xception_jax", name.replace("_", "-"), "--help"),
    )
    assert by_module.returncode == by_name.returncode == 0, by_module.stderr + by_name.stderr
    assert by_module.stdout == by_name.stdout
    assert f"python -m xception_jax.{'main' if name == 'train' else name}" in by_name.stdout
    assert f"xception_jax.commands.{name}:\n" in by_name.stdout, "its own flags"


def test_a_command_that_is_not_there_is_told():
    refused = said("-m", "xception_jax", "evalaute")
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert line.startswith("error: no command 'evalaute'; did you mean 'evaluate'?")
    assert (
        "error: no command 'what'; There are: train," in said("-m", "xception_jax", "what").stderr
    )


def test_the_program_finds_a_users_own_modules(tmp_path):
    """As `python -m` does: the folder of the program itself is another one."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "xception"
    program.write_text("from xception_jax import commands\ncommands.console()\n")
    (tmp_path / "near.py").write_text("BATCH = 0\n")
    (tmp_path / "mine.py").write_text(
        "import near\nfrom xception_jax import recipes\n\n\ndef get_config():\n"
        "    config = recipes.load(name='digits')\n"
        "    config.data.batch_size = near.BATCH\n    return config\n"
    )
    refused = said(str(program), "train", "--config=mine.py", "--workdir=run", cwd=tmp_path)
    [line] = refused.stderr.splitlines()
    assert "config.data.batch_size is 0" in line
    assert "mine.py:7 sets data.batch_size" in line


def test_a_file_beside_a_run_stands_for_no_module_of_a_library(tmp_path):
    """The folder may be a stranger's."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "xception"
    program.write_text("from xception_jax import commands\ncommands.console()\n")
    for name in ("absl", "ml_collections", "fractions"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')\n")
    done = said(str(program), "evaluate", "--workdir=.", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "error: no run in .: it has no config.json\n",
    )


def test_worker_processes_do_not_import_what_was_started():
    code = (
        "import sys, __main__\n"
        "from multiprocessing import spawn\n"
        "from xception_jax import commands\n"
        "__main__.__file__ = '/train.py'\n"
        "sys.argv = ['train', '--help']\n"
        "try:\n"
        "    commands.run('train')\n"
        "except SystemExit:\n"
        "    print([name for name in spawn.get_preparation_data('w') if 'main' in name])\n"
    )
    assert said("-c", code).stdout.endswith("\n[]\n")


def test_help_waits_for_no_jax():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['evaluate', '--help']\n"
        "try:\n"
        "    runpy.run_module('xception_jax.evaluate', run_name='__main__')\n"
        "except SystemExit:\n"
        "    assert 'jax' not in sys.modules\n"
        "    print('ended')\n"
    )
    assert said("-c", code).stdout.endswith("ended\n")


def test_the_package_gives_its_modules_when_they_are_asked_for():
    code = (
        "import sys, xception_jax\n"
        "assert 'jax' not in sys.modules\n"
        "assert {'train', 'evaluate', 'models'} < {*dir(xception_jax)}\n"
        "print(xception_jax.evaluate.evaluate, xception_jax.train.train, xception_jax.export,\n"
        "      *(getattr(xception_jax, name) for name in xception_jax.__all__))\n"
        "try:\n"
        "    xception_jax.what\n"
        "except AttributeError as error:\n"
        "    print(error)\n"
    )
    told = said("-c", code)
    assert told.stdout.endswith("module 'xception_jax' has no attribute 'what'\n"), told.stderr


@pytest.mark.slow
def test_a_program_uses_the_library_several_times(small_config, tmp_path):
    """Each function with its typed result; the second time with another config, in a thread."""
    small_config.duration = "2 steps"
    code = """
import dataclasses, threading
from concurrent.futures import ThreadPoolExecutor
from xception_jax import convert, export

def study(name, **changes):
    given.update_from_flattened_dict(changes)
    run, out, file = (folder / f"{name}{end}" for end in ("", "_exported", ".safetensors"))
    trained = train.train(given, run)
    assert (trained.workdir, trained.step, trained.total_steps) == (run, 2, 2)
    assert trained.finished
    found = evaluate.evaluate(run, step="best", say=print)
    assert (found.workdir, found.step, found.split) == (run, 2, "test")
    assert found.metrics["top1"] == trained.metrics["top1"], (found, trained)
    exported = export.export_run(run, out, platforms=["cpu"])
    assert (exported.folder, exported.platforms) == (out, ("cpu",))
    assert exported.class_names == tuple("0123456789")
    checked = export.check(exported.folder)
    assert (checked.platform, checked.files[:2]) == ("cpu", ("model.json", "model.bin"))
    assert (checked.tolerance is None) == (exported.activation == "sigmoid")
    converted = convert.convert(run, file, source_format="xception_jax")
    assert (converted.output, converted.num_classes, converted.notes) == (file, 10, ())
    for one in (trained, found, exported, checked, converted):
        json.dumps(one.to_json(), allow_nan=False)
        try:
            one.step = 3
            raise SystemExit("a result can be changed")
        except dataclasses.FrozenInstanceError:
            pass
    return found.weights, exported.activation, threading.current_thread().name

changes = {"ema.decay": 0.0, "loss.name": "sigmoid", "seed": 1,
           "model.name": "legacy_xception"}
with ThreadPoolExecutor(1, "sweep") as pool:
    print(json.dumps([study("one"), pool.submit(study, "two", **changes).result()]))
"""
    told = run_code(code, small_config, tmp_path).stdout.splitlines()[-1]
    one, two = json.loads(told)
    assert one == ["ema", "softmax", "MainThread"]
    assert two == ["raw", "sigmoid", "sweep_0"]


def test_a_recipe_is_found_by_its_name_from_anywhere(tmp_path):
    words = "-m", "xception_jax.main", "--workdir=run"
    for given in ("--config=digits", "--config=digits:what"):
        refused = said(*words, given, "--config.data.batch_size=0", cwd=tmp_path)
        assert refused.returncode == 2
        [line] = refused.stderr.splitlines()
        assert ("data.batch_size" in line) == (given == "--config=digits"), line
    refused = said(*words, "--config", "digit", cwd=tmp_path)
    assert "no recipe 'digit'; did you mean 'digits'?" in refused.stderr
    refused = said(*words, "--config=configs/digits.py", cwd=tmp_path)
    assert "--config=digits takes the recipe of that name" in refused.stderr
    assert os.listdir(tmp_path) == []


def test_every_config_is_a_recipe():
    assert recipes.names() == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    for name in recipes.names():
        config_lib.check_fields(recipes.load(name))
    assert recipes.load("experiments", "residual/without").model.residual != (
        recipes.load("experiments", "residual/with").model.residual
    )
    with pytest.raises(UsageError, match=r"no recipe 'imagenett'; did you mean 'imagenet'\?"):
        recipes.load("imagenett")
