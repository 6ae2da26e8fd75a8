"""The time of a run by cause: the share spent in steps (goodput), and the rest."""

import collections
import time
from collections.abc import Iterator
from contextlib import contextmanager

STEPS = "steps"


class Goodput:
    """Accounts for the time since its creation; time outside `spending` counts as steps.

    The host waits for the device in steps, and for its input outside. So input that is ready in
    time costs nothing.
    """

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._lost: collections.defaultdict[str, float] = collections.defaultdict(float)

    @contextmanager
    def spending(self, cause: str) -> Iterator[None]:
        """A context whose time counts for the cause; do not nest it."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self._lost[cause] += time.perf_counter() - since

    def shares(self) -> dict[str, float]:
        """The share of each cause, `steps` first, and the total in `seconds`."""
        total = time.perf_counter() - self._begun
        lost = {cause: seconds / total for cause, seconds in self._lost.items()}
        return {STEPS: 1 - sum(lost.values()), **lost, "seconds": total}
