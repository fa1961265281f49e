"""Terminal output: text tables, and progress bars on stderr."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

# Receives the messages of a run, which may span several lines.
Report = Callable[[str], None]

# Columns of a table where the output is not a terminal.
_LOG_COLUMNS = 140


def discard(message: str) -> None:
    """Drops a message: the ``Report`` of a run that shows none."""


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[str] = ()) -> str:
    """Renders a table as plain text that fits the terminal.

    Args:
        header: Column names.
        rows: Cells, as many per row as there are columns.
        numeric: Names of the columns to align right.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in header:
        table.add_column(name, justify="right" if name in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    width = shutil.get_terminal_size((_LOG_COLUMNS, 0)).columns
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


@contextmanager
def progress_bar(
    description: str, unit: str, total: int, *, completed: int = 0, enabled: bool = True
) -> Iterator[Callable[[str], None]]:
    """Shows a progress bar while the block runs, if stderr is a terminal.

    Args:
        description: Text before the bar.
        unit: What the bar counts, in the plural.
        total: Count at the end.
        completed: Count at the start.
        enabled: False for a process that shows no bar.

    Yields:
        A function that advances the bar by one and shows a text after it.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    # FORCE_COLOR makes rich treat a log file as a terminal, and would fill it with redrawn bars.
    live = enabled and console.is_terminal and sys.stderr is not None and sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=not live) as bar:
        if live:
            console.show_cursor()  # rich hides it, and a second Ctrl-C ends the process without showing it again
        task = bar.add_task(description, total=total, completed=completed, detail="")

        def advance(detail: str = "") -> None:
            bar.update(task, advance=1, detail=detail)

        yield advance
