"""The comparison of a candidate with the served model, as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from polyhead.v1 import admin_service_pb2 as pb2

from .printable import printable
from .units import format_duration

# Most frequent changes of a head that are shown.
_SHOWN_CHANGES = 5
# Quantile of the normal distribution for intervals of 95 %.
_Z = 1.959963984540054
# Age of figures that is mentioned.
_OLD_S = 15.0
_SPACES = {
    pb2.EmbeddingComparison.SPACE_UNSPECIFIED: "too few texts to compare the spaces",
    pb2.EmbeddingComparison.SPACE_SAME: "the same space: vectors of both models can stand in one index",
    pb2.EmbeddingComparison.SPACE_COMPARABLE: "other weights, but close: vectors of both models can stand in one index",
    pb2.EmbeddingComparison.SPACE_OTHER: "another space: an index must be built again",
    pb2.EmbeddingComparison.SPACE_OTHER_SIZE: "another size: an index must be built again",
}


class Change(NamedTuple):
    """A cell of a matrix of labels in which the answers differ."""

    texts: int
    served: str
    candidate: str


def wilson(count: int, total: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share (Wilson score); of no texts, every share is possible."""
    if not total:
        return 0.0, 1.0
    share, square = count / total, _Z**2 / total
    center = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / total + square / (4 * total)) / (1 + square)
    return max(center - half, 0.0), min(center + half, 1.0)


def as_text(found: pb2.CompareResponse) -> str:
    """Formats a comparison for a terminal."""
    lines = [f"served: {found.served_model_id}", f"candidate: {found.candidate.model_id} ({found.candidate.bundle})"]
    if found.HasField("shadow"):
        lines += shadow_lines(found.shadow)
    if found.HasField("canary"):
        lines += canary_lines(found.canary)
    return "\n".join(map(printable, lines))


def shadow_lines(found: pb2.ShadowComparison) -> Iterator[str]:
    """Yields a line for each fact of a comparison on live texts."""
    yield f"texts: {seen(found)}"
    if found.failure:
        yield f"the comparison has ended: {found.failure}"
    elif (age_s := found.report_age.ToTimedelta().total_seconds()) > _OLD_S:
        yield f"no compute is left for the candidate: these figures are {format_duration(age_s)} old"
    yield f"embedding: {embedding(found.embedding)}"
    for head in found.heads:
        yield f"{head.name}: {agreement(head)}"
        yield from (f"  {note}" for note in notes(head))
        yield from (f"  {text.served} becomes {text.candidate}: {text.text}" for text in head.texts)
    yield from (f"{name}: not compared: {reason}" for name, reason in sorted(found.not_compared.items()))
    yield f"latency per text: served {latency(found.served_latency)}; candidate {latency(found.candidate_latency)}"


def seen(found: pb2.ShadowComparison) -> str:
    """Returns how many texts the candidate saw."""
    parts = [
        f"{found.answered:,} answered",
        f"{found.selected:,} selected ({percent(found.share)})",
        f"{found.compared:,} compared",
    ]
    if found.dropped:
        parts.append(f"{found.dropped:,} dropped, as no compute was left")
    if found.other_model:
        parts.append(f"{found.other_model:,} answered by another served model")
    parts += [f"{count:,} failed ({reason})" for reason, count in sorted(found.errors_total.items())]
    return ", ".join(parts)


def embedding(found: pb2.EmbeddingComparison) -> str:
    """Describes the embeddings."""
    text = _SPACES.get(found.space, "unknown")
    if found.HasField("mean_cosine"):
        text += (
            f"; cosine {found.mean_cosine:.4f} on average, {found.low_cosine:.4f} at the 5th percentile, "
            f"{found.least_cosine:.4f} at least"
        )
    return text


def agreement(found: pb2.HeadComparison) -> str:
    """Describes the answers of a head."""
    parts: list[str] = []
    if found.kind != "regression":
        low, high = wilson(found.changed, found.compared)
        value = found.changed / found.compared if found.compared else 0.0
        parts.append(
            f"{found.changed:,} of {found.compared:,} changed, {percent(value)} "
            f"(95 %: {100 * low:.2f} to {100 * high:.2f})"
        )
    if found.HasField("weighted"):
        parts.append(f"weighted by confidence {percent(found.weighted)}")
    if found.HasField("difference"):
        parts.append(f"mean difference {found.difference:.4f}")
    return ", ".join(parts)


def notes(found: pb2.HeadComparison) -> Iterator[str]:
    """Yields labels that one model alone has, and the most frequent changes."""
    for labels, side in ((found.only_served, "served model"), (found.only_candidate, "candidate")):
        if labels:
            yield f"labels of the {side} alone: {', '.join(labels)}"
    all_changes = changes(found)
    for one in all_changes[:_SHOWN_CHANGES]:
        verb = ", " if found.kind == "multilabel" else " becomes "
        yield f"{one.served}{verb}{one.candidate}: {one.texts:,}"
    left = all_changes[_SHOWN_CHANGES:]
    other = sum(one.texts for one in left) + found.other_texts
    if other:
        yield f"other changes: {other:,} texts"


def changes(found: pb2.HeadComparison) -> list[Change]:
    """Returns the cells in which the answers differ, most texts first."""
    multilabel = found.kind == "multilabel"
    cells = [
        Change(cell.texts, found.rows[cell.row], found.columns[cell.column])
        for cell in found.cells
        if cell.column != (0 if multilabel else cell.row)
    ]
    return sorted(cells, key=lambda one: -one.texts)


def canary_lines(found: pb2.CanaryState) -> Iterator[str]:
    """Yields a line for each fact of a canary."""
    state = f"rolled back: {found.rollback}" if found.rollback else f"answers {percent(found.share)} of the callers"
    yield f"canary: {state}"
    for name, side in (("served", found.served), ("candidate", found.candidate)):
        failed = sum(side.errors_total.values())
        reasons = f" ({', '.join(sorted(side.errors_total))})" if failed else ""
        yield f"  {name}: {side.texts:,} texts, {failed:,} failed{reasons}, latency {latency(side.latency)}"


def latency(found: pb2.Latency) -> str:
    """Describes durations."""
    if not found.texts:
        return "unknown"
    values = (("median", found.p50), ("p90", found.p90), ("p99", found.p99))
    return ", ".join(f"{name} {milliseconds(value)}" for name, value in values)


def milliseconds(duration: Any) -> str:
    """Formats a duration."""
    return f"{duration.ToNanoseconds() / 1e6:.3g} ms"


def percent(value: float) -> str:
    """Formats a share."""
    return f"{100 * value:.2f} %"
