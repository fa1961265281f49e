"""Texts of any column type as Python strings, with a reason for each value that is not a text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pyarrow import types

from .errors import UsageError

NULL = "the text is null"
NOT_UTF8 = "the text is not valid UTF-8"
_PANDAS_NULLS = ("NAType", "NaTType")
_JSON_NAMES = {bool: "a boolean", int: "a number", float: "a number", dict: "an object", list: "an array"}


@dataclass
class Texts:
    """Some texts to answer.

    Attributes:
        values: The texts; an empty string where ``errors`` has an entry.
        errors: Reason for each value that is not a text, by its position.
        payload: Whatever the caller wants back with the answers.
        payload_bytes: Size of the payload, which limits how many texts are held at once.
    """

    values: list[str]
    errors: dict[int, str] = field(default_factory=dict)
    payload: Any = None
    payload_bytes: int = 0

    def __len__(self) -> int:
        return len(self.values)


def from_values(values: Iterable[object], payload: Any = None) -> Texts:
    """Returns the texts among Python values: strings, nulls, and anything else that JSON or NumPy may hold."""
    texts = Texts([], payload=payload)
    for row, value in enumerate(values):
        reason = None if isinstance(value, str) else _not_a_text(value)
        if isinstance(value, str) and not value.isascii():
            reason = None if _is_unicode(value) else NOT_UTF8
        if reason:
            texts.errors[row] = reason
        texts.values.append("" if reason else str(value))
    return texts


def from_arrow(column: pa.Array | pa.ChunkedArray, name: str, payload: Any = None) -> Texts:
    """Returns the texts of an Arrow column.

    Args:
        column: Strings of any layout, plain or as a dictionary, or nulls.
        name: Name of the column, for the message.
        payload: See ``Texts``.

    Raises:
        UsageError: The column's type is not a string type.
    """
    require_strings(column.type, name)
    chunks: Sequence[pa.Array] = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    try:
        values = [value for chunk in chunks for value in chunk.to_pylist()]
    except UnicodeDecodeError:
        values = [_decoded(value) for chunk in chunks for value in chunk]
        bad = {row: NOT_UTF8 for row, value in enumerate(values) if value is _UNDECODABLE}
        texts = from_values(("" if value is _UNDECODABLE else value for value in values), payload)
        texts.errors |= bad
        return texts
    # The values of a dictionary may be null, too; the column's null count does not include them.
    if column.null_count or types.is_dictionary(column.type):
        return from_values(values, payload)
    # Arrow's strings hold no surrogates: nothing to check.
    return Texts(values, payload=payload)


def require_strings(kind: pa.DataType, name: str) -> None:
    """Rejects a column that cannot hold texts.

    Raises:
        UsageError: Names the column and its type.
    """
    value = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_string(value) or types.is_large_string(value) or types.is_string_view(value) or types.is_null(value):
        return
    raise UsageError(f"column {name!r} has type {kind}; texts must be strings: name another column, or cast this one")


_UNDECODABLE = object()


def _decoded(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return _UNDECODABLE


def _not_a_text(value: object) -> str:
    # NumPy and pandas write NaN, NaT or NA for a missing text.
    if value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in _PANDAS_NULLS:
        return NULL
    kind = next((name for kind, name in _JSON_NAMES.items() if isinstance(value, kind)), f"a {type(value).__name__}")
    return f"the text is {kind}, not a string"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
