"""What a run does not train: stored once, in every checkpoint's restore, and its damage told."""

import dataclasses
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.processes import ROOT, digests, finish, result, several, signal_at
from tests.training.checkpoint.test_checkpoints import META, assert_equal
from tests.training.checkpoint.test_damage import WITHOUT_EFFECT, files, flip, pipe, truncate
from xception_jax.training import sharding
from xception_jax.training.checkpoint.checkpoints import Checkpoints
from xception_jax.training.checkpoint.frozen_part import DamagedFrozenPartError
from xception_jax.training.state import TrainState, partition

FROZEN = ("stem", "flow.0")
HEAD = dataclasses.replace(META, frozen=FROZEN)


def make_state(step: int, *, devices: int = 1, seed: float = 0.0) -> TrainState:
    """A head that changes from step to step, behind a network that does not, all of its own."""

    def make():
        params = {
            "stem": {"kernel": jnp.arange(4096.0) + seed},
            "flow": {0: {"scale": jnp.ones(3)}, 10: {"scale": jnp.full(3, 2.0 + step)}},
            "stem_2": jnp.zeros(2) + step,
            "head": {"kernel": jnp.arange(64.0) * step},
        }
        stats = {"stem": {"mean": jnp.full(5, 0.5)}, "flow": {0: {"mean": jnp.full(3, 0.25)}}}
        averaged = jax.tree.map(lambda leaf: leaf / 2, {"params": params, "batch_stats": stats})
        optimizer = optax.adam(1e-3).init(partition(params, FROZEN))
        return TrainState(jnp.asarray(step, jnp.int32), params, stats, optimizer, averaged)

    return jax.jit(make, out_shardings=sharding.replicated(sharding.make_mesh(devices)))()


def target(devices: int = 1) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        make_state(0, devices=devices),
    )


def save(workdir: Path, *steps: int, meta=HEAD, keep: int = 10, seed: float = 0.0) -> None:
    with Checkpoints(workdir, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(make_state(step, seed=seed), meta.at(step))


def restored(workdir: Path, devices: int = 1) -> tuple[TrainState, list[str]]:
    with Checkpoints(workdir) as checkpoints:
        state, _, notes = checkpoints.restore_newest(target(devices))
    return state, notes


def frozen_folder(workdir: Path) -> Path:
    [folder] = (workdir / "checkpoints" / "frozen").iterdir()
    return folder


def test_what_is_frozen_is_stored_once_and_the_rest_each_time(tmp_path):
    save(tmp_path, 1, 2, 3)
    stored = [*frozen_folder(tmp_path).iterdir()]
    assert {path.name for path in stored if path.is_dir()} == {"params", "batch_stats", "ema"}
    for step in (1, 2, 3):
        names = {path.name for path in (tmp_path / "checkpoints" / str(step)).iterdir()}
        assert {"params", "opt_state", "ema"} < names
        assert "batch_stats" not in names, "all of it is frozen"
        assert {*digests(tmp_path, step)} == {"params", "batch_stats", "opt_state", "ema"}
    graphdef = (tmp_path / "checkpoints" / "2" / "params" / "_METADATA").read_text()
    assert "stem_2" in graphdef
    assert "'10', 'scale'" in graphdef, "no part of flow.1"


@pytest.mark.parametrize("devices", [1, 8])
def test_a_restored_state_has_every_leaf(tmp_path, devices):
    save(tmp_path, 1, 2)
    state, notes = restored(tmp_path, devices)
    assert notes == []
    assert_equal(state, make_state(2))
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {devices}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        [weights] = checkpoints.restore(1, {"ema": target().ema})[0].values()
    assert_equal(weights, make_state(1).ema)


def test_a_run_with_whole_checkpoints_goes_on(tmp_path):
    """Those of older versions, which may be the best ones, and are kept."""
    save(tmp_path, 1, meta=META)
    assert "frozen" not in (tmp_path / "checkpoints/1/meta/metadata").read_text()
    state, _ = restored(tmp_path)
    assert_equal(state, make_state(1))
    save(tmp_path, 2)
    assert_equal(restored(tmp_path)[0], make_state(2))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert_equal(checkpoints.restore(1, {"params": target().params})[0]["params"], state.params)


def test_damage_of_a_step_leads_to_the_one_before(tmp_path):
    save(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "checkpoints/2/params")
    state, [note] = restored(tmp_path)
    assert_equal(state, make_state(1))
    assert "checkpoint 2" in note


def test_another_frozen_part_takes_the_place_of_one_that_no_step_needs(tmp_path):
    """As after a kill before the first step was saved, and a new start."""
    save(tmp_path, 1)
    first = frozen_folder(tmp_path)
    (first.parent / "0123456789abcdef.orbax-checkpoint-tmp").mkdir()
    save(tmp_path, 2, seed=1.0)
    assert {first} < {*first.parent.iterdir()}, "step 1 needs it"
    assert len([*first.parent.iterdir()]) == 2
    shutil.rmtree(tmp_path / "checkpoints/1")
    shutil.rmtree(tmp_path / "checkpoints/2")
    save(tmp_path, 3, seed=2.0)
    assert frozen_folder(tmp_path) != first


def missing(path: Path, _: Path) -> None:
    """A whole item, or all of the part."""
    shutil.rmtree(path.parents[1] if path.parent.name == "d" else path.parent)


@pytest.mark.parametrize(
    "damage",
    [
        missing,
        pytest.param(flip, marks=pytest.mark.slow),
        *(pytest.param(f, marks=[pytest.mark.slow, pytest.mark.long]) for f in (truncate, pipe)),
    ],
)
def test_damage_is_told_and_moves_no_step(tmp_path, damage):
    save(tmp_path / "run", 1, 2)
    folder, unnoticed = frozen_folder(tmp_path / "run"), []
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    # The absence of a few of them says as much as that of all.
    for name in files(whole)[:: 4 if damage is missing else 1]:
        damage(folder / name, folder / name)
        try:
            state, _ = restored(tmp_path / "run")
        except DamagedFrozenPartError as error:
            message = str(error)
            assert message.startswith(f"the frozen part {folder} ")
            assert message.endswith("restore a copy of that folder, or start a new run")
        else:
            assert_equal(state, make_state(2))
            unnoticed.append(str(name))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        assert not (tmp_path / "run" / "damaged").exists()
    assert_equal(restored(tmp_path / "run")[0], make_state(2))
    assert damage is not pipe or not unnoticed
    assert not [name for name in unnoticed if not WITHOUT_EFFECT.fullmatch(name)]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.training.checkpoint.test_frozen_part import save
from xception_jax.training.checkpoint import frozen_part

moment = sys.argv[2]
def kill(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "between":
    frozen_part._sync = kill
else:
    rename = os.rename
    def renamed(source, *others, **options):
        if "frozen" in str(source):
            kill()
        rename(source, *others, **options)
    os.rename = os.replace = renamed
save(Path(sys.argv[1]), 1)
"""


@pytest.mark.parametrize("moment", ["within", "between"])
def test_a_kill_before_the_first_step_is_saved_loses_nothing(tmp_path, moment):
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path, moment], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = frozen_folder(tmp_path)
    assert bool(re.fullmatch("[0-9a-f]{16}", left.name)) == (moment == "between")
    assert restored(tmp_path) == (None, [])
    for path in left.rglob("*"):  # as a crash of the machine may leave it
        if path.is_file():
            path.write_bytes(b"")
    save(tmp_path, 1)
    assert (frozen_folder(tmp_path) == left) == (moment == "between")
    assert_equal(restored(tmp_path)[0], make_state(1))


def test_a_frozen_part_that_goes_while_the_run_goes_on_is_written_again(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints/frozen/.DS_Store").write_text("of a system")
    with Checkpoints(tmp_path, keep=10) as checkpoints:
        checkpoints.restore_newest(target())
        shutil.rmtree(next((tmp_path / "checkpoints/frozen").glob("????????????????")))
        checkpoints.save(make_state(2), HEAD.at(2))
    assert_equal(restored(tmp_path)[0], make_state(2))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_run_that_trains_its_head_alone(flags, tmp_path):
    """Killed and continued: the bits of one that was not, and next to nothing to save."""
    given = {"model__freeze": "exit_flow", "model__width": 0.5, "duration": "6 steps"}
    steady, killed = tmp_path / "steady", tmp_path / "killed"
    trained = result(finish("main", *flags(steady, **given), "--json"))
    code, _ = signal_at(3, signal.SIGKILL, "main", *flags(killed, **given))
    assert code == -signal.SIGKILL
    assert result(finish("main", *flags(killed, **given), "--json")) == trained
    assert digests(killed, 6) == digests(steady, 6)
    step, frozen = (size(steady / "checkpoints" / name) for name in ("6", "frozen"))
    assert step < frozen / 20, (step, frozen)
    first, last = digests(steady, 2), digests(steady, 6)
    changed = {name for name in first["params"] if first["params"][name] != last["params"][name]}
    assert changed == {name for name in last["params"] if name.startswith("head.")}
    evaluated = result(finish("evaluate", f"--workdir={steady}", "--json"))
    assert evaluated["top1"] == trained["top1"]
    shutil.rmtree(steady / "checkpoints" / "frozen")
    failed = finish("evaluate", f"--workdir={steady}")
    assert failed.returncode == 1
    assert "error: the frozen part " in failed.stderr.splitlines()[-1]


@pytest.mark.slow
def test_several_processes_write_a_frozen_part_and_tell_its_damage(flags, tmp_path):
    given = flags(tmp_path / "run", mesh__data=-1, model__freeze="entry_flow")
    with several(2, 1, tmp_path / "two", "main", *given) as run:
        run.wait_until("step 5/12")
        run.processes[1].send_signal(signal.SIGTERM)
        assert run.codes() == [0, 0], run.said(0)
    folder = frozen_folder(tmp_path / "run")
    shutil.rmtree(folder / "params")
    with several(2, 1, tmp_path / "damaged", "main", *given) as run:
        assert run.codes() == [1, 1], run.said(0)
    for process in (0, 1):
        [line] = [one for one in run.said(process).splitlines() if one.startswith("error: ")]
        assert f"the frozen part {folder} " in line
