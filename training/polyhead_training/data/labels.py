"""Label values of the data files: conversion into the names of a head's labels."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from polyhead_training.config import HeadConfig

from .readers import require_unicode

# Label index of a row without a label for a head.
UNLABELLED = -1
# Spellings of the two labels of a sigmoid head that files may use besides the labels' names.
_BINARY = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
# A longer list would make the error message unreadable.
_MAX_SHOWN_LABELS = 20


def read_label(head: HeadConfig, value: object) -> str | None:
    """Converts a value of a data file into the name of a label.

    Args:
        head: The head that the label belongs to.
        value: The value in the file: a string, an integer, or a boolean for a sigmoid head.

    Returns:
        The label; None for a row without one.

    Raises:
        ValueError: The value is not a valid label of the head; the message names the field, the value and the labels.
    """
    # Tables without a type for missing integers store integers as floats, and missing ones as NaN.
    if value is None or value != value:  # noqa: PLR0124
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if head.kind == "sigmoid":
        return _read_binary(head, value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        reason = f"{value!r} is a {type(value).__name__}; labels must be strings or integers"
        raise ValueError(f"field {head.field!r}: {reason}")  # noqa: TRY004 - one class for every invalid label
    name = str(value)
    require_unicode(head.field, name)
    if not name:
        raise ValueError(f"field {head.field!r}: the label is empty; write null or omit the field for no label")
    if head.labels is not None and name not in head.labels:
        raise ValueError(_invalid_label(head, name, head.labels))
    return name


def _read_binary(head: HeadConfig, value: object) -> str:
    labels = head.labels or ()
    if isinstance(value, str) and value in labels:
        return value
    index = _BINARY.get(str(value).lower())
    if index is None:
        raise ValueError(_invalid_label(head, str(value), [*labels, "0", "1", "true", "false"]))
    return labels[index]


def _invalid_label(head: HeadConfig, value: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(value, allowed, n=1) or _equal_ignoring_case(value, allowed)
    hint = f"did you mean {close[0]!r}? " if close else ""
    shown = ", ".join(allowed[:_MAX_SHOWN_LABELS]) + (", ..." if len(allowed) > _MAX_SHOWN_LABELS else "")
    return f"field {head.field!r}: {value!r} is not a valid label of head {head.name!r}: {hint}(labels: {shown})"


def _equal_ignoring_case(value: str, allowed: Sequence[str]) -> list[str]:
    return [label for label in allowed if label.lower() == value.strip().lower()]
