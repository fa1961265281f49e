"""Label values of the data files: conversion into the names of a head's labels.

A value has one name in every format: programs write the number one as ``1``, ``1.0`` or a decimal, and true as
``true``, ``True`` or ``TRUE``, depending on the format and on the other values of the column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache

from polyhead_training.model_config import HeadConfig
from polyhead_training.suggestions import did_you_mean, shown, type_name

# Label index of a row without a label for a head.
UNLABELLED = -1
# Names of the two labels of a sigmoid head that files may use besides the labels' own names.
_BINARY = {"0": 0, "1": 1, "false": 0, "true": 1}
_WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")
# A longer list would make the error message unreadable.
_MAX_SHOWN_LABELS = 20


def read_label(head: HeadConfig, value: object) -> str | None:
    """Converts a value of a data file into the name of a label.

    Args:
        head: The head that the label belongs to.
        value: The value in the file: a string, a number or a boolean.

    Returns:
        The label; None for a row without one: null, an empty string or a number that is NaN.

    Raises:
        ValueError: The value is not a valid label of the head; the message names the field, the value and the labels.
    """
    if value is None or value == "" or value != value:  # noqa: PLR0124
        return None
    labels = head.labels
    if labels is not None and isinstance(value, str) and value in labels:
        return value
    try:
        name = label_name(value)
    except ValueError as error:
        raise ValueError(f"field {head.field!r}: {error}") from None
    if labels is None:
        return name
    configured = _by_name(labels).get(name)
    if configured is None and head.kind == "sigmoid" and name in _BINARY:
        return labels[_BINARY[name]]
    if configured is None:
        allowed = [*labels, *_BINARY] if head.kind == "sigmoid" else labels
        raise ValueError(_invalid_label(head, value if isinstance(value, str) else name, allowed))
    return configured


def label_name(value: object) -> str:
    """Returns the name of a label value, the same for equal values whatever format holds them.

    Numbers without a fraction are integers, ``1.0`` and ``"1.0"`` as ``1``; all other strings and numbers are
    unchanged. Booleans, and strings that spell one, are ``true`` and ``false``.

    Raises:
        ValueError: The value is blank, or of a type that cannot be a label.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal) and math.isfinite(value):
        return str(int(value)) if value == int(value) else format(value, "f" if isinstance(value, Decimal) else "")
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is a {type_name(value)}; labels must be strings, numbers or booleans")  # noqa: TRY004
    if not value.strip():
        raise ValueError(f"the label {shown(value)} is blank; write null, or leave it empty, for no label")
    if whole := _WHOLE_NUMBER.fullmatch(value):
        return "0" if whole[1] == "-0" else whole[1]
    return value.lower() if value.lower() in ("true", "false") else value


@lru_cache(maxsize=64)
def _by_name(labels: tuple[str, ...]) -> dict[str, str]:
    """Returns the configured labels by the names that their values have."""
    return {label_name(label) if label.strip() else label: label for label in reversed(labels)}


def _invalid_label(head: HeadConfig, value: str, allowed: Sequence[str]) -> str:
    hint = did_you_mean(value, allowed)
    names = ", ".join(name if name.isprintable() else repr(name) for name in allowed[:_MAX_SHOWN_LABELS])
    more = ", ..." if len(allowed) > _MAX_SHOWN_LABELS else ""
    where = f"field {head.field!r}: {shown(value)} is not a valid label of head {head.name!r}"
    return f"{where}: {hint}{' ' if hint else ''}(labels: {names}{more})"
