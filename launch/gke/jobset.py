"""Applies, follows and deletes a JobSet in the cluster."""

import argparse
import json
import time

from launch import fleet, follower, podlog
from launch.commands import (
    Commands,
)
from launch.gke.manifest import CONTAINER
from xception_jax.runtime import cache
from xception_jax.utils.text import printable

_SELECTOR = "jobset.sigs.k8s.io/jobset-name"


class Run:
    """A run's JobSet, in the cluster or not yet."""

    def __init__(self, commands: Commands, args: argparse.Namespace):
        self._commands, self._args = commands, args

    def _kubectl(self, *words: str) -> list[str]:
        context = [f"--context={self._args.context}"] if self._args.context else []
        return ["kubectl", *words, f"--namespace={self._args.namespace}", *context]

    def state(self) -> str:
        """`absent`, `Completed`, `Failed` or `running`."""
        text = self._commands.ask(self._kubectl("get", "jobset", self._args.name, "--output=json"))
        if text is None:
            return "absent"
        status = json.loads(text).get("status", {})
        for condition in status.get("conditions", []):
            if condition["type"] in ("Completed", "Failed") and condition["status"] == "True":
                return str(condition["type"])
        return "running"

    def apply(self, manifest: str) -> None:
        """Creates the run unless it is running; replaces one that has ended."""
        state = self.state()
        if state in ("Completed", "Failed"):
            self.delete()
        if state != "running":
            path = cache.folder() / "launch" / f"{self._args.name}.yaml"
            if not self._commands.dry_run:
                cache.make_private(path.parent)
                path.write_text(manifest, encoding="utf-8")
            self._commands.run(self._kubectl("apply", f"--filename={path}"))

    def delete(self) -> None:
        """Deletes the JobSet, its pods, and their role and role binding."""
        for kind, name in (("jobset", ""), ("rolebinding", "-finds-pods"), ("role", "-finds-pods")):
            self._commands.run(
                self._kubectl("delete", kind, f"{self._args.name}{name}", "--ignore-not-found")
            )

    def waiting(self) -> str:
        """Kubernetes' reason why the first pending pod waits; "" if none is pending."""
        selector = f"--selector={_SELECTOR}={self._args.name}"
        text = self._commands.run(self._kubectl("get", "pods", selector, "--output=json"))
        for one in json.loads(text)["items"] if text else []:
            if one["status"].get("phase") == "Pending":
                said = [
                    f"{condition.get('reason', '')}: {condition['message']}"
                    for condition in one["status"].get("conditions", [])
                    if condition.get("message")
                ]
                states = [s["state"] for s in one["status"].get("containerStatuses", [])]
                said += [s["waiting"]["reason"] for s in states if s.get("waiting")]
                return f"{one['metadata']['name']} waits: {(said or ['starting'])[-1]}"
        return ""

    def follow(self) -> str:
        """Shows the log of all pods until the run ends; returns Completed or Failed."""
        logs = self._kubectl(
            "logs", f"--selector={_SELECTOR}={self._args.name}", f"--container={CONTAINER}",
            "--follow", "--prefix", "--timestamps", "--max-log-requests=256", "--tail=-1",
        )  # fmt: skip
        if self._commands.dry_run:
            self._commands.tell(logs)
            return "Completed"
        last, shown = "", podlog.Shown()
        while (state := self.state()) == "running":
            why = self.waiting()
            if not why:
                self._show(logs, shown)
            elif why != last:
                fleet.say(why)
                last = why
            time.sleep(self._args.poll)
        return state

    def _show(self, logs: list[str], shown: podlog.Shown) -> None:
        """Prints new lines of the log, until it or the connection ends."""
        self._commands.tell(logs)
        shown.begin()
        complaints: list[str] = []
        count = 0
        for line in follower.lines_of(logs, complaints):
            count += 1
            if (text := shown.new(line)) is not None:
                print(printable(text, keep="\n\t"), end="", flush=True)
        if complaints and not count:
            fleet.say(complaints[-1].rstrip())
