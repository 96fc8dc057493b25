"""Rows -> a table on standard output: as wide as the terminal at most, and on one line each where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_UNCUT = 400
"""Columns of a table in a pipe or a file: rich would cut it to 80."""


class Alarm(str):
    """A cell that is wrong: red where there are colours."""


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = (), wrapped: Sequence[str] = ()
) -> None:
    """Print rows under their columns: `numbers` stand on the right, `wrapped` give way where the terminal is narrow."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _UNCUT
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        justify = "right" if name in numbers else "left"
        grid.add_column(Text(name), justify=justify, no_wrap=name not in wrapped, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        # A text with brackets is no markup.
        grid.add_row(*(Text(cell, style="bold red" if isinstance(cell, Alarm) else "") for cell in row))
    console.print(grid)
