"""Reader of CSV files (RFC 4180): a header, then one row per record; quoted cells may contain commas and line ends."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .limits import MAX_ROW_CHARACTERS
from .lines import ROW_TOO_LONG, Lines, LineTooLongError
from .types import Problem, RawRow
from .values import checked, duplicate_names

# First line that Excel writes and reads to declare the separator.
_SEPARATOR_LINE = re.compile(r'"?sep=([^"\r\n]?)"{0,2}[\r\n]*', re.IGNORECASE)
_OTHER_SEPARATORS = (";", "\t", "|")
_DOUBLE_QUOTES = 'write each double quote inside a quoted cell twice ("")'


def read_csv(lines: Lines, path: Path, fields: frozenset[str] | None) -> Iterator[RawRow | Problem]:
    """Yields a row or a problem for each record; the first record is the header."""
    # The module's limit counts characters of a cell, for the whole process. Rows are limited here, in their lines.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_CHARACTERS))
    records = _Records(lines, path)
    first = records.first_line()
    if isinstance(first, Problem):
        yield first
        return
    separator = records.separator
    if separator == "," and (other := _other_separator(first, fields)):
        shown, declared = ("tabs", "sep=<tab>") if other == "\t" else (repr(other), f"sep={other}")
        save = f"save the file with commas, or write the line {declared} above the header"
        yield Problem(path, lines.number, f"cells are separated by {shown}, not by commas: {save}", is_final=True)
        return
    header: tuple[str, ...] | None = None
    columns: dict[str, int] = {}
    for record in records:
        if isinstance(record, Problem):
            yield record
            if header is None:  # the columns of all other records are unknown
                return
            continue
        if header is None:
            header = tuple(record)
            if repeated := duplicate_names(header, fields):
                reason = f"has more than one column {repeated[0]!r} among its {len(header):,} columns"
                yield Problem(path, records.start, f"{reason}: remove or rename one", is_final=True)
                return
            columns = {name: index for index, name in enumerate(header) if fields is None or name in fields}
        elif len(record) == len(header):
            values: dict[str, object] = {name: record[index] or None for name, index in columns.items()}
            yield checked(RawRow(path, records.start, values, header), records.text())
        elif record:
            counts = f"{len(record)} cells but the header has {len(header)}"
            yield Problem(path, records.start, f"has {counts}: quote texts that contain {_shown(separator)}")


class _Records:
    """Splits lines into records, and remembers the lines of the current record for its position and for errors.

    Attributes:
        separator: The separator of cells.
        start: Line on which the current record starts.
    """

    def __init__(self, lines: Lines, path: Path) -> None:
        self.separator = ","
        self.start = 1
        self._lines = lines
        self._path = path
        self._pending = ""
        self._record: list[str] = []
        self._size = 0

    def first_line(self) -> str | Problem:
        """Reads the first line of the header, and the separator that a line above it may declare."""
        try:
            line = self._lines.read()
            if declared := _SEPARATOR_LINE.fullmatch(line):
                if not declared[1]:
                    reason = "declares no separator: write it after sep=, or remove the line"
                    return Problem(self._path, self._lines.number, reason, is_final=True)
                self.separator = declared[1]
                line = self._lines.read()
            while line and not line.strip("\r\n"):
                line = self._lines.read()
        except LineTooLongError:
            return Problem(self._path, self._lines.number, ROW_TOO_LONG, is_final=True)
        self._pending = line
        return line

    def text(self) -> str:
        """Returns the text of the current record."""
        return "".join(self._record)

    def __iter__(self) -> Iterator[list[str] | Problem]:
        reader = csv.reader(iter(self._next_line, ""), delimiter=self.separator, strict=True)
        while True:
            self._record.clear()
            self._size = 0
            self.start = self._lines.number + (not self._pending)
            try:
                yield next(reader)
            except StopIteration:
                return
            except LineTooLongError:
                yield (problem := self._too_long())
                if problem.is_final:
                    return
            except csv.Error:
                # The start of the next record is unknown.
                yield self._malformed()
                return

    def _next_line(self) -> str:
        """Returns the next line of the current record; an empty string at the end of the file."""
        line = self._pending or self._lines.read(MAX_ROW_CHARACTERS - self._size)
        self._pending = ""
        if line:
            self._record.append(line)
            self._size += len(line)
        return line

    def _too_long(self) -> Problem:
        opened = _open_quote(self._record, self.separator)
        if opened is None:
            return Problem(self._path, self.start, ROW_TOO_LONG)
        reason = f"the quoted cell that starts here makes its row exceed {MAX_ROW_CHARACTERS:,} characters"
        return self._final(opened, f"{reason}: close the quote, or {_DOUBLE_QUOTES}")

    def _malformed(self) -> Problem:
        opened = _open_quote(self._record, self.separator)
        if opened is not None:
            return self._final(
                opened, f"the quoted cell that starts here is never closed: close it, or {_DOUBLE_QUOTES}"
            )
        start, end = _bad_quote(self._record, self.separator)
        where = "" if start == end else f" on line {self.start + end}"
        reason = f"the quoted cell that starts here is followed by text after its closing quote{where}"
        return self._final(start, f"is not valid CSV: {reason}: {_DOUBLE_QUOTES}")

    def _final(self, offset: int, reason: str) -> Problem:
        return Problem(self._path, self.start + offset, reason, is_final=True)


def _quoted_cells(record: Sequence[str], separator: str) -> Iterator[tuple[int, int | None, str]]:
    """Yields for each quoted cell the lines of its opening and closing quotes, from 0, and the text that follows it.

    The closing line is None if the cell is never closed. Quotes inside unquoted cells are ordinary characters.
    """
    cell = re.compile(f"([{re.escape(separator)}\r\n])")
    opened: int | None = None
    for number, line in enumerate(record):
        position = 0
        while position < len(line):
            if opened is None:
                if line[position] != '"':
                    found = cell.search(line, position)
                    position = found.end() if found else len(line)
                    continue
                opened, position = number, position + 1
            position = line.find('"', position)
            if position < 0:
                break
            if line[position + 1 : position + 2] == '"':
                position += 2
                continue
            yield opened, number, line[position + 1 : position + 2]
            opened, position = None, position + 1
            if line[position : position + 1] == separator:
                position += 1
    if opened is not None:
        yield opened, None, ""


def _open_quote(record: Sequence[str], separator: str) -> int | None:
    """Returns the line, from 0, of a quote that the record never closes; None if it closes all of them."""
    return next((start for start, end, _ in _quoted_cells(record, separator) if end is None), None)


def _bad_quote(record: Sequence[str], separator: str) -> tuple[int, int]:
    """Returns the lines, from 0, of the opening and closing quotes of the first cell that text follows."""
    for start, end, following in _quoted_cells(record, separator):
        if end is not None and following not in ("", "\r", "\n", separator):
            return start, end
    return 0, 0


def _other_separator(header: str, fields: frozenset[str] | None) -> str | None:
    """Returns the separator of a header whose cells are not separated by commas; None if they are."""
    cells = _cells(header, ",")
    if len(cells) > 1 and (fields is None or fields & cells):
        return None
    for separator in _OTHER_SEPARATORS:
        others = _cells(header, separator)
        if len(others) > 1 and (fields & others - cells if fields else len(cells) == 1):
            return separator
    if len(cells) == 1 and not (fields and fields & cells):
        return next((separator for separator in _OTHER_SEPARATORS if len(_cells(header, separator)) > 1), None)
    return None


def _cells(line: str, separator: str) -> set[str]:
    return set(next(csv.reader([line], delimiter=separator), []))


def _shown(separator: str) -> str:
    return {",": "a comma", "\t": "a tab"}.get(separator, repr(separator))
