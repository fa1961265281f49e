"""``polyhead top``: a live table of the workers of a running server."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, NamedTuple

import click

from .admin import get_stats, target_option

if TYPE_CHECKING:  # gRPC and rich take longer to import than --help should take
    from polyhead.v1 import admin_service_pb2 as pb2
    from rich.console import Console, Group

    from .rates import WorkerRates

# Columns of a terminal from which the wide columns are shown, and of output that is not a terminal.
_WIDE = 118
_PIPE_WIDTH = 160
# Maximum width of a column; a longer model id is cut.
_MAX_WIDTH = 24


@click.command()
@target_option
@click.option(
    "--interval",
    "interval_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Time between two readings. Rates are averages over this time.",
)
@click.option("--once", is_flag=True, help="Take two readings, print the rates between them and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per worker and reading, one per line.")
def top(target: str, interval_s: float, once: bool, as_json: bool) -> None:
    """Show the load of each worker of a running server.

    The table is refreshed until q or Ctrl-C is pressed. If stdout is not a terminal, a plain table is printed for each
    reading. Requires the server's admin service.

    \b
      polyhead-serve bundles/tickets --admin-listen unix:/run/polyhead-admin.sock
      polyhead top --target unix:/run/polyhead-admin.sock
      polyhead top --target unix:/run/polyhead-admin.sock --json | jq .items_per_s

    \b
    PID       process id of the worker; the row "all" is the total
    STATE     serving, or drained: health checks report NOT_SERVING
    CALLS     running calls, streams included
    QUEUE     texts in the queue
    WAIT      expected queueing time of a text that arrives now
    TEXTS/S   texts computed per second
    TOKENS/S  tokens computed per second, without padding
    BUSY      share of the compute threads' time that batches took
    BATCH     mean number of texts per batch
    ERRORS/S  items answered with an error per second
    UP        time since the worker started (on wide terminals)
    PADDING   share of padding in the computed tokens (on wide terminals)
    MODEL     id of the loaded bundle (on wide terminals)
    """  # noqa: D301  \b tells click to keep the line breaks
    console = None if once or as_json else _live_console()
    try:
        with _key_reader() if console else nullcontext(_sleep) as wait:
            readings = _readings(target, interval_s, wait)
            if console:
                _show_live(console, target, readings)
            else:
                _print_readings(target, readings, once, as_json)
    except KeyboardInterrupt:
        pass  # the usual way to leave


def _live_console() -> Console | None:
    """Returns a console on stdout; None if stdout is not a terminal, or rich is not installed."""
    if not _is_terminal():
        return None
    try:
        from rich.console import Console
    except ModuleNotFoundError:  # in the image of the server
        return None
    console = Console(highlight=False)
    return console if console.is_terminal and not console.is_dumb_terminal else None


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def render(target: str, rows: Sequence[WorkerRates], width: int) -> Group:
    """Renders the workers as a table for ``width`` columns, and the errors by reason below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    columns = _columns(width)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.name, justify=column.justify, no_wrap=True, max_width=_MAX_WIDTH)
    for row in rows:
        style = "bold" if row.process_id == 0 else None if row.serving else "yellow"
        table.add_row(*(Text(column.value(row)) for column in columns), style=style)
    return Group(Text(target, no_wrap=True, overflow="ellipsis"), table, Text(_errors(rows)))


def render_plain(target: str, rows: Sequence[WorkerRates], width: int) -> str:
    """Renders the same table as plain text."""
    columns = _columns(width)
    cells = [[column.name for column in columns]]
    cells += [[_shorten(column.value(row)) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = [
        " ".join(
            cell.ljust(cell_width) if column.justify == "left" else cell.rjust(cell_width)
            for cell, cell_width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join([target, *aligned, _errors(rows)])


def _columns(width: int) -> list[_Column]:
    return [column for column in _COLUMNS if width >= _WIDE or not column.wide]


def _errors(rows: Sequence[WorkerRates]) -> str:
    errors = sorted(rows[-1].item_errors_per_s.items()) if rows else []
    return f"errors: {', '.join(f'{reason} {rate:.1f}/s' for reason, rate in errors) or 'none'}"


def _shorten(cell: str) -> str:
    return cell if len(cell) <= _MAX_WIDTH else cell[: _MAX_WIDTH - 1] + "…"


def _readings(target: str, interval_s: float, wait: Callable[[float], bool]) -> Iterator[list[WorkerRates]]:
    """Yields the rates after each interval, until ``wait`` returns False."""
    from .rates import rates

    before: Sequence[pb2.WorkerStats] = ()
    while True:
        after = get_stats(target).workers
        yield rates(before, after)
        before = after
        if not wait(interval_s):
            return


def _show_live(console: Console, target: str, readings: Iterator[list[WorkerRates]]) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, screen=True, auto_refresh=False) as display:
        for rows in readings:
            table = render(target, rows, console.width)
            display.update(Group(table, Text("q to quit", style="dim")), refresh=True)


def _print_readings(target: str, readings: Iterator[list[WorkerRates]], once: bool, as_json: bool) -> None:
    width = shutil.get_terminal_size().columns if _is_terminal() else _PIPE_WIDTH
    for rows in itertools.islice(readings, 1, 2) if once else readings:
        if as_json:
            for row in rows:
                click.echo(json.dumps(dataclasses.asdict(row)))
        else:
            click.echo(render_plain(target, rows, width))


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


@contextmanager
def _key_reader() -> Iterator[Callable[[float], bool]]:
    """Yields a function that waits for a time and returns False as soon as q is pressed."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    import termios  # not on Windows, where the other commands run too
    import tty

    stdin = sys.stdin.fileno()
    settings = termios.tcgetattr(stdin)

    def wait(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            if select.select([stdin], [], [], left_s)[0] and os.read(stdin, 1) in {b"q", b"Q", b""}:
                return False
        return True

    try:
        tty.setcbreak(stdin)
        yield wait
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, settings)


class _Column(NamedTuple):
    name: str
    value: Callable[[WorkerRates], str]
    justify: Literal["left", "right"] = "right"
    wide: bool = False


def _format(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


_COLUMNS = [
    _Column("PID", lambda row: str(row.process_id or "all")),
    _Column("MODEL", lambda row: row.model_id, justify="left", wide=True),
    _Column("STATE", lambda row: "serving" if row.serving else "drained", justify="left"),
    _Column("UP", lambda row: f"{row.up_s:,.0f} s", wide=True),
    _Column("CALLS", lambda row: f"{row.calls:,}"),
    _Column("QUEUE", lambda row: f"{row.queued_items:,}"),
    _Column("WAIT", lambda row: f"{row.expected_wait_s * 1000:,.0f} ms"),
    _Column("TEXTS/S", lambda row: _format(row.items_per_s, ",.1f")),
    _Column("TOKENS/S", lambda row: _format(row.tokens_per_s, ",.0f")),
    _Column("PADDING", lambda row: _format(row.padding_share, ".1%"), wide=True),
    _Column("BUSY", lambda row: _format(row.busy_share, ".0%")),
    _Column("BATCH", lambda row: _format(row.items_per_batch, ".1f")),
    _Column(
        "ERRORS/S",
        lambda row: _format(None if row.items_per_s is None else sum(row.item_errors_per_s.values()), ".1f"),
    ),
]
