"""Reader of JSON Lines: one object per line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .lines import ROW_TOO_LONG, Lines, LineTooLongError
from .types import Problem, RawRow
from .values import NOT_UTF8, SURROGATE, checked, duplicate_names

_EXAMPLE = 'write {"text": ..., ...}'
_ONE_PER_LINE = "write one object per line, for example with: jq -c '.[]' FILE.json > FILE.jsonl"
_SPACE = re.compile(r"[ \t\r\n]*")
# A string, or a bracket outside of strings.
_NESTING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_SCALAR = re.compile(r"[^\s,\]}]+")


def read_jsonl(lines: Lines, path: Path, fields: frozenset[str] | None) -> Iterator[RawRow | Problem]:
    """Yields a row or a problem for each line that is not blank."""
    is_first = True
    while True:
        try:
            # A byte order mark inside the file is left from files that were joined.
            line = lines.read()
        except LineTooLongError:
            yield Problem(path, lines.number, ROW_TOO_LONG)
            continue
        if not line:
            return
        text = line.removeprefix("\ufeff").strip(" \t\r\n")
        if not text:
            continue
        if is_first and (text[0] == "[" or text == "{"):
            yield Problem(path, lines.number, f"is one JSON document, not JSON Lines: {_ONE_PER_LINE}", is_final=True)
            return
        is_first = False
        try:
            pairs = _parse(text, fields)
        except ValueError as error:
            yield Problem(path, lines.number, NOT_UTF8 if SURROGATE.search(text) else str(error))
            continue
        names = tuple(name for name, _ in pairs)
        if repeated := duplicate_names(names, fields):
            yield Problem(path, lines.number, f"has the key {repeated[0]!r} more than once: remove or rename one")
            continue
        values = {name: value for name, value in pairs if fields is None or name in fields}
        yield checked(RawRow(path, lines.number, values, names), text)


class _Object(dict[str, Any]):
    """An object of a line, with its members in order: a plain dictionary would hide repeated keys."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


_DECODER = json.JSONDecoder(object_pairs_hook=_Object)


def _parse(text: str, fields: frozenset[str] | None) -> list[tuple[str, Any]]:
    """Parses a line into the members of its object.

    Raises:
        ValueError: The line is not a JSON object; the message says why.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(_syntax_error(text, error)) from None
    except (RecursionError, ValueError):  # nested deeper than Python's stack, or an integer of thousands of digits
        return _parse_named(text, fields)
    if not isinstance(value, _Object):
        raise ValueError(f"is not a JSON object: {_EXAMPLE}")  # noqa: TRY004 - one class for every invalid line
    return value.pairs


def _syntax_error(text: str, error: json.JSONDecodeError) -> str:
    hint = ""
    if text.endswith(","):
        hint = ": remove the comma at its end"
    elif error.msg == "Extra data":
        hint = ": write one object per line"
    return f"is not valid JSON: {error.msg} (column {error.colno}){hint}"


def _parse_named(text: str, fields: frozenset[str] | None) -> list[tuple[str, Any]]:
    """Parses the named members of an object; the values of all others are skipped, however deeply they nest."""
    pairs: list[tuple[str, Any]] = []
    position = _expect(text, 0, "{")
    while True:
        name, position = _decode(text, _expect(text, position, '"') - 1)
        position = _skip_space(text, _expect(text, position, ":"))
        value, position = _member(text, position, name, fields)
        pairs.append((name, value))
        position = _skip_space(text, position)
        if text[position : position + 1] == "}":
            if position + 1 < len(text):
                raise ValueError(f"is not valid JSON: Extra data (column {position + 2}): write one object per line")
            return pairs
        position = _expect(text, position, ",")


def _member(text: str, position: int, name: str, fields: frozenset[str] | None) -> tuple[Any, int]:
    if fields is not None and name not in fields:
        return None, _skip_value(text, position)
    try:
        return _decode(text, position)
    except RecursionError:
        raise ValueError(f"field {name!r}: is nested too deeply: write a text or a number") from None
    except OverflowError:
        raise ValueError(f"field {name!r}: has an integer with too many digits: write it as a string") from None


def _decode(text: str, position: int) -> tuple[Any, int]:
    """Decodes the value at a position; returns it and the position after it.

    Raises:
        ValueError: It is not valid JSON.
        RecursionError: It nests too deeply.
        OverflowError: An integer in it has too many digits.
    """
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise ValueError(_syntax_error(text, error)) from None
    except ValueError as error:  # Python's limit on the digits of integers
        raise OverflowError from error


def _skip_value(text: str, position: int) -> int:
    """Returns the position after a value."""
    if text[position : position + 1] == '"':
        return _decode(text, position)[1]
    if text[position : position + 1] not in ("[", "{"):
        found = _SCALAR.match(text, position)
        if found is None:
            raise ValueError(f"is not valid JSON: Expecting value (column {position + 1})")
        return found.end()
    depth = 0
    for found in _NESTING.finditer(text, position):
        depth += (found[0] in ("[", "{")) - (found[0] in ("]", "}"))
        if depth == 0:
            return found.end()
    raise ValueError(f"is not valid JSON: a bracket is not closed (column {position + 1})")


def _skip_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _expect(text: str, position: int, character: str) -> int:
    position = _skip_space(text, position)
    if text[position : position + 1] != character:
        raise ValueError(f"is not valid JSON: Expecting {character!r} (column {position + 1})")
    return position + 1
