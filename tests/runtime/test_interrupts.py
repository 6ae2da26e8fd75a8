"""Ctrl-C on a real terminal, and SIGTERM, at moments when no handler is ready."""

import os
import signal
import sys
import time

import pytest

from tests.terminal import Terminal
from xception_jax.training.checkpoint.checkpoints import Checkpoints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

FIRST = "stopping after this step; Ctrl-C again to stop without saving"
WORKERS = {"data__workers": 2, "data__in_memory": 0, "duration": "5000 steps",
           "checkpoint__every": "5000 steps", "eval__every": "5000 steps"}  # fmt: skip


def assert_quiet(terminal: Terminal) -> None:
    """Nothing that only a programmer reads, and no process that goes on."""
    for word in ("Traceback", "Error", "Warning", "Exception", "leaked"):
        assert word not in terminal.said
    while alive := terminal.alive():  # those that tidy up when all others have ended
        assert terminal.process.pid not in alive
        time.sleep(0.05)


def test_ctrl_c_during_compilation_is_answered_and_a_second_one_ends_the_run(flags, tmp_path):
    env = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    with Terminal("main", *flags(tmp_path / "run"), env=env) as terminal:
        terminal.wait_until("compiling the training step")
        terminal.press_ctrl_c()
        terminal.wait_until(FIRST)
        terminal.press_ctrl_c()
        assert terminal.end() == 130
        assert "step 1/12" not in terminal.said, "it still compiled"
        assert terminal.said.count("stopped immediately, without saving") == 1
        assert "\x1b[?25h" in terminal.said.rpartition("stopped imm")[0], "the cursor is back"
        assert_quiet(terminal)


@pytest.mark.slow
def test_ctrl_c_with_worker_processes_saves_and_leaves_nothing_behind(flags, tmp_path):
    with Terminal("main", *flags(tmp_path / "run", **WORKERS)) as terminal:
        terminal.wait_until("step 3/5000")
        shared = terminal.shared_memory()
        assert len(terminal.alive()) >= 4, "the run, its workers and the tracker"
        assert any("psm_" in path.name for path in shared)
        terminal.press_ctrl_c()
        assert terminal.end() == 0
        assert FIRST in terminal.said
        assert "and saved; the same command continues" in terminal.said
        assert_quiet(terminal)
    assert not [path for path in shared if path.exists()]
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert len(checkpoints.steps()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_two_signals_end_the_workers_too(flags, tmp_path, number):
    with Terminal("main", *flags(tmp_path / "run", **WORKERS)) as terminal:
        terminal.wait_until("step 3/5000")
        shared = terminal.shared_memory()
        for text in ("stopping after this step", "without saving"):
            os.killpg(terminal.process.pid, number)
            terminal.wait_until(text)
        # The run may have been faster than the second signal.
        if terminal.end():
            assert terminal.process.returncode == 128 + number
        assert_quiet(terminal)
    assert not [path for path in shared if path.exists()]


@pytest.mark.slow
def test_workers_end_with_a_run_that_is_killed(flags, tmp_path):
    with Terminal("main", *flags(tmp_path / "run", **WORKERS)) as terminal:
        terminal.wait_until("step 3/5000")
        shared = terminal.shared_memory()
        terminal.process.kill()
        assert terminal.end() == -signal.SIGKILL
        assert_quiet(terminal)
    assert not [path for path in shared if path.exists()]


@pytest.mark.slow
def test_sigterm_to_all_processes_of_a_run_saves(flags, tmp_path):
    """As SLURM sends it: to the workers too."""
    with Terminal("main", *flags(tmp_path / "run", **WORKERS)) as terminal:
        terminal.wait_until("step 3/5000")
        os.killpg(terminal.process.pid, signal.SIGTERM)
        assert terminal.end() == 0
        assert "SIGTERM: stopping and saving after this step" in terminal.said
        assert_quiet(terminal)


COMMANDS = {
    "contact_sheet": ["--config=configs/digits.py", "--output={folder}/sheet.png"],
    "evaluate": ["--workdir={run}"],
    "export": ["--workdir={run}", "--output={folder}/exported"],
    "convert": ["--from=xception_jax", "--input={run}", "--output={folder}/w.safetensors"],
    "plan": ["--config=configs/digits.py"],
    "prepare": ["--dataset=mnist", "--data-dir={folder}/data"],
}


@pytest.mark.parametrize(
    ("module", "after_s"),
    [
        ("contact_sheet", 0),
        *(pytest.param(name, 0, marks=pytest.mark.slow) for name in [*COMMANDS][1:]),
        pytest.param("evaluate", 2, marks=pytest.mark.slow),
        *(
            pytest.param(name, 2, marks=[pytest.mark.slow, pytest.mark.long])
            for name in COMMANDS
            if name != "evaluate"
        ),
    ],
)
def test_every_command_ends_in_one_line_at_ctrl_c(request, tmp_path, module, after_s):
    arguments = COMMANDS[module]
    run = request.getfixturevalue("undisturbed") if "{run}" in str(arguments) else None
    given = [flag.format(run=run, folder=tmp_path) for flag in arguments]
    with Terminal(module, *given) as terminal:
        terminal.wait_for_native_code("numpy" if module == "prepare" else "jaxlib")
        time.sleep(after_s)
        terminal.press_ctrl_c()
        code = terminal.end()
        lines = [
            line for line in terminal.said.replace("^C", "").splitlines() if "interrupted" in line
        ]
        assert (code, len(lines)) == (130, 1) or (code == 0 and after_s), terminal.said
        assert_quiet(terminal)
