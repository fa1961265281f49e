"""``polyhead top``: what each worker of a running server is doing, again and again."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import click
from google.protobuf.duration_pb2 import Duration
from polyhead.v1 import admin_service_pb2 as pb2

from .admin import current_stats, target_option

# To the upper left corner, and nothing from there on; without a cursor that jumps about.
_HOME, _HIDE, _SHOW = "\x1b[H\x1b[J", "\x1b[?25l", "\x1b[?25h"
_MODEL_WIDTH = 24
# Fields of a worker that are those of all workers when they are added up.
_COUNTS = (
    *("requests_running", "queued_items", "queued_tokens", "items_total", "tokens_total", "padding_tokens_total"),
    *("batches_total", "compute_threads"),
)


@dataclass(frozen=True)
class Row:
    """A worker between two readings. What needs both is None where there is one: at first, and after a restart.

    Attributes:
        process_id: Of the worker; 0 for all of them.
        model_id: Names the bundle.
        serving: What its health service says.
        up_s: Seconds since it began to serve.
        calls: That are running.
        queued_items: Texts that wait.
        queued_tokens: Tokens that wait.
        expected_wait_s: Of a text that came now.
        items_per_s: Texts that the model computed.
        tokens_per_s: Tokens that it computed, without padding.
        padding_share: Of the tokens that it computed; None as well where it computed none.
        items_per_pass: Texts that shared a pass, on average; None as well where there was no pass.
        busy_share: Of the time of its compute threads.
        refused_per_s: Items answered with an error, by reason; reasons without any are left out.
    """

    process_id: int
    model_id: str
    serving: bool
    up_s: float
    calls: int
    queued_items: int
    queued_tokens: int
    expected_wait_s: float
    items_per_s: float | None = None
    tokens_per_s: float | None = None
    padding_share: float | None = None
    items_per_pass: float | None = None
    busy_share: float | None = None
    refused_per_s: Mapping[str, float] = dataclasses.field(default_factory=dict)


@click.command()
@target_option
@click.option(
    "--interval",
    "interval_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Between two readings; what is per second is that of the time between them.",
)
@click.option("--once", is_flag=True, help="Read twice, print once and end.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a worker and reading, one a line.")
def top(target: str, interval_s: float, once: bool, as_json: bool) -> None:
    """Watch what each worker of a running server is doing, until Ctrl-C.

    \b
      polyhead-serve build/bundle --admin-listen unix:/run/polyhead-admin.sock
      polyhead top --target unix:/run/polyhead-admin.sock

    \b
    WAIT      expected wait of a text that came now
    PADDING   tokens of padding, as a share of all that were computed
    BUSY      time that passes took, as a share of the time of all compute threads
    A/PASS    texts that shared a pass, on average
    """  # noqa: D301  the backspace tells click to keep the lines as they are
    live = sys.stdout.isatty() and not (once or as_json)
    try:
        if live:
            click.echo(_HIDE, nl=False)
        readings = _readings(target, interval_s)
        before: Sequence[pb2.WorkerStats] = next(readings) if once else ()
        for after in itertools.islice(readings, 1 if once else None):
            rows = rows_of(before, after)
            before = after
            if as_json:
                for row in rows:
                    click.echo(json.dumps(dataclasses.asdict(row)))
            else:
                click.echo((_HOME if live else "") + table(target, rows))
    except KeyboardInterrupt:
        # That is how one leaves.
        pass
    finally:
        if live:
            click.echo(_SHOW, nl=False)


def rows_of(before: Sequence[pb2.WorkerStats], after: Sequence[pb2.WorkerStats]) -> list[Row]:
    """A row for each worker of the second reading, and for several one more for all of them, without a process id."""
    known = {stats.process_id: stats for stats in before}
    rows = [_row(known.get(stats.process_id), stats) for stats in after]
    if len(after) > 1:
        # One that has started meanwhile has done nothing yet, as far as is known.
        same = [known.get(stats.process_id, stats) for stats in after]
        rows.append(_row(_total(same) if known else None, _total(after)))
    return rows


def table(target: str, rows: Sequence[Row]) -> str:
    """Rows as text, and what was refused below them."""
    refused = sorted(rows[-1].refused_per_s.items()) if rows else []
    reasons = ", ".join(f"{why} {rate:.1f}/s" for why, rate in refused) or "nothing"
    return "\n".join([target, _HEADER, *map(_line, rows), f"refused: {reasons}"])


def _readings(target: str, interval_s: float) -> Iterator[Sequence[pb2.WorkerStats]]:
    while True:
        yield current_stats(target).workers
        time.sleep(interval_s)


def _row(before: pb2.WorkerStats | None, after: pb2.WorkerStats) -> Row:
    row = Row(
        after.process_id,
        after.model_id,
        after.serving,
        _seconds(after.up_time),
        after.requests_running,
        after.queued_items,
        after.queued_tokens,
        _seconds(after.expected_wait),
    )
    elapsed_s = row.up_s - _seconds(before.up_time) if before else 0.0
    if before is None or elapsed_s <= 0:
        return row
    items = after.items_total - before.items_total
    tokens = after.tokens_total - before.tokens_total
    padding = after.padding_tokens_total - before.padding_tokens_total
    passes = after.batches_total - before.batches_total
    compute_s = _seconds(after.compute_total) - _seconds(before.compute_total)
    refused = {why: count - before.item_errors_total.get(why, 0) for why, count in after.item_errors_total.items()}
    return dataclasses.replace(
        row,
        items_per_s=items / elapsed_s,
        tokens_per_s=tokens / elapsed_s,
        padding_share=padding / (tokens + padding) if tokens else None,
        items_per_pass=items / passes if passes else None,
        # A pass counts when it has ended, also for the time before the first reading.
        busy_share=min(compute_s / elapsed_s / max(after.compute_threads, 1), 1.0),
        refused_per_s={why: count / elapsed_s for why, count in refused.items() if count},
    )


def _total(workers: Sequence[pb2.WorkerStats]) -> pb2.WorkerStats:
    """All workers as one."""
    total = pb2.WorkerStats(
        model_id=", ".join(sorted({worker.model_id for worker in workers})),
        serving=all(worker.serving for worker in workers),
        up_time=max((worker.up_time for worker in workers), key=_seconds),
        expected_wait=max((worker.expected_wait for worker in workers), key=_seconds),
    )
    for name in _COUNTS:
        setattr(total, name, sum(getattr(worker, name) for worker in workers))
    total.compute_total.FromNanoseconds(sum(worker.compute_total.ToNanoseconds() for worker in workers))
    for worker in workers:
        for why, count in worker.item_errors_total.items():
            total.item_errors_total[why] += count
    return total


_COLUMNS = {
    "PID": 8,
    "MODEL": -_MODEL_WIDTH,
    "STATE": -8,
    "UP": 8,
    "CALLS": 6,
    "QUEUE": 7,
    "WAIT": 8,
    "TEXTS/S": 9,
    "TOKENS/S": 11,
    "PADDING": 8,
    "BUSY": 6,
    "A/PASS": 7,
    "REFUSED/S": 10,
}


def _cells(values: Iterable[str]) -> str:
    return " ".join(
        value.rjust(width) if width > 0 else value.ljust(-width)
        for value, width in zip(values, _COLUMNS.values(), strict=True)
    ).rstrip()


_HEADER = _cells(_COLUMNS)


def _line(row: Row) -> str:
    model = row.model_id
    return _cells(
        [
            str(row.process_id or "all"),
            model if len(model) <= _MODEL_WIDTH else model[: _MODEL_WIDTH - 3] + "...",
            "serving" if row.serving else "drained",
            f"{row.up_s:,.0f} s",
            str(row.calls),
            f"{row.queued_items:,}",
            f"{row.expected_wait_s * 1000:,.0f} ms",
            _known(row.items_per_s, ",.1f"),
            _known(row.tokens_per_s, ",.0f"),
            _known(row.padding_share, ".1%"),
            _known(row.busy_share, ".0%"),
            _known(row.items_per_pass, ".1f"),
            _known(None if row.items_per_s is None else sum(row.refused_per_s.values()), ".1f"),
        ]
    )


def _known(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
