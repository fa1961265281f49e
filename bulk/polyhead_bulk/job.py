"""Runs a bulk job: reads the fragments that have no part yet, answers their texts and writes the parts.

::

    open_reader -> pieces of wanted fragments -> engine -> PartWriter -> part, record -> manifest
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from . import manifest
from .answers import Answers
from .errors import BulkError, InputError, ResumeError, RowError, UsageError, output_error
from .files import remove_abandoned
from .layout import Layout
from .parts import RECORDS, UNWRITABLE, PartRecord, PartWriter, check_types, read_records
from .plan import Plan, Progress, describe
from .readers import Piece, Reader, Want, failed, limited, open_reader
from .selection import ALL, cast_columns, check_names, size_of
from .texts import Texts

logger = logging.getLogger(__name__)

# Keys of the schema metadata.
_METADATA_PREFIX = "polyhead."


class Engine(Protocol):
    """Answers texts: an ``Annotator``, or a ``RemoteAnnotator``.

    Attributes:
        layout: The columns of the answers.
    """

    layout: Layout

    def stream(self, texts: Iterable[Texts]) -> Iterator[tuple[Texts, Answers]]:
        """Yields each group of texts with its answers, in order."""
        ...


@dataclass
class Summary:
    """What a run did.

    Attributes:
        rows: Rows answered by this run.
        errors: Rows of them without an answer.
        parts: Parts made.
        kept_parts: Parts that were complete before.
        failures: Fragments without a part, and why.
        is_stopped: Whether the run was stopped before its end.
        is_complete: Whether every fragment of the job has a part, those of other shards included.
    """

    rows: int = 0
    errors: int = 0
    parts: int = 0
    kept_parts: int = 0
    failures: list[str] = field(default_factory=list)
    is_stopped: bool = False
    is_complete: bool = False


class Job:
    """One run of a job in this process.

    Attributes:
        plan: The job.
        layout: The columns of the answers.
        fields: Arrow fields of the ids and kept columns.
        progress: Which fragments have a part.
        readers: Open readers of inputs by their numbers.
        on_rows: Called with the number of rows of each piece that was written.
        summary: What the run has done so far.
        is_stopping: Whether ``stop`` was called.
    """

    def __init__(self, plan: Plan, engine: Engine) -> None:
        """Opens the first input, whose columns decide those of the output.

        Args:
            plan: The job.
            engine: Answers the texts.

        Raises:
            UsageError: The columns do not fit.
            InputError: No input can be read.
        """
        self.plan = plan
        self._engine = engine
        self.layout = engine.layout
        self.on_rows: Callable[[int], object] = lambda _: None
        self.readers: dict[int, Reader] = {}
        self.summary = Summary()
        self.fields: list[pa.Field] = []
        # A later input may have nulls where the first one has none.
        self.fields = [one.with_nullable(True) for one in self._first_fields()]
        check_names([one.name for one in self.fields], engine.layout.names)
        check_types(self.fields, plan.output_format)
        self.progress = Progress(plan, {})
        self._writer: PartWriter | None = None
        # Input and fragment whose further pieces are dropped, as one of them could not be written.
        self._dropped: tuple[int, int] | None = None
        self.is_stopping = False
        # Rows that --limit leaves; None without a limit.
        self._left = plan.limit

    def first_texts(self) -> Iterator[Texts]:
        """Yields texts of the first input, for a measurement; the job cannot run afterwards."""
        yield from self.reader(0).pieces(lambda _: True)

    def total_rows(self) -> int | None:
        """Returns the number of rows of all inputs; None where an input does not state it."""
        total = 0
        for number, source in enumerate(self.plan.sources):
            if source.format != "parquet":
                return None
            try:
                total += self.reader(number).rows or 0
            except BulkError:
                continue
            if number:
                # Metadata of thousands of files would take much memory; the run reads them again.
                self.readers.pop(number)
        return total if self.plan.limit is None else min(total, self.plan.limit)

    def reader(self, number: int) -> Reader:
        """Returns the reader of an input, opened once.

        Raises:
            InputError: The input cannot be read.
            UsageError: Its columns do not fit.
        """
        if number not in self.readers:
            plan = self.plan
            self.readers[number] = open_reader(
                plan.sources[number], plan.selection, plan.part_rows, plan.column_types, self.fields
            )
        return self.readers[number]

    def stop(self) -> None:
        """Ends the run after the part that is being written."""
        self.is_stopping = True

    def schema(self) -> pa.Schema:
        """Returns the schema of the output, with the model and the options in its metadata."""
        description = describe(self.plan, self.layout, self.fields, [])
        flat = {**description["model"], **description["options"], "version": description["polyhead_version"]}
        metadata = {f"{_METADATA_PREFIX}{name}": _text(value) for name, value in flat.items()}
        return pa.schema([*self.fields, *self.layout.fields], metadata)

    def run(self) -> Summary:
        """Makes the parts that are missing.

        Raises:
            ResumeError: The output folder holds another job.
            OutputError: A part cannot be written; those before it are complete.
            RowError: A row has no answer, with ``on_error="fail"``.
            EngineError: The model or the server failed.
        """
        plan, output = self.plan, self.plan.output
        inputs = []
        for one in manifest.describe_inputs(output, plan.sources):
            inputs.append(one)
            if self.is_stopping:
                self.summary.is_stopped = True
                return self.summary
        description = describe(plan, self.layout, self.fields, inputs)
        manifest.claim(output, description)
        for folder in (output, output / RECORDS):
            remove_abandoned(folder)
        self.progress = Progress(plan, read_records(output, plan.output_format))
        self.summary.kept_parts = len(self.progress.records())
        if self.summary.kept_parts and any(source.is_stdin for source in plan.sources):
            raise ResumeError(f"{output} holds parts of an earlier standard input; use another output folder")
        try:
            self.make_parts()
        finally:
            self._compile(description)
        return self.summary

    def make_parts(self) -> None:
        """Makes the parts that ``progress`` wants, in this process.

        Raises:
            BulkError: See ``run``.
        """
        try:
            self._answer(self.schema())
        except OSError as error:
            raise output_error(error, self.plan.output) from error
        finally:
            if self._writer is not None:
                self._writer.discard()
                self._writer = None

    def _answer(self, schema: pa.Schema) -> None:
        texts = self._texts()
        stream = self._engine.stream(texts)
        try:
            for part, answers in stream:
                piece: Piece = part.payload[1]
                if piece.failure is not None:
                    self._skip(piece.failure)
                    continue
                self._write(part, answers, schema)
                if self.is_stopping and self._writer is None:
                    self.summary.is_stopped = True
                    return
        finally:
            if close := getattr(stream, "close", None):
                close()

    def _write(self, part: Texts, answers: Answers, schema: pa.Schema) -> None:
        source, piece = part.payload
        if self._dropped == (source, piece.fragment) or (self._writer is None and self.is_stopping):
            return
        self._fail_on_errors(source, piece, answers)
        columns = {**piece.columns, **answers.columns()} if len(part) else {}
        try:
            record = self._append(source, piece, columns, len(answers.errors), schema)
        except pa.ArrowMemoryError:
            raise
        except UNWRITABLE as error:
            first = self._writer.first_row if self._writer is not None else piece.first_row
            rows = f"{self.plan.sources[source].name}, rows {first + 1:,} to {piece.first_row + len(part):,}"
            reason = f"a kept column cannot be written as {self.plan.output_format}: {error}; leave it out of --keep"
            self._dropped = source, piece.fragment
            self._skip(InputError(rows, reason))
            return
        self.summary.rows += len(part)
        self.summary.errors += len(answers.errors)
        self.on_rows(len(part))
        if record is not None:
            self.progress.add(record)
            self.summary.parts += 1
            self._writer = None

    def _append(
        self, source: int, piece: Piece, columns: Mapping[str, pa.Array], errors: int, schema: pa.Schema
    ) -> PartRecord | None:
        """Appends rows to their part, and returns its record if they complete it."""
        plan = self.plan
        self._writer = self._writer or PartWriter(
            plan.output,
            schema,
            plan.output_format,
            source=source,
            fragment=piece.fragment,
            first_row=piece.first_row,
        )
        if columns:
            self._writer.write(columns, errors)
        return self._writer.commit(is_last=piece.is_last) if piece.ends else None

    def _fail_on_errors(self, source: int, piece: Piece, answers: Answers) -> None:
        if self.plan.on_error == "fail" and answers.errors:
            first = min(answers.errors)
            row = piece.first_row + first
            where = f"{self.plan.sources[source].name}, row {row + 1:,}"
            raise RowError(where, row, f"{answers.errors[first]}; --on-error null goes on without an answer")

    def _skip(self, failure: InputError) -> None:
        """Goes on without a fragment that cannot be read."""
        logger.error("%s", failure)
        self.summary.failures.append(str(failure))
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _texts(self) -> Iterator[Texts]:
        """Yields the texts of all wanted fragments, each with the number of its input and its ``Piece`` as payload."""
        self._left = self.plan.limit
        for number in range(len(self.plan.sources)):
            for texts in self._pieces(number):
                part = texts
                if self._left is not None and part.payload.failure is None:
                    part = limited(texts, self._left)
                    self._left -= len(part)
                part.payload_bytes = sum(map(size_of, part.payload.columns.values()))
                part.payload = number, part.payload
                yield part
                if self._left == 0:
                    return

    def _pieces(self, number: int) -> Iterator[Texts]:
        want = self._within_limit(number)
        if want(0) is None:
            return
        name, is_all = self.plan.sources[number].name, ALL in self.plan.selection.keep
        try:
            reader = self.reader(number)
            for texts in reader.pieces(want):
                piece = texts.payload
                if not reader.states_fields:
                    # Lines that are not valid rows: no column is missing, as none could be there.
                    nulls = {one.name: pa.nulls(len(texts), one.type) for one in self.fields}
                    piece.columns = nulls | piece.columns
                piece.columns = cast_columns(piece.columns, self.fields, name, len(texts), is_all=is_all)
                yield texts
        except (InputError, UsageError) as error:
            failure = error if isinstance(error, InputError) else InputError(name, str(error))
            yield failed(0, 0, failure)
        finally:
            self.readers.pop(number, None)

    def _within_limit(self, number: int) -> Want:
        """Returns which fragments of an input are wanted; the rows of complete parts count towards ``--limit``."""
        want = self.progress.want(number)
        if self.plan.limit is None:
            return want
        rows = sum(record.rows for record in self.progress.parts_of(number).values())
        self._left = (self._left or 0) - rows
        return lambda fragment: want(fragment) if self._left else None

    def _first_fields(self) -> list[pa.Field]:
        """Returns the fields of the first input with a schema or rows; without one, those of the first readable one."""
        problem: InputError | None = None
        fields: list[pa.Field] | None = None
        for number in range(len(self.plan.sources)):
            try:
                reader = self.reader(number)
            except InputError as error:
                problem = problem or error
                continue
            if reader.states_fields:
                return reader.fields
            fields = reader.fields if fields is None else fields
            if number:
                # An open file for each of thousands of empty inputs would be too many.
                self.readers.pop(number)
        if fields is None:
            raise problem or UsageError("no input is named")
        return fields

    def _compile(self, description: Mapping[str, Any]) -> None:
        """Updates the manifest with the parts of every process."""
        output = self.plan.output
        if not (output / RECORDS).is_dir():
            return
        with manifest.lock(output):
            progress = Progress(self.plan, read_records(output, self.plan.output_format))
            self.summary.is_complete = progress.is_complete()
            manifest.update(
                output, description, progress.records(), self.summary.failures, done=self.summary.is_complete
            )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
