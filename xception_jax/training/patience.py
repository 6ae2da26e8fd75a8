"""Early stopping: a run ends after some evaluations without a better one.

Nothing is stored for it. The best checkpoint is always kept, so its step and the interval between
evaluations give the number of later evaluations, also in a run that continues.
"""

from collections.abc import Callable


def is_over(limit: int, due: Callable[[int], bool], best: int | None, step: int) -> bool:
    """Whether a run ends early.

    Args:
      limit: `eval.patience`; 0: never.
      due: whether a step is evaluated.
      best: the step of the best evaluation, None without any.
      step: the number of completed steps, all due evaluations included.
    """
    return bool(limit) and sum(map(due, range((best or 0) + 1, step + 1))) >= limit
