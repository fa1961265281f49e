"""What the sections of the training configuration have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section: immutable, without unknown fields, with a description of each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


_Value = TypeVar("_Value")


def one_path_is_a_list(value: object) -> object:
    """Converts a path into a list of paths, before a field is validated."""
    return (value,) if isinstance(value, str) else value


def require(value: _Value, reasons: Sequence[str]) -> _Value:
    """Returns a valid value.

    Raises:
        ValueError: There are reasons against it, one per line of the message.
    """
    if reasons:
        raise ValueError("\n".join(reasons))
    return value
