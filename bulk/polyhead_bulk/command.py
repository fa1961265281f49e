"""What ``polyhead bulk`` does: opens the model, runs the job, reports its end as an exit code and one line."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
from polyhead_client.cli.printable import printable

from .annotator import Annotator
from .errors import BulkError, InputError, ResumeError, UsageError
from .job import Engine, Job, Summary
from .options import AnswerOptions
from .plan import Plan
from .progress import format_s, progress
from .selection import Selection
from .sources import find_sources
from .texts import Texts

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
# Rows with which a dry run measures.
_MEASURED_ROWS = 512


def execute(inputs: Sequence[str], output: Path, options: Mapping[str, Any], server: Any) -> int:
    """Runs the command; returns its exit code.

    Args:
        inputs: The arguments that name the inputs.
        output: The output folder.
        options: The flags by their names.
        server: Connection to a server (``polyhead_client``'s ``ServerOptions``); None for a bundle.
    """
    logging.basicConfig(format="polyhead: %(message)s", level=logging.WARNING)
    try:
        with ExitStack() as stack:
            plan = _plan(inputs, output, options)
            if options["engine"] == "ray" and not options["dry_run"]:
                return _run(_ray_job(plan, options, stack))
            engine = _engine(options, server, stack)
            if options["dry_run"]:
                _dry_run(plan, engine)
                return EXIT_DONE
            return _run(Job(plan, engine))
    except BulkError as error:
        _say(str(error))
        return EXIT_USAGE if isinstance(error, UsageError | ResumeError) else EXIT_FAILED
    except KeyboardInterrupt:
        _say(f"stopped; no incomplete part is left. Continue with: {_command()}")
        return EXIT_INTERRUPTED


def _plan(inputs: Sequence[str], output: Path, options: Mapping[str, Any]) -> Plan:
    shard, shards = options["shard"]
    try:
        types = {name: pa.type_for_alias(alias) for name, alias in options["column_types"].items()}
    except ValueError as error:
        raise UsageError(f"--column-type: {error}") from error
    return Plan(
        sources=find_sources(inputs, output, options["input_format"]),
        selection=Selection(options["text_column"], options["id_column"], options["keep"]),
        output=output,
        output_format=options["output_format"],
        part_rows=options["part_rows"],
        limit=options["limit"],
        shard=shard,
        shards=shards,
        on_error=options["on_error"],
        column_types=types,
    )


def _ray_job(plan: Plan, options: Mapping[str, Any], stack: ExitStack) -> Job:
    from .ray_data import Cluster, RayJob

    cluster = Cluster(
        options["bundle"],
        {
            "engine": options["inference_engine"],
            "device": "cuda" if options["device"] == "cuda" else "cpu",
            "variant": options["variant"],
            "threads": options["threads"] or 1,
            **_answer_options(options),
        },
        address=options["ray_address"],
        public_key=options["public_key"],
        send_bundle=options["ray_send_bundle"],
    )
    stack.callback(cluster.close)
    return RayJob(plan, cluster)


def _answer_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: options[field.name] for field in dataclasses.fields(AnswerOptions)}


def _engine(options: Mapping[str, Any], server: Any, stack: ExitStack) -> Engine:
    answers = _answer_options(options)
    if server is not None:
        from .remote import RemoteAnnotator

        return RemoteAnnotator(stack.enter_context(server.connect()), AnswerOptions(**answers))
    return Annotator(
        options["bundle"],
        engine=options["inference_engine"],
        device=options["device"],
        variant=options["variant"],
        threads=options["threads"],
        public_key=options["public_key"] or "",
        **answers,
    )


def _run(job: Job) -> int:
    started = time.monotonic()
    with progress(job.total_rows()) as on_rows, _stopped_by_signals(job):
        job.on_rows = on_rows
        summary = job.run()
    _say(_report(job, summary, time.monotonic() - started))
    if summary.is_stopped:
        again = "" if any(source.is_stdin for source in job.plan.sources) else f". Continue with: {_command()}"
        _say(f"stopped after a complete part{again}")
        return EXIT_INTERRUPTED
    if summary.failures:
        _say("parts are missing, as their input cannot be read; the same command tries again")
    return EXIT_FAILED if summary.failures else EXIT_DONE


@contextmanager
def _stopped_by_signals(job: Job) -> Iterator[None]:
    """Lets the first signal stop the job after its part, and the second one at once."""

    def on_signal(_: int, __: Any) -> None:
        if job.is_stopping:
            raise KeyboardInterrupt
        job.stop()
        _say("completing the part that is being written; press Ctrl-C again to drop it")

    previous = {one: signal.signal(one, on_signal) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)


def _report(job: Job, summary: Summary, seconds: float) -> str:
    facts = job.layout.facts
    kept = f", {_parts(summary.kept_parts)} kept from before" if summary.kept_parts else ""
    errors = f", {summary.errors:,} of them without an answer (column error)" if summary.errors else ""
    rate = f" ({summary.rows / seconds:,.0f} rows/s)" if seconds and summary.rows else ""
    return (
        f"{summary.rows:,} rows in {_parts(summary.parts)}{errors} by {facts.model_id} on "
        f"{facts.runtime} in {format_s(seconds)}{rate}{kept}: {job.plan.output}"
    )


def _dry_run(plan: Plan, engine: Engine) -> None:
    job = Job(plan, engine)
    total = job.total_rows()
    click.echo(f"model: {engine.layout.facts.model_id} on {engine.layout.facts.runtime}")
    for number, source in enumerate(plan.sources):
        try:
            reader = job.reader(number)
            rows = "rows unknown before they are read" if reader.rows is None else f"{reader.rows:,} rows"
            parts = "" if reader.fragments is None else f", {_parts(reader.fragments)}"
            click.echo(f"input: {printable(source.name)}: {source.format}, {rows}{parts}")
        except (InputError, UsageError) as error:
            click.echo(f"input: {printable(str(error))}")
    click.echo(f"output: {plan.output}, {plan.output_format}, at most {plan.part_rows:,} rows a part")
    for field in job.schema():
        click.echo(f"column: {field.name}: {field.type}")
    rate = _rate(job, engine)
    if rate and total:
        share = f" for {plan.shards} shards together" if plan.shards > 1 else ""
        click.echo(f"estimate: {total:,} rows at {rate:,.0f} rows/s: {format_s(total / rate)}{share}")
    elif rate:
        click.echo(f"estimate: {rate:,.0f} rows/s")


def _rate(job: Job, engine: Engine) -> float | None:
    """Measures rows per second with the first rows; None without rows."""
    first: list[Texts] = []
    for texts in job.first_texts():
        first.append(texts)
        if sum(map(len, first)) >= _MEASURED_ROWS:
            break
    rows = sum(map(len, first))
    started = time.monotonic()
    for _ in engine.stream(first):
        pass
    return rows / (time.monotonic() - started) if rows else None


def _parts(number: int) -> str:
    return f"{number:,} part{'' if number == 1 else 's'}"


def _command() -> str:
    """Returns the command line of this process."""
    return shlex.join(["polyhead", *sys.argv[1:]])


def _say(line: str) -> None:
    click.echo(f"polyhead: {printable(' '.join(line.split()))}", err=True)
