"""The log of pods, each line once, also after broken connections."""

import re


class Shown:
    """The lines of a log that have been shown: a new connection repeats the complete log.

    `--since-time` of Kubernetes has a resolution of seconds, so it would also repeat lines.
    """

    def __init__(self) -> None:
        # For each pod: the time of the last line shown, and the number of lines with that time.
        self._last: dict[str, tuple[str, int]] = {}
        self._seen: dict[str, tuple[str, int]] = {}

    def begin(self) -> None:
        """The log starts from its beginning again."""
        self._seen = {}

    def new(self, line: str) -> str | None:
        """The line to show, without its time; None if it has been shown.

        Args:
          line: `[pod/NAME/CONTAINER] TIME TEXT`; times of a pod never decrease.
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
    """A sort key for times such as `2026-01-01T00:00:00.12Z`, with fractions of any length."""
    seconds, _, fraction = seen[0].rstrip("Z").partition(".")
    return seconds, fraction, seen[1]
