"""Rows that a server has collected and people have labelled: what is known about them, and which of them train.

::

    row of polyhead-serve --collect --named_as_configured--> RawRow --read_collected--> Collected
    training rows --hold_out--> training rows, CollectedRows (counts, the random part, the rows held out)

A row was chosen at random, or because the model was unsure of it. The random part alone is like the texts of clients.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polyhead_rows import RawRow

from polyhead_training.model_config import HeadConfig

from .duplicates import normalize
from .targets import Target

if TYPE_CHECKING:
    from .dataset import Row

# Fields of a collected row besides those of the heads, which have the heads' names.
META = "_collected"
TEXT = "text"
_RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Collected:
    """What the server wrote about a row.

    Attributes:
        reasons: Why the text was chosen; ``random`` if a draw that no answer influences did so.
        model: Id of the model that answered.
        predictions: Its answers by head name.
    """

    reasons: tuple[str, ...]
    model: str
    predictions: Mapping[str, Target]

    @property
    def is_random(self) -> bool:
        """Whether the row belongs to the random part."""
        return _RANDOM in self.reasons


@dataclass(frozen=True)
class CollectedRows:
    """The collected rows of a run.

    Attributes:
        labelled: Number of rows with a label for any head.
        unlabelled: Number of others, which are ignored.
        reasons: Number of labelled rows by reason; a row with several counts for each.
        random: The labelled rows of the random part, those held out included.
        held_out: Rows of the random part that do not train, to compare the model with the one that served.
    """

    labelled: int
    unlabelled: int
    reasons: Mapping[str, int]
    random: tuple[Row, ...]
    held_out: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the part of ``data.json``."""
        return {
            "labelled": self.labelled,
            "unlabelled": self.unlabelled,
            "reasons": dict(self.reasons),
            "random": len(self.random),
            "held_out": len(self.held_out),
        }

    def line(self) -> str:
        """Returns the line of the data report for a terminal."""
        total = self.labelled + self.unlabelled
        ignored = f"; {self.unlabelled:,} without a label are ignored" if self.unlabelled else ""
        held = f"; {len(self.held_out):,} of its random part are held out" if self.held_out else ""
        return f"collected: {self.labelled:,} of {total:,} rows are labelled{ignored}{held}"


def named_as_configured(raw: RawRow, text: str, heads: Sequence[HeadConfig]) -> RawRow:
    """Renames the fields of a collected row, which has those of the model, as the configuration does.

    Args:
        raw: Any row; one that was not collected is returned as it is.
        text: Field of the configuration that contains the text.
        heads: The configured heads.
    """
    if raw.values.get(META) is None:
        return raw
    fields = {TEXT: text, **{head.name: head.field for head in heads}}
    values = dict(raw.values)
    for name, field in fields.items():
        if name in raw.values:
            values[field] = raw.values[name]
    return RawRow(raw.path, raw.line, values, tuple(fields.get(name, name) for name in raw.names))


def read_collected(raw: RawRow) -> Collected | None:
    """Returns what the server wrote about a row; None for a row that was not collected.

    Raises:
        ValueError: The field was changed.
    """
    value = raw.values.get(META)
    if value is None:
        return None
    try:
        # In a CSV file, the object is a text.
        content: Any = json.loads(value) if isinstance(value, str) else value
        predictions = {str(head): _prediction(one) for head, one in content["predictions"].items()}
        return Collected(tuple(map(str, content["reasons"])), str(content["model"]), predictions)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "keep it as the server wrote it, or remove it"
        raise ValueError(f"field {META!r}: is not that of a collected row ({type(error).__name__}); {fix}") from None


def _prediction(content: Mapping[str, Any]) -> Target:
    if "labels" in content:
        return tuple(sorted(map(str, content["labels"])))
    if "label" in content:
        return str(content["label"])
    return float(content["value"])


def hold_out(
    train: Sequence[Row], test: Sequence[Row], unlabelled: int, fraction: float
) -> tuple[list[Row], CollectedRows | None]:
    """Separates rows of the random part from the training rows.

    A row is held out by a hash of its text, so that later runs with more rows hold out the same ones. A text that also
    occurs in another training row, apart from case, accents and punctuation, is not held out.

    Args:
        train: The training rows, none of them a collected row without labels.
        test: The test rows; their collected rows of the random part count as held out.
        unlabelled: Number of collected rows without labels.
        fraction: Share of the random part to hold out, 0 to 1.

    Returns:
        The rows that train, and what is known of the collected ones; None if there are none.
    """
    every = [row for row in (*train, *test) if row.collected]
    if not every and not unlabelled:
        return list(train), None
    held = {id(row) for row in train if _is_random(row) and _position(row.text) < fraction}
    known = {_folded(row.text) for row in train if id(row) not in held}
    held -= {id(row) for row in train if id(row) in held and _folded(row.text) in known}
    counts = Counter(reason for row in every if row.collected for reason in row.collected.reasons)
    found = CollectedRows(
        labelled=len(every),
        unlabelled=unlabelled,
        reasons=counts,
        random=tuple(filter(_is_random, every)),
        held_out=tuple(row for row in train if id(row) in held) + tuple(filter(_is_random, test)),
    )
    return [row for row in train if id(row) not in held], found


def is_selected(row: Row) -> bool:
    """Returns whether a row was collected for what the model answered, so that it does not stand for others."""
    return row.collected is not None and not row.collected.is_random


def _is_random(row: Row) -> bool:
    return row.collected is not None and row.collected.is_random


def _folded(text: str) -> str:
    """Returns a text without what hardly changes it; all of it if it has no letters and digits."""
    return normalize(text) or text


def _position(text: str) -> float:
    """Returns a number from 0 to 1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56
