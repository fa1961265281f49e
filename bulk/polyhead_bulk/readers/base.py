"""What the readers of all formats have in common: fragments, and pieces of a fragment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from polyhead_bulk.errors import InputError
from polyhead_bulk.selection import Selection, find_field, missing_column
from polyhead_bulk.texts import Texts, require_strings

# Rows, and characters of all their values, that are read at once.
PIECE_ROWS = 1024
PIECE_CHARACTERS = 4 * 2**20

# Returns whether a fragment is to be read, by its number; None when that and every later one are not.
Want = Callable[[int], bool | None]


@dataclass
class Piece:
    """Consecutive rows of a fragment, beside their texts.

    Attributes:
        fragment: Number of the fragment in its input.
        first_row: Number of the first row in its input.
        columns: Ids and kept columns by name.
        ends: Whether this is the fragment's last piece.
        is_last: Whether the fragment is known to be the last one of its input.
        failure: Why the rest of the fragment cannot be read; such a piece has no rows.
    """

    fragment: int
    first_row: int
    columns: dict[str, pa.Array]
    ends: bool = False
    is_last: bool = False
    failure: InputError | None = None


class Reader(Protocol):
    """Reads one input.

    Attributes:
        fields: Arrow fields of the ids and kept columns.
        states_fields: Whether the input has a schema or a row, so that ``fields`` is more than a guess.
        rows: Number of rows, where it is known before they are read.
        fragments: Number of fragments, where it is known.
    """

    fields: list[pa.Field]
    states_fields: bool
    rows: int | None
    fragments: int | None

    def pieces(self, want: Want) -> Iterator[Texts]:
        """Yields the texts of each wanted fragment, each with its ``Piece`` as payload."""
        ...


def find_fields(schema: pa.Schema, selection: Selection) -> dict[str, pa.Field]:
    """Returns the fields of the columns to read by their names.

    Raises:
        UsageError: A column is missing, or the texts are not strings.
    """
    fields = {}
    for name in dict.fromkeys([*selection.required(), *selection.kept(schema.names)]):
        fields[name] = find_field(schema, name)
        if fields[name] is None:
            raise missing_column(name, schema.names)
    require_strings(fields[selection.text].type, selection.text)
    return fields


def failed(fragment: int, row: int, failure: InputError) -> Texts:
    """Returns the piece that stands for a fragment which cannot be read."""
    return Texts([], payload=Piece(fragment, row, {}, ends=True, failure=failure))


def limited(texts: Texts, left: int) -> Texts:
    """Cuts a piece to the rows that are left of ``--limit``."""
    piece = texts.payload
    if len(texts) < left or (piece.ends and len(texts) == left):
        return texts
    errors = {row: reason for row, reason in texts.errors.items() if row < left}
    piece.columns = {name: column.slice(0, left) for name, column in piece.columns.items()}
    piece.ends, piece.is_last = True, False
    return Texts(texts.values[:left], errors, piece)


def fragments_of(groups: Iterable[tuple[Texts, dict[str, pa.Array]]], part_rows: int, want: Want) -> Iterator[Texts]:
    """Divides the rows of an input that is read from its beginning to its end into fragments of ``part_rows`` rows.

    Args:
        groups: Texts and kept columns of consecutive rows.
        part_rows: Rows of a fragment; the last one has the rest.
        want: Which fragments to yield; rows of the others are read and dropped.
    """
    row = 0
    held: Texts | None = None
    try:
        for texts, columns in groups:
            for begin, end in _cuts(row, len(texts), part_rows):
                if held is not None:
                    # The number of rows is known only when nothing more comes.
                    yield held
                held = None
                fragment = (row + begin) // part_rows
                wanted = want(fragment)
                if wanted is None:
                    return
                if wanted:
                    held = _part(texts, columns, slice(begin, end), Piece(fragment, row + begin, {}))
                    held.payload.ends = (row + end) % part_rows == 0
            row += len(texts)
    except InputError as failure:
        if held is not None:
            yield held
        yield failed(row // part_rows, row, failure)
        return
    if held is not None:
        held.payload.ends = held.payload.is_last = True
        yield held
    elif row == 0 and want(0):
        yield Texts([], payload=Piece(0, 0, {}, ends=True, is_last=True))


def _cuts(row: int, size: int, part_rows: int) -> Iterator[tuple[int, int]]:
    """Yields the ranges of ``size`` rows after ``row`` that belong to one fragment each."""
    begin = 0
    while begin < size:
        end = min(size, begin + part_rows - (row + begin) % part_rows)
        yield begin, end
        begin = end


def _part(texts: Texts, columns: dict[str, pa.Array], rows: slice, piece: Piece) -> Texts:
    errors = {row - rows.start: reason for row, reason in texts.errors.items() if rows.start <= row < rows.stop}
    piece.columns = {name: column.slice(rows.start, rows.stop - rows.start) for name, column in columns.items()}
    return Texts(texts.values[rows], errors, piece)
