"""Every file of a checkpoint damaged in every way: detected, or the damaged part is never read."""

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.checkpoint.test_checkpoints import (
    META,
    assert_equal,
    make_state,
    save_all,
    target,
)
from xception_jax.training.checkpoint.checkpoints import Checkpoints

# Files whose damage has no effect on the restored state and may go unnoticed: they are never read,
# or Orbax only looks for the layout there. docs/architecture.md names them too.
WITHOUT_EFFECT = re.compile(
    r"_CHECKPOINT_METADATA|(.*/)?commit_success\.txt|.*/(_sharding|_METADATA|array_metadatas/\w+)"
    # The first of two writes: its place is taken by what all processes wrote, merged.
    r"|.*/ocdbt\.process_0/(manifest\.ocdbt|d/\w+)"
)


def flip(path: Path, older: Path) -> None:
    """One random bit."""
    data = bytearray(path.read_bytes())
    draw = random.Random(path.name)
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def flip_another(path: Path, older: Path) -> None:
    """The lowest bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path, older: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path, older: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path, older: Path) -> None:
    path.unlink()


def swap(path: Path, older: Path) -> None:
    """With another step's; array data has another name there, so one of about its size is taken."""
    size = path.stat().st_size
    beside = [older] if older.exists() else [p for p in older.parent.iterdir() if p.is_file()]
    shutil.copy(min(beside, key=lambda p: abs(p.stat().st_size - size)), path)


def pipe(path: Path, older: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path, older: Path) -> None:
    path.unlink()
    path.mkdir()


def same(path: Path, other: Path) -> bool:
    return path.is_file() and path.read_bytes() == other.read_bytes()


def files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_all(folder, [1, 2], top1={1: 0.25, 2: 0.5})
    return folder / "checkpoints"


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        *(flip, delete, swap),
        *(
            pytest.param(f, marks=[pytest.mark.slow, pytest.mark.long])
            for f in (flip_another, truncate, empty, pipe, folder)
        ),
    ],
)
def test_every_file_of_a_checkpoint(saved, tmp_path, damage: Callable[[Path, Path], None]):
    unnoticed, wrong = [], []
    for number, name in enumerate(files(saved / "2")):
        run = tmp_path / str(number)
        shutil.copytree(saved, run / "checkpoints")
        damage(run / "checkpoints" / "2" / name, run / "checkpoints" / "1" / name)
        if same(run / "checkpoints" / "2" / name, saved / "2" / name):
            continue  # swapped with its equal
        with Checkpoints(run, keep=5) as checkpoints:
            state, meta, notes = checkpoints.restore_newest(target())
            assert_equal(state, make_state(meta.step))
            assert (meta.dataset, meta.class_names) == (META.dataset, META.class_names)
            assert meta.metrics == {"top1": meta.step / 4, "loss": meta.step / 100}
            if meta.step == 2:
                unnoticed.append(str(name))
            elif not (len(notes) == 1 and "checkpoint 2 " in notes[0]):
                wrong.append((name, notes))
            checkpoints.save(make_state(3), META.at(3))
            checkpoints.wait()
            assert checkpoints.steps() == ([1, 2, 3] if meta.step == 2 else [1, 3])
        shutil.rmtree(run)
    assert not wrong
    if damage is pipe:
        assert not unnoticed
    assert not [name for name in unnoticed if not WITHOUT_EFFECT.fullmatch(name)]
