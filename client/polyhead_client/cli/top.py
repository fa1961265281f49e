"""``polyhead top``: a live table of the workers of a running server."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, NamedTuple

import click

from .admin import admin_options, get_stats
from .options import FiniteRange
from .units import format_count, format_duration

if TYPE_CHECKING:  # gRPC and rich take longer to import than --help should take
    from polyhead.v1 import admin_service_pb2 as pb2
    from rich.console import Console, Group

    from .rates import WorkerRates

# Width of output that is not a terminal.
_PIPE_WIDTH = 160
# Lines of the screen besides those of the workers: address, header, total, errors, note, keys.
_OTHER_LINES = 6
# How often the terminal's size is compared while the command waits.
_RESIZE_POLL_S = 0.2
# Maximum width of a column; a longer model id is cut.
_MAX_WIDTH = 24


@click.command()
@admin_options
@click.option(
    "--interval",
    "interval_s",
    metavar="SECONDS",
    type=FiniteRange(0.1, 86_400),
    default=2.0,
    show_default=True,
    help="Time between two readings. Rates are averages over this time.",
)
@click.option("--once", is_flag=True, help="Take two readings, print the rates between them and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per worker and reading, one per line.")
def top(target: str, api_key: str | None, interval_s: float, once: bool, as_json: bool) -> None:
    """Show the load of each worker of a running server.

    The table is refreshed until q or Ctrl-C is pressed. It shows the columns that fit the terminal, and the busiest
    workers if not all of them fit. If stdout is not a terminal, a plain table is printed for each reading. Requires
    the server's admin service.

    \b
    Examples:
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
    UP        time since the worker started (from 89 columns)
    PADDING   share of padding in the computed tokens (from 98 columns)
    MODEL     id of the loaded bundle, or the name of each of several models (from 123 columns)
    """  # noqa: D301  \b tells click to keep the line breaks
    console = None if once or as_json else _live_console()
    try:
        if console:
            _show_live(console, target, api_key, interval_s)
        else:
            _print_readings(target, _readings(target, api_key, interval_s), once, as_json)
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


def render(target: str, rows: Sequence[WorkerRates], width: int, height: int | None = None) -> Group:
    """Renders the workers as a table, and the errors by reason below it.

    Args:
        target: Address of the admin service.
        rows: The workers, and their total in the last row.
        width: Columns of the terminal; columns of the table that do not fit are left out.
        height: Lines of the terminal; the least busy workers that do not fit are left out. None for no limit.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    columns = _columns(width)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.name, justify=column.justify, no_wrap=True, max_width=_MAX_WIDTH)
    shown = _busiest(rows, len(rows) if height is None else max(1, height - _OTHER_LINES))
    for row in shown:
        style = "bold" if row.process_id == 0 else None if row.serving else "yellow"
        table.add_row(*(Text(column.value(row)) for column in columns), style=style)
    lines: list[Text | Table] = [Text(target, no_wrap=True, overflow="ellipsis"), table]
    if len(shown) < len(rows):
        lines.append(Text(f"{len(rows) - len(shown)} more workers do not fit", style="dim"))
    return Group(*lines, Text(_errors(rows), no_wrap=True, overflow="ellipsis"))


def _busiest(rows: Sequence[WorkerRates], count: int) -> list[WorkerRates]:
    """Returns the ``count`` busiest workers, in their order, and the total."""
    workers, total = rows[:-1], rows[-1:]
    chosen = sorted(range(len(workers)), key=lambda one: -(workers[one].busy_share or 0))[:count]
    return [*(workers[one] for one in sorted(chosen)), *total]


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
    """Returns the columns that fit, leaving out the least important. At least the first one is shown."""
    columns = list(_COLUMNS)
    while len(columns) > 1 and sum(column.width + 1 for column in columns) - 1 > width:
        columns.remove(max(columns, key=lambda column: column.rank))
    return columns


def _errors(rows: Sequence[WorkerRates]) -> str:
    errors = sorted(rows[-1].item_errors_per_s.items()) if rows else []
    return f"errors: {', '.join(f'{reason} {rate:.1f}/s' for reason, rate in errors) or 'none'}"


def _shorten(cell: str) -> str:
    return cell if len(cell) <= _MAX_WIDTH else cell[: _MAX_WIDTH - 1] + "…"


def _readings(target: str, api_key: str | None, interval_s: float) -> Iterator[list[WorkerRates]]:
    """Yields the rates after each interval, without end."""
    from .rates import rates

    before: Sequence[pb2.WorkerStats] = ()
    while True:
        after = get_stats(target, api_key).workers
        yield rates(before, after)
        before = after
        time.sleep(interval_s)


def _show_live(console: Console, target: str, api_key: str | None, interval_s: float) -> None:
    """Shows the table until q is pressed, and redraws it when the terminal changes its size."""
    from rich.console import ConsoleDimensions, Group
    from rich.live import Live
    from rich.text import Text

    from .rates import rates

    reader = _Reader(target, api_key)
    before: Sequence[pb2.WorkerStats] = ()
    rows: Sequence[WorkerRates] | None = None
    with (
        _default_exit_on_signals(),
        _keys() as key_pressed,
        Live(console=console, screen=True, auto_refresh=False) as display,
    ):
        hint = Text("q to quit" if key_pressed else "Ctrl-C to quit", style="dim")
        drawn: os.terminal_size | None = None
        due = 0.0
        while True:
            if time.monotonic() >= due and (after := reader.result()) is not None:
                rows, before = rates(before, after), after
                drawn, due = None, time.monotonic() + interval_s
            # Not the console's own size, which the variables COLUMNS and LINES fix at the start.
            size = os.get_terminal_size(sys.stdout.fileno())
            if rows is not None and size != drawn:
                console.size = ConsoleDimensions(size.columns, size.lines)
                display.update(Group(render(target, rows, size.columns, size.lines), hint), refresh=True)
                drawn = size
            left_s = max(0.0, min(_RESIZE_POLL_S, due - time.monotonic()) if rows is not None else 0.05)
            if key_pressed is None:
                time.sleep(left_s)
            elif key_pressed(left_s):
                return


class _Reader:
    """Reads the statistics in a thread, so that keys are read while a server does not answer."""

    def __init__(self, target: str, api_key: str | None) -> None:
        self._target, self._api_key = target, api_key
        self._thread: threading.Thread | None = None
        self._outcome: Sequence[pb2.WorkerStats] | Exception | None = None

    def result(self) -> Sequence[pb2.WorkerStats] | None:
        """Returns a new reading, or None while the server has not answered; starts the next call if none runs.

        Raises:
            CommandError: The call failed.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()
        self._thread.join(_RESIZE_POLL_S / 4)
        if self._thread.is_alive():
            return None
        self._thread = None
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def _read(self) -> None:
        try:
            self._outcome = get_stats(self._target, self._api_key).workers
        except Exception as error:  # noqa: BLE001 - raised by ``result``
            self._outcome = error


def _print_readings(target: str, readings: Iterator[list[WorkerRates]], once: bool, as_json: bool) -> None:
    width = shutil.get_terminal_size().columns if _is_terminal() else _PIPE_WIDTH
    for rows in itertools.islice(readings, 1, 2) if once else readings:
        if as_json:
            for row in rows:
                click.echo(json.dumps(dataclasses.asdict(row)))
        else:
            click.echo(render_plain(target, rows, width))


@contextmanager
def _keys() -> Iterator[Callable[[float], bool] | None]:
    """Yields a function that waits for a time and returns whether q was pressed; None without a terminal to read.

    If stdin is a pipe or a file, the keys come from the terminal of the process. Its settings are restored on exit.
    """
    try:
        terminal = _open_terminal()
    except OSError:
        yield None
        return
    import termios  # not on Windows, where the other commands run too
    import tty

    def pressed(seconds: float) -> bool:
        if not select.select([terminal], [], [], seconds)[0]:
            return False
        keys = os.read(terminal, 1024)
        # Nothing to read means that the terminal is gone.
        return not keys or b"q" in keys.lower()

    settings = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(terminal, termios.TCSADRAIN, settings)
        os.close(terminal)


def _open_terminal() -> int:
    if sys.stdin is not None and sys.stdin.isatty():
        return os.dup(sys.stdin.fileno())
    return os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)


@contextmanager
def _default_exit_on_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end the block with an exception, so that the terminal is restored."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Column(NamedTuple):
    """A column. ``width`` fits its largest usual value; those of the highest ``rank`` are left out first."""

    name: str
    value: Callable[[WorkerRates], str]
    width: int
    rank: int = 0
    justify: Literal["left", "right"] = "right"


def _share(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def _rate(value: float | None) -> str:
    return "-" if value is None else format_count(value, decimals=1)


_COLUMNS = [
    _Column("PID", lambda row: str(row.process_id or "all"), 7),
    _Column("MODEL", lambda row: row.model_name or row.model_id, _MAX_WIDTH, rank=12, justify="left"),
    _Column("STATE", lambda row: "serving" if row.serving else "drained", 7, rank=1, justify="left"),
    _Column("UP", lambda row: format_duration(row.up_s), 11, rank=10),
    _Column("CALLS", lambda row: format_count(row.calls), 6, rank=6),
    _Column("QUEUE", lambda row: format_count(row.queued_items), 6, rank=4),
    _Column("WAIT", lambda row: format_duration(row.expected_wait_s), 10, rank=5),
    _Column("TEXTS/S", lambda row: _rate(row.items_per_s), 7, rank=2),
    _Column("TOKENS/S", lambda row: "-" if row.tokens_per_s is None else format_count(row.tokens_per_s), 8, rank=9),
    _Column("PADDING", lambda row: _share(row.padding_share, ".1%"), 8, rank=11),
    _Column("BUSY", lambda row: _share(row.busy_share, ".0%"), 4, rank=3),
    _Column("BATCH", lambda row: _rate(row.items_per_batch), 5, rank=8),
    _Column(
        "ERRORS/S",
        lambda row: _rate(None if row.items_per_s is None else sum(row.item_errors_per_s.values())),
        8,
        rank=7,
    ),
]
