"""Progress of a job: a bar with rate and time left on a terminal, plain lines in a log otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOG_INTERVAL_S = 30.0


@contextmanager
def progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """Shows the progress on standard error.

    Args:
        total: Number of rows; None where it is unknown.

    Yields:
        The function to call with the number of rows that were written.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        with _bar(total) as on_rows:
            yield on_rows
    else:
        yield _Log(total).add


@contextmanager
def _bar(total: int | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: object) -> Text:
            speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
            return Text("" if speed is None else f"{speed:,.0f} rows/s")

    columns = (
        TextColumn("rows"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=60) as bar:
        task = bar.add_task("rows", total=total)
        yield lambda rows: bar.update(task, advance=rows)


class _Log:
    """Writes a line every half minute."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._rows = 0
        self._started = self._logged = time.monotonic()

    def add(self, rows: int) -> None:
        """Counts rows."""
        self._rows += rows
        now = time.monotonic()
        if now - self._logged < _LOG_INTERVAL_S:
            return
        self._logged = now
        rate = self._rows / (now - self._started)
        line = f"{self._rows:,} rows, {rate:,.0f} rows/s"
        if self._total:
            line += f", {format_s(max(self._total - self._rows, 0) / rate)} left"
        print(line, file=sys.stderr, flush=True)  # noqa: T201  the log of a command


def format_s(seconds: float) -> str:
    """Formats a duration with at most two units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
