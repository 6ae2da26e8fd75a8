"""The log of pods, each line once, however often the connection breaks."""

import re


class Shown:
    """What of a log has been shown: a connection made anew brings all of it again.

    Kubernetes counts whole seconds in `--since-time`, so that would bring lines twice, too.
    """

    def __init__(self) -> None:
        # Of each pod: the time of the last line shown, and how many lines of that time were.
        self._last: dict[str, tuple[str, int]] = {}
        self._seen: dict[str, tuple[str, int]] = {}

    def begin(self) -> None:
        """The log comes from its beginning."""
        self._seen = {}

    def new(self, line: str) -> str | None:
        """A line as it is to be shown, without its time; None where it has been shown.

        Args:
          line: `[pod/NAME/CONTAINER] TIME TEXT`, where times of a pod never fall.
        """
        match = re.fullmatch(r"(\[\S+\]) (\d{4}-\d\S+) ?(.*\n?)", line, re.DOTALL)
        if not match:
            return line
        pod, stamp, text = match.groups()
        at, count = self._seen.get(pod, ("", 0))
        self._seen[pod] = now = (stamp, count + 1 if stamp == at else 1)
        if _order(now) <= _order(self._last.get(pod, ("", 0))):
            return None
        self._last[pod] = now
        return f"{pod} {text}"


def _order(seen: tuple[str, int]) -> tuple[str, str, int]:
    """Sorts times such as `2026-01-01T00:00:00.12Z`, whose fractions have any number of digits."""
    whole, _, fraction = seen[0].rstrip("Z").partition(".")
    return whole, fraction, seen[1]
