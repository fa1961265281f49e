"""Dataclasses as JSON values, for messages between the processes of a server."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from pathlib import Path
from typing import Any, cast

# A JSON object: its values are whatever ``json.loads`` returns.
Values = dict[str, Any]


def to_json(value: Any) -> Values:
    """Converts a dataclass to values that JSON has, but for paths, whose text counts; a tuple becomes a list."""
    return dataclasses.asdict(value)


def from_json(kind: Any, value: Any) -> Any:
    """Converts JSON values to a type: a dataclass, or one of the types that its fields consist of.

    Raises:
        KeyError: The dataclass has no such field.
        TypeError: A field is missing, or a value has another type.
        ValueError: A value is out of range.
        OverflowError: A number is too large.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    result: Any
    if origin is types.UnionType:
        result = None if value is None else from_json(arguments[0], value)
    elif dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = {name: from_json(hints[name], one) for name, one in _require(dict, value).items()}
        result = cast(Any, kind)(**fields)
    elif origin is tuple:
        result = tuple(from_json(arguments[0], one) for one in _require(list, value))
    elif origin is dict:
        result = {name: from_json(arguments[1], one) for name, one in _require(dict, value).items()}
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        result = kind(value)
    elif kind is Path:
        result = Path(_require(str, value))
    elif kind is float and type(value) is int:
        result = float(value)
    else:
        result = _require(kind, value)
    return result


def _require(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value
