"""A comparison of traffic with a model's validation texts: its fields, as JSON, and as a table for the terminal."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .printable import printable
from .units import format_duration

if TYPE_CHECKING:  # gRPC takes longer to import than --help should take
    from polyhead.v1 import admin_service_pb2 as pb2

# Bins that are shown of a measure that has drifted: those that changed most.
_SHOWN_BINS = 3


@dataclass(frozen=True)
class DriftBin:
    """One label or range, and the shares of the validation texts and of the recent texts in it."""

    name: str
    reference: float
    observed: float


@dataclass(frozen=True)
class DriftMeasure:
    """One property that was compared. ``polyhead.v1.DriftMeasure`` documents the fields."""

    head: str
    name: str
    texts: int
    effective_texts: float
    distance: float
    p_value: float | None
    drifted: bool
    bins: tuple[DriftBin, ...]

    @property
    def title(self) -> str:
        """Head and property in one line."""
        return f"{self.head} {self.name}".strip()

    def changes(self) -> list[DriftBin]:
        """Returns the bins, those that changed most first."""
        return sorted(self.bins, key=lambda one: -abs(one.observed - one.reference))


@dataclass(frozen=True)
class DriftReport:
    """A comparison. ``polyhead.v1.GetDriftResponse`` documents the fields.

    ``window_s`` is 0 for texts from files.
    """

    model_id: str
    window_s: float
    texts: int
    uncounted_texts: int
    reference_texts: int
    min_distance: float
    max_p_value: float
    measures: tuple[DriftMeasure, ...]

    @property
    def drifted(self) -> list[DriftMeasure]:
        """The measures that have drifted."""
        return [measure for measure in self.measures if measure.drifted]

    @property
    def is_tested(self) -> bool:
        """Whether there are enough texts for any measure."""
        return any(measure.p_value is not None for measure in self.measures)

    @property
    def summary(self) -> str:
        """What was compared, in one line."""
        time = f" of the last {format_duration(self.window_s)}" if self.window_s else ""
        left_out = f", {self.uncounted_texts:,} left out" if self.uncounted_texts else ""
        return f"{self.texts:,} texts{time}{left_out}, compared with {self.reference_texts:,} validation texts"

    @property
    def verdict(self) -> str:
        """What was found, in one line."""
        if self.drifted:
            return f"drift: {', '.join(measure.title for measure in self.drifted)}"
        return "no drift" if self.is_tested else "not enough texts to tell: fewer than two blocks have any"


def from_message(message: pb2.GetDriftResponse) -> DriftReport:
    """Converts the answer of a server."""
    measures = tuple(
        DriftMeasure(
            one.head,
            one.name,
            one.texts,
            one.effective_texts,
            one.distance,
            one.p_value if one.HasField("p_value") else None,
            one.drifted,
            tuple(DriftBin(bin_.name, bin_.reference, bin_.observed) for bin_ in one.bins),
        )
        for one in message.measures
    )
    return DriftReport(
        message.model_id,
        message.window.ToTimedelta().total_seconds(),
        message.texts,
        message.uncounted_texts,
        message.reference_texts,
        message.min_distance,
        message.max_p_value,
        measures,
    )


def as_json(report: DriftReport) -> str:
    """Formats a comparison as a JSON object, with the titles of the measures that have drifted."""
    content = {**dataclasses.asdict(report), "drift": [measure.title for measure in report.drifted]}
    return json.dumps(content, ensure_ascii=False)


def as_text(report: DriftReport) -> str:
    """Formats a comparison as lines of text."""
    header = ("head", "measure", "texts", "distance", "p", "")
    rows = [header, *(_row(measure) for measure in report.measures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [f"{printable(report.model_id)}: {report.summary}", printable(report.verdict), ""]
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:5], widths[2:], strict=False)]
        lines.append("  ".join([*texts, *numbers, row[5]]).rstrip())
    for measure in report.drifted:
        if measure.bins:
            changes = (
                f"{printable(one.name)} {100 * one.reference:.1f} % -> {100 * one.observed:.1f} %"
                for one in measure.changes()[:_SHOWN_BINS]
            )
            lines += ["", f"{printable(measure.title)}: {', '.join(changes)}"]
    return "\n".join(lines)


def _row(measure: DriftMeasure) -> tuple[str, ...]:
    p_value = "" if measure.p_value is None else f"{measure.p_value:.2g}"
    state = "drift" if measure.drifted else ""
    return printable(measure.head), measure.name, f"{measure.texts:,}", f"{measure.distance:.3f}", p_value, state
