"""A contender works in its own turn only, and nothing of it outlives the measurement."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.contenders import ROOT, ContenderError, Peer, Worker, start_worker
from benchmarks.peers import worker as peer_end
from benchmarks.turns import take_turns

# A turn is 0.3 seconds of the processor's; a thread and a child of 128 MiB never rest.
_RESTLESS = """
import multiprocessing, os, threading, time

def burn():
    while True:
        pass

def burn_with_memory():
    held = b"x" * 2**27
    burn()

def build(work):
    multiprocessing.get_context("fork").Process(target=burn_with_memory, daemon=True).start()
    threading.Thread(target=burn, daemon=True).start()

    def run(steps):
        until = time.process_time() + 0.3 * steps
        while time.process_time() < until:
            pass

    return run

def facts(work):
    return {"group": os.getpid()}
"""
_REQUEST = {"kind": "input", "side": 1, "batch": 1, "seconds": 0}


def members(group: int) -> dict[int, float]:
    """The processes of a group that have not ended, and the seconds of a processor each spent."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            ticks = int(fields[11]) + int(fields[12])
            found[int(path.parent.name)] = ticks / os.sysconf("SC_CLK_TCK")
    return found


def spent(group: int) -> float:
    return sum(members(group).values())


def assert_gone(group: int) -> None:
    until = time.monotonic() + 30  # a signal takes its time
    while members(group) and time.monotonic() < until:
        time.sleep(0.01)
    assert not members(group)


@pytest.fixture
def restless(tmp_path):
    """Starts a contender that does not rest; gives it and the number of its process group."""
    (tmp_path / "restless.py").write_text(_RESTLESS)
    peer = Peer("restless", environment={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    workers = []

    def start() -> tuple[Worker, int]:
        worker, said = start_worker("restless", peer, Path(sys.executable), "cpu", _REQUEST)
        workers.append(worker)
        return worker, said["group"]

    yield start
    for worker in workers:
        worker.close()


@pytest.mark.slow
def test_it_works_in_its_own_turn_only_and_leaves_nothing(restless):
    (one, group), (other, others) = restless(), restless()
    assert len(members(group)) >= 2, "the child is of the group"
    for _ in range(2):
        before = spent(group)
        other.ask({})
        assert spent(group) - before < 0.1, "in the other's turn"
        turn = one.ask({})
        assert spent(group) - before >= 0.3
        assert turn["wall"] > 0
        # At least the processor's 0.3 seconds, less a tick of the child's.
        assert turn["cpu"] > 0.25
        assert turn["memory_mib"] > 128, "the child's is counted"
    one.close()
    assert_gone(group)
    assert members(others)
    other.close()
    assert_gone(others)


@pytest.mark.slow
def test_one_that_dies_while_it_is_stopped(restless):
    worker, group = restless()
    os.kill(group, signal.SIGKILL)  # the worker alone, not its child
    with pytest.raises(ContenderError, match="restless: stopped with exit code -9"):
        worker.ask({})
    assert_gone(group)


@pytest.mark.slow
def test_an_interrupt_ends_them_all(restless):
    groups = []

    def start() -> tuple[Worker, dict[str, Any]]:
        worker, group = restless()
        groups.append(group)
        return worker, {"compile_seconds": 0.0, "steps": 1}

    def interrupt() -> tuple[Worker, dict[str, Any]]:
        os.killpg(groups[0], signal.SIGCONT)  # as if the first had its turn
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_turns({"one": start, "other": interrupt}, 1, "cpu")
    assert_gone(*groups)


def test_what_lay_ready_does_not_shorten_a_turn(monkeypatch):
    now, ready = 0.0, 3

    def run(steps: int) -> None:
        nonlocal now, ready
        now += max(0, steps - ready)
        ready = max(0, ready - steps)

    clocks = SimpleNamespace(perf_counter=lambda: now, process_time=lambda: now)
    monkeypatch.setattr(peer_end, "time", clocks)
    assert peer_end._warm_up(run, 10) == 1
