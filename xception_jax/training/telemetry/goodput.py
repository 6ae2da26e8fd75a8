"""What the time of a run goes to: the share spent in steps (goodput), and the rest by cause."""

import collections
import time
from collections.abc import Iterator
from contextlib import contextmanager

STEPS = "steps"


class Goodput:
    """Accounts for the time since it was made; what is in no `spending` is that of steps.

    The host waits for the device inside of steps, and for its input outside: input that is made in
    time costs nothing here.
    """

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._lost: collections.defaultdict[str, float] = collections.defaultdict(float)

    @contextmanager
    def spending(self, cause: str) -> Iterator[None]:
        """Inside, time is spent on the cause; not to be nested."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self._lost[cause] += time.perf_counter() - since

    def shares(self) -> dict[str, float]:
        """The share of each cause, of steps first; and `seconds`, of which they are shares."""
        total = time.perf_counter() - self._begun
        lost = {cause: seconds / total for cause, seconds in self._lost.items()}
        return {STEPS: 1 - sum(lost.values()), **lost, "seconds": total}
