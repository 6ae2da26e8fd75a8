"""Signals to a training in this process; tests/runtime/test_interrupts.py: to commands."""

import os
import signal
import threading
import time

import pytest

from xception_jax.training import signals


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_once_and_all_is_as_it_was_afterwards(number, capfd):
    before = handlers()
    with signals.stop_requested() as stop_requested:
        assert not stop_requested()
        os.kill(os.getpid(), number)
        while not stop_requested():
            pass
    assert handlers() == before
    [line] = capfd.readouterr().err.splitlines()
    assert "after this step" in line
    assert signal.set_wakeup_fd(-1) == -1
    assert not [thread for thread in threading.enumerate() if thread.name == "interrupts"]


def test_a_second_signal_to_another_program_is_its_keyboard_interrupt(capfd):
    """Of a notebook, which lives on; and its own processes do."""
    before = handlers()
    with pytest.raises(KeyboardInterrupt), signals.stop_requested() as stop_requested:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        while not stop_requested():
            pass
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    assert handlers() == before
    [line] = capfd.readouterr().err.splitlines()
    assert "stopping after this step" in line


def test_outside_the_main_thread_signals_are_left_to_the_program_and_that_is_said_once(capfd):
    before, asked = handlers(), []

    def train():
        with signals.stop_requested() as stop_requested:
            asked.append((stop_requested(), stop_requested(), handlers() == before))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert asked == [(False, False, True)]
    [line] = capfd.readouterr().err.splitlines()
    assert "not in the main thread" in line
