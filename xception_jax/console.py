"""What people read on a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def make_console(stderr: bool = False, quiet: bool = False) -> Console:
    """Where people read; text is shown as it is, without markup, and where `quiet` not at all."""
    return Console(
        stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True
    )


def table(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table whose first column is text and whose others are figures."""
    drawn = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        drawn.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        drawn.add_row(*row)
    return drawn
