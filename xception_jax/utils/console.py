"""Output for people on a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from xception_jax.utils.text import printable


class _Console(Console):
    """Shows control characters as escapes, since names and errors may be untrusted."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(
            *(printable(each, keep="\n\t") if isinstance(each, str) else each for each in objects),
            **options,
        )

    def on_broken_pipe(self) -> None:
        """Leaves the error to `commands.cli`, which ends as for other output; rich exits with 1."""
        raise


def make_console(stderr: bool = False, quiet: bool = False) -> Console:
    """A console for plain text, without markup; silent if `quiet`.

    Control characters are shown as escapes, except line breaks and tabs.
    """
    return _Console(
        stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True
    )


@contextlib.contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    """Shows on a terminal how much is done and the time left; elsewhere nothing.

    Args:
      console: where it is shown.
      what: is counted, `pictures`.
      total: their number.

    Yields:
      A function to call after each of them.
    """
    # Not needed by most commands, and as large as all the rest that is imported here.
    from rich import progress as parts

    columns = (
        parts.TextColumn(what), parts.BarColumn(), parts.MofNCompleteColumn(),
        parts.TimeElapsedColumn(), parts.TimeRemainingColumn(),
    )  # fmt: skip
    hidden = not console.is_terminal
    # Else what is printed would go where the bar is, not into the file that standard output is.
    redirect = sys.stdout.isatty()
    with parts.Progress(
        *columns, console=console, transient=True, disable=hidden, redirect_stdout=redirect
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def table(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table with text in the first column and figures in the others."""
    drawn = Table(title=printable(title), title_justify="left")
    for i, name in enumerate(header):
        drawn.add_column(printable(name), justify="left" if i == 0 else "right")
    for row in rows:
        drawn.add_row(*map(printable, row))
    return drawn
