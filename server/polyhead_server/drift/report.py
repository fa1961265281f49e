"""The report of drift: the difference of each measure, and which of them are drift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyhead_server.process_reports import Measure, MeasureKind

from .measures import slices
from .statistics import Difference, compare_means, compare_rates, compare_shares

Floats = NDArray[np.floating[Any]]

# Reports of one window are not independent, so that this is about one false alarm in a thousand windows.
MAX_P_VALUE = 0.001


class DriftReport(NamedTuple):
    """The differences of recent texts from the validation texts.

    Attributes:
        model_id: Name of the bundle and the first digits of its digest.
        window_s: Seconds whose texts were counted; 0 for texts of any time.
        texts: Number of texts that were counted.
        uncounted: Number of further texts, which were left out to save time.
        reference_texts: Number of validation texts.
        min_distance: Smallest distance that is drift.
        measures: The measures for which texts were counted.
    """

    model_id: str
    window_s: float
    texts: int
    uncounted: int
    reference_texts: int
    min_distance: float
    measures: list[MeasureDrift]


class MeasureDrift(NamedTuple):
    """The difference of one measure.

    Attributes:
        measure: The measure.
        texts: Number of texts that were counted; of tokens for ``unknown_tokens``.
        observed: (bins,) shares of the recent texts; empty for a mean.
        distance: See ``statistics``.
        p_value: Corrected for the number of measures (Bonferroni); None with fewer than two blocks of texts.
        effective: Number of independent texts with the same variance.
        drifted: Whether distance and p-value are beyond their limits.
    """

    measure: Measure
    texts: int
    observed: tuple[float, ...]
    distance: float
    p_value: float | None
    effective: float
    drifted: bool

    def bins(self) -> Iterator[tuple[str, float, float]]:
        """Yields the name of each bin, its share of the validation texts and of the recent texts."""
        yield from zip(self.measure.bins, self.measure.reference[: len(self.observed)], self.observed, strict=True)


def compare(measures: Sequence[Measure], blocks: Floats, min_distance: float) -> list[MeasureDrift]:
    """Compares recent texts with the validation texts.

    Args:
        measures: The measures.
        blocks: (K, width) counts of each block of recent texts.
        min_distance: Smallest distance that is drift: with enough texts every difference is significant.

    Returns:
        The measures for which texts were counted.
    """
    found = [(measure, blocks[:, place]) for measure, place in slices(measures)]
    found = [(measure, counts) for measure, counts in found if _texts(measure, counts)]
    return [_drift(measure, counts, len(found), min_distance) for measure, counts in found]


def _drift(measure: Measure, blocks: Floats, tested: int, min_distance: float) -> MeasureDrift:
    found = _compare(measure, blocks)
    p_value = None if found.p_value is None else min(1.0, tested * found.p_value)
    drifted = p_value is not None and p_value <= MAX_P_VALUE and found.distance >= min_distance
    texts = _texts(measure, blocks)
    observed = tuple((blocks[:, : len(measure.bins)].sum(axis=0) / texts).tolist())
    return MeasureDrift(measure, texts, observed, found.distance, p_value, found.effective, drifted)


def _compare(measure: Measure, blocks: Floats) -> Difference:
    reference = np.asarray(measure.reference)
    match measure.kind:
        case MeasureKind.SHARES:
            return compare_shares(blocks, reference, measure.texts)
        case MeasureKind.RATES:
            return compare_rates(blocks, reference, measure.texts)
        case MeasureKind.MEAN:
            return compare_means(blocks, reference, np.asarray(measure.spread), measure.texts)


def _texts(measure: Measure, blocks: Floats) -> int:
    return round(float(blocks.sum() if measure.kind is MeasureKind.SHARES else blocks[:, -1].sum()))
