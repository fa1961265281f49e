"""The properties of a model's traffic that are compared with the reference in its bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polyhead_bundle as bundle

from polyhead_server.process_reports import Measure, MeasureKind

# As in the reference: ranges of the confidence, and the upper end of the first range of lengths, which then doubles.
CONFIDENCE_RANGES = 10
FIRST_TOKENS = 4
NOVELTY_RANGES = 10
# ``polyhead-train`` fits percentiles of the novelty and moments of the embeddings to at most so many texts.
_MAX_EMBEDDED_TEXTS = 1000


def slices(measures: Sequence[Measure]) -> Iterator[tuple[Measure, slice]]:
    """Yields each measure with its place in the counts."""
    begin = 0
    for measure in measures:
        yield measure, slice(begin, begin + measure.width)
        begin += measure.width


def measures_of(manifest: bundle.Manifest) -> tuple[Measure, ...]:
    """Returns the measures that a bundle has a reference for; none for a bundle without a reference."""
    found = manifest.reference
    if found is None:
        return ()
    measures = [one for head in manifest.heads for one in _head_measures(head, found.heads[head.name], found.rows)]
    # One more range than in the reference, for longer texts.
    measures.append(_shares("tokens", _length_names(len(found.tokens)), (*found.tokens, 0.0), found.rows))
    for name, share in (("truncated", found.truncated), ("unknown_tokens", found.unknown_tokens)):
        measures.append(_shares(name, ("no", "yes"), (1 - share, share), found.rows))
    embedded = min(found.rows, _MAX_EMBEDDED_TEXTS)
    if manifest.novelty is not None:
        names = _range_names(NOVELTY_RANGES)
        measures.append(_shares("novelty", names, (1 / NOVELTY_RANGES,) * NOVELTY_RANGES, embedded))
    if found.embedding_mean:
        mean, spread = found.embedding_mean, found.embedding_spread
        measures.append(Measure("", "embedding", MeasureKind.MEAN, (), mean, embedded, spread))
    return tuple(measures)


def _head_measures(head: bundle.Head, found: bundle.HeadReference, rows: int) -> Iterator[Measure]:
    if head.kind == "regression":
        inner = [f"{edge:.4g}" for edge in found.edges[1:-1]]
        names = tuple(f"{low} to {high}" for low, high in zip(["", *inner], [*inner, ""], strict=True))
        names = tuple(name.strip() for name in names)
        yield Measure(head.name, "answers", MeasureKind.SHARES, names, found.answers, rows)
    else:
        kind = MeasureKind.RATES if head.kind == "multilabel" else MeasureKind.SHARES
        yield Measure(head.name, "answers", kind, head.labels, found.answers, rows)
    if found.confidence:
        names = _range_names(CONFIDENCE_RANGES)
        yield Measure(head.name, "confidence", MeasureKind.SHARES, names, found.confidence, rows)


def _shares(name: str, bins: Sequence[str], reference: Sequence[float], texts: int) -> Measure:
    return Measure("", name, MeasureKind.SHARES, tuple(bins), tuple(reference), texts)


def _range_names(count: int) -> tuple[str, ...]:
    return tuple(f"{number / count:g} to {(number + 1) / count:g}" for number in range(count))


def _length_names(count: int) -> list[str]:
    ends = [FIRST_TOKENS * 2**number for number in range(count)]
    begins = [1, *(end + 1 for end in ends)]
    return [*(f"{begin} to {end}" for begin, end in zip(begins, ends, strict=False)), f"{begins[-1]} and more"]
