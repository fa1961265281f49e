"""What a head accepts as a label: a value of a file to the name of a label, or a reason why not."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from polyhead_training.config import HeadConfig

from .readers import require_unicode

# How files spell the two labels of a sigmoid head, besides their names.
_BINARY = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
# A message that lists a thousand labels helps nobody.
_SHOWN_LABELS = 20


def read_label(head: HeadConfig, value: object) -> str | None:
    """The name of the label that a value stands for.

    Args:
        head: The head whose label it is.
        value: What the file has: a text, a whole number, or true/false for a sigmoid head.

    Returns:
        The label, None where the row has none.

    Raises:
        ValueError: The value is no label of the head; the message names the field, the value and the labels.
    """
    # Tables that know no missing whole number write one as a float, and a missing one as NaN.
    if value is None or value != value:  # noqa: PLR0124
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if head.kind == "sigmoid":
        return _read_binary(head, value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        reason = f"{value!r} is a {type(value).__name__}; labels are texts or whole numbers"
        raise ValueError(f"field {head.field!r}: {reason}")  # noqa: TRY004 - one class for every bad label
    name = str(value)
    require_unicode(head.field, name)
    if not name:
        raise ValueError(f"field {head.field!r}: the label is empty; write null, or leave the field out, for no label")
    if head.labels is not None and name not in head.labels:
        raise ValueError(_unknown(head, name, head.labels))
    return name


def _read_binary(head: HeadConfig, value: object) -> str:
    labels = head.labels or ()
    if isinstance(value, str) and value in labels:
        return value
    index = _BINARY.get(str(value).lower())
    if index is None:
        raise ValueError(_unknown(head, str(value), [*labels, "0", "1", "true", "false"]))
    return labels[index]


def _unknown(head: HeadConfig, value: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(value, allowed, n=1) or _same_but_for_case(value, allowed)
    hint = f"did you mean {close[0]!r}? " if close else ""
    shown = ", ".join(allowed[:_SHOWN_LABELS]) + (", ..." if len(allowed) > _SHOWN_LABELS else "")
    return f"field {head.field!r}: {value!r} is no label of the head {head.name!r}: {hint}(labels: {shown})"


def _same_but_for_case(value: str, allowed: Sequence[str]) -> list[str]:
    return [label for label in allowed if label.lower() == value.strip().lower()]
