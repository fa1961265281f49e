"""True answers of the rows for heads of every kind, as read from a file. Imports no torch, which takes seconds.

::

    value of a field --read_target--> Target

A Target is a label (softmax, sigmoid, ordinal), a sorted tuple of labels (multilabel) or a number (regression).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Iterable, Sequence
from decimal import Decimal
from typing import TypeAlias

from polyhead_training.model_config import HeadConfig
from polyhead_training.suggestions import shown

from .labels import label_name, read_label

Target: TypeAlias = str | tuple[str, ...] | float

# Separators of labels in files, besides that of the head.
_SEPARATORS = (",", ";", "|", "\t")
# Squares of larger numbers, of which the loss is the mean, are beyond the range of float32.
_MAX_NUMBER = 1e18


def read_target(head: HeadConfig, value: object) -> Target | None:
    """Converts a value of a data file into the true answer of a head.

    Args:
        head: The head.
        value: The value in the file. Multilabel heads: a list, a string with a JSON list, or a string of labels with
            the head's separator between them. Others: a string, a number or a boolean.

    Returns:
        The answer; None for a row without one: null, an empty string or a number that is NaN.

    Raises:
        ValueError: The value is not valid for the head; the message names the field, the value and the fix.
    """
    if value is None or value == "" or value != value:  # noqa: PLR0124
        return None
    return _READERS[head.kind](head, value)


def target_labels(target: Target | None) -> tuple[str, ...]:
    """Returns the labels that an answer names: one, those of a list, or none for a number or no answer."""
    if isinstance(target, str):
        return (target,)
    return target if isinstance(target, tuple) else ()


def other_separator(head: HeadConfig, label: str, labels: Container[str]) -> str:
    """Returns the separator that divides a name into other labels of a multilabel head; an empty string without one."""
    if head.kind == "multilabel":
        for separator in _SEPARATORS:
            parts = [part.strip() for part in label.split(separator)]
            if separator != head.separator and len(parts) > 1 and any(part in labels for part in parts):
                return separator
    return ""


def number_in(value: object) -> float:
    """Returns the finite number that a value is or spells, NaN if there is none."""
    try:
        # Numbers of a CSV file are strings.
        is_number = isinstance(value, str | int | float | Decimal) and not isinstance(value, bool)
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def label_numbers(labels: Iterable[str]) -> list[float] | None:
    """Returns the numbers that the labels spell; None unless each spells one."""
    numbers = [number_in(label) for label in labels]
    return None if not numbers or any(map(math.isnan, numbers)) else numbers


def label_values(labels: Sequence[str]) -> list[float]:
    """Returns the values of ordered labels: their numbers, or else their places, counted from 1."""
    return label_numbers(labels) or [float(place) for place in range(1, len(labels) + 1)]


def _read_one(head: HeadConfig, value: object) -> Target | None:
    if isinstance(value, list | tuple):
        fix = 'name one label, or set kind = "multilabel"'
        reason = f"{shown(value)} is a list, but head {head.name!r} ({head.kind}) has one label per row; {fix}"
        raise ValueError(f"field {head.field!r}: {reason}")  # noqa: TRY004
    return read_label(head, value)


def _read_many(head: HeadConfig, value: object) -> Target | None:
    if isinstance(value, str) and value not in (head.labels or ()):
        value = _listed(head, value)
    names = value if isinstance(value, list | tuple) else [value]
    found = []
    for name in names:
        label = _read_element(head, name)
        if label is None:
            reason = f"{shown(value)} has an element without a label ({shown(name)}); remove the element"
            raise ValueError(f"field {head.field!r}: {reason}, or write null for a row that is not labelled")
        found.append(label)
    # Sorted, so that rows with the same labels are equal.
    return tuple(sorted(set(found)))


def _read_element(head: HeadConfig, name: object) -> str | None:
    try:
        return read_label(head, name)
    except ValueError:
        if isinstance(name, str) and (separator := other_separator(head, name, head.labels or ())):
            reason = f"{shown(name)} is not a valid label of head {head.name!r}, but a list of them"
            fix = f"set its separator = {json.dumps(separator)}"
            raise ValueError(
                f"field {head.field!r}: {reason}; {fix}, or write {head.separator!r} between labels"
            ) from None
        raise


def _listed(head: HeadConfig, text: str) -> list[object]:
    """Returns the elements of a list that a string spells, as in CSV files."""
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(head.separator)]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        example = '["a", "b"]'
        raise ValueError(
            f"field {head.field!r}: {shown(text)} is not a valid JSON list ({error}); write {example}"
        ) from None
    return list(found)


def _read_ordered(head: HeadConfig, value: object) -> Target | None:
    numbers = label_numbers(head.labels) if head.labels else None
    if head.labels and numbers is None:
        return _read_one(head, value)
    number = number_in(value)
    if numbers is None and not math.isnan(number):
        return label_name(number)
    if numbers and head.labels and number in numbers:
        return head.labels[numbers.index(number)]
    if math.isnan(number):
        reason = f"{shown(value)} is not a number, as the labels"
        fix = f"write a number such as 5{'' if numbers else ', or name the labels in their order in labels'}"
    else:
        reason, fix = f"{shown(value)} is not a valid label", "correct it, or add it to labels"
    known = f" (labels: {', '.join(head.labels)})" if head.labels else ""
    raise ValueError(f"field {head.field!r}: {reason} of ordinal head {head.name!r}; {fix}{known}")


def _read_number(head: HeadConfig, value: object) -> Target | None:
    number = number_in(value)
    if math.isnan(number):
        fix = "write a finite number, or null for a row without one"
        raise ValueError(f"field {head.field!r}: {shown(value)} is not a finite number for head {head.name!r}; {fix}")
    if abs(number) > _MAX_NUMBER:
        reason = f"{shown(value)} is beyond {_MAX_NUMBER:g}, the largest number for head {head.name!r}"
        raise ValueError(f"field {head.field!r}: {reason}; choose a larger unit")
    return number


_READERS: dict[str, Callable[[HeadConfig, object], Target | None]] = {
    "softmax": _read_one,
    "sigmoid": _read_one,
    "multilabel": _read_many,
    "ordinal": _read_ordered,
    "regression": _read_number,
}
