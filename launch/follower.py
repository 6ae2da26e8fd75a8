"""Shows the log of a run on several machines live, until all of them have ended."""

import dataclasses
import json
import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

from launch.commands import CommandError, Commands, failure, missing
from launch.fleet import Fleet, remote, say
from xception_jax.utils.text import printable

End = dict[str, Any]
Events = queue.Queue[tuple[int, str | End]]


def unreachable(reason: str) -> End:
    """The end of a worker whose actual end is unknown."""
    return {"state": "unreachable", "code": None, "reason": reason}


@dataclasses.dataclass
class Follower:
    """Shows the log of all workers live, and stops the other workers after one has failed.

    Args:
      grace: seconds until the others are stopped after one failed.
      patience: seconds that a worker may be unreachable before it counts as lost.
      poll: seconds between two attempts to reach a worker.
    """

    commands: Commands
    fleet: Fleet
    grace: float
    patience: float
    poll: float

    def follow(self) -> dict[int, End]:
        """Returns the end of each worker: `{"state": ..., "code": ..., "stopped": ...}`."""
        if self.commands.dry_run:
            for worker in range(self.fleet.workers):
                self.commands.tell(self.fleet.ssh(worker, remote("follow", "0")))
            return {}
        events: Events = queue.Queue()
        for worker in range(self.fleet.workers):
            threading.Thread(target=self._follow_one, args=(worker, events), daemon=True).start()
        ends: dict[int, End] = {}
        deadline, stopping = float("inf"), False
        while len(ends) < self.fleet.workers:
            if time.monotonic() > deadline and not stopping:
                stopping = True
                self._stop_others(ends)
            try:
                worker, event = events.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(event, str):
                line = printable(event, keep="\t")
                print(f"[{worker}] {line}" if self.fleet.workers > 1 else line, flush=True)
                continue
            ends[worker] = event
            if event.get("code") != 0 and deadline == float("inf"):
                say(f"worker {worker} {describe(event)}; the others have {self.grace:.0f} s to end")
                deadline = time.monotonic() + self.grace
        return ends

    def _one(self, worker: int, events: Events) -> None:
        """Reads one worker's log to its end; reconnects when the connection breaks."""
        offset, lost_since = 0, None
        while True:
            command = self.fleet.ssh(worker, remote("follow", str(offset)))
            self.commands.tell(command)
            complaints: list[str] = []
            for line in lines_of(command, complaints):
                message = parse(line)
                if "end" in message:
                    events.put((worker, message["end"]))
                    return
                lost_since = None
                offset = message.get("offset", offset)
                events.put((worker, str(message["line"])))
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > self.patience:
                reason = failure(command, 255, "".join(complaints[-20:]))
                events.put((worker, unreachable(reason)))
                return
            say(f"worker {worker}: the connection broke; trying again")
            time.sleep(self.poll)

    def _follow_one(self, worker: int, events: Events) -> None:
        try:
            self._one(worker, events)
        except Exception as error:  # otherwise the main thread would wait forever
            events.put((worker, unreachable(str(error))))

    def _stop_others(self, ends: dict[int, End]) -> None:
        left = [w for w in range(self.fleet.workers) if w not in ends]
        say(f"stopping worker {', '.join(map(str, left))}")
        for worker in left:
            try:
                self.commands.run(self.fleet.ssh(worker, remote("stop", "30")))
            except CommandError as error:  # the worker's own thread reports it as unreachable
                say(str(error))


def lines_of(command: list[str], complaints: list[str]) -> Iterator[str]:
    """The lines of a command's output as they come; its standard error goes into `complaints`."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError:
        raise missing(command[0]) from None
    assert process.stdout is not None
    assert process.stderr is not None
    errors = process.stderr
    reader = threading.Thread(target=lambda: complaints.extend(errors), daemon=True)
    reader.start()
    with process:
        yield from process.stdout
        reader.join()


def parse(line: str) -> End:
    """A message of the worker; other lines, such as a banner, become lines of the log."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    return message if isinstance(message, dict) else {"line": line.rstrip("\n")}


def describe(end: End) -> str:
    """The end of a worker, in words."""
    if end["state"] == "unreachable":
        return f"cannot be reached: {end['reason']}"
    if end["state"] != "exited":
        return "was restarted or killed; its run is lost"
    if end["code"] == 0:
        return "was stopped and has saved" if end.get("stopped") else "is done"
    return f"ended with exit code {end['code']}"
