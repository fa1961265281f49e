"""Reader of the rows of sources, which collects what is wrong with them.

::

    files, hub datasets --readers.read_source--> RawRow --make--> item
                                                        --ValueError--> Problem
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeVar

from polyhead_rows import Problem, RawRow

from polyhead_training.errors import DataError
from polyhead_training.suggestions import did_you_mean, folded, listed, shown, type_name

from .readers import Source, read_source
from .targets import number_in

# Problems in one error message: enough to show a pattern, few enough to read.
_MAX_PROBLEMS = 100
# Characters at the start of a text of which one is almost always visible.
_MAX_BLANK_CHARACTERS = 100

_Item = TypeVar("_Item")


class RowReader:
    """Reads sources one after the other and collects their problems.

    Attributes:
        problems: The invalid rows, at most 100.
        found: Total number of invalid rows.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.found = 0

    def raise_problems(self) -> None:
        """Raises the problems found so far.

        Raises:
            DataError: There are any.
        """
        if self.problems:
            raise DataError(self.problems, self.found)

    def read(
        self,
        sources: Sequence[Source],
        required: Mapping[str, str],
        make: Callable[[RawRow, int], _Item],
        optional: Sequence[str] = (),
        adapt: Callable[[RawRow], RawRow] = lambda raw: raw,
    ) -> list[_Item]:
        """Reads the rows of sources.

        Args:
            sources: Files and hub datasets.
            required: Fields that each row must have, and the setting that names each; empty for a fixed name.
            make: Converts a row, with the index of its source; raises ValueError for an invalid one.
            optional: Other fields to read.
            adapt: Renames fields of a row before anything looks at them.
        """
        items = []
        for index, source in enumerate(sources):
            for number, raw in enumerate(_raw_rows(source, {*required, *optional})):
                if isinstance(raw, Problem):
                    self.add(raw)
                    continue
                raw = adapt(raw)  # noqa: PLW2901
                try:
                    _require(raw, required)
                    items.append(make(raw, index))
                except ValueError as error:
                    self.add(raw.problem(str(error)))
                    if number == 0 and not required.keys() <= raw.values.keys():
                        # Every other row of the source would report the same problem.
                        break
        return items

    def add(self, problem: Problem) -> None:
        """Records a problem; those beyond the first 100 are only counted."""
        self.found += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)


def _raw_rows(source: Source, fields: Collection[str]) -> Iterator[RawRow | Problem]:
    """Yields the rows of a source; an unreadable source yields a problem instead."""
    try:
        yield from read_source(source, fields)
    except DataError as error:
        yield from error.problems


def _require(raw: RawRow, required: Mapping[str, str]) -> None:
    for field, setting in required.items():
        if field not in raw.values:
            names = listed(raw.names) or "none at all"
            hint = did_you_mean(field, raw.names)
            if raw.names and required.keys() >= set(raw.names):
                fix = "add it, or remove the row"
            else:
                fix = f"set {setting} to one of these" if setting else "rename the field"
            raise ValueError(f"has no field {field!r}, only {names}: {f'{hint} {fix}' if hint else fix}")


def read_text(raw: RawRow, field: str) -> str:
    """Returns the text in a field.

    Raises:
        ValueError: It is not a string, or blank.
    """
    text = raw.values[field]
    if not isinstance(text, str):
        kind = "" if text is None else f" of type {type_name(text)}"
        raise ValueError(f"field {field!r}: {shown(text)}{kind} is not a valid text; write a string or remove the row")  # noqa: TRY004
    # Invisible characters alone are no text either.
    if not folded(text[:_MAX_BLANK_CHARACTERS]) and not folded(text):
        raise ValueError(f"field {field!r}: {shown(text)} is not a valid text; fill it in or remove the row")
    return text


def read_number(raw: RawRow, field: str) -> float:
    """Returns the number in a field.

    Raises:
        ValueError: It is not a finite number, or a string that spells one.
    """
    value = raw.values[field]
    number = number_in(value)
    if math.isnan(number):
        raise ValueError(f"field {field!r}: {shown(value)} is not a finite number; correct it or remove the row")
    return number
