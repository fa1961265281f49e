"""The counts of several processes: as they are sent, and the report on all of them."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from polyhead_server.errors import DriftNotAvailableError
from polyhead_server.process_reports import DriftCounts

from .report import DriftReport, compare

# Columns of a bucket before those of the measures: texts, and texts that were left out.
TOTALS = 2


def encode(counts: NDArray[np.float64]) -> str:
    """Encodes the (K, 2 + width) counts of K buckets for ``DriftCounts``."""
    return base64.b64encode(counts.astype("<f8").tobytes()).decode()


def decode(process: DriftCounts) -> NDArray[np.float64]:
    """Returns the (K, 2 + width) counts of K buckets."""
    values = np.frombuffer(base64.b64decode(process.counts), dtype="<f8")
    return values.reshape(len(process.numbers), TOTALS + sum(measure.width for measure in process.measures))


def report_on(processes: Sequence[DriftCounts]) -> DriftReport:
    """Returns the report on the traffic of all processes together.

    Buckets of the same time are one block. While the processes are being reloaded one after the other, those count that
    serve the model of most of them.

    Raises:
        DriftNotAvailableError: None of them counts anything; states why.
    """
    counting = [process for process in processes if not process.problem]
    if not counting:
        raise DriftNotAvailableError(processes[0].problem if processes else "no process serves")
    ((model_id, _),) = Counter(process.model_id for process in counting).most_common(1)
    alike = [process for process in counting if process.model_id == model_id]
    first = alike[0]
    merged: dict[int, NDArray[np.float64]] = {}
    for process in alike:
        for number, counts in zip(process.numbers, decode(process), strict=True):
            merged[number] = merged[number] + counts if number in merged else counts
    width = TOTALS + sum(measure.width for measure in first.measures)
    blocks = np.array([merged[number] for number in sorted(merged)]).reshape(len(merged), width)
    texts, uncounted = blocks[:, :TOTALS].sum(axis=0)
    return DriftReport(
        model_id,
        first.window_s,
        round(float(texts)),
        round(float(uncounted)),
        max(measure.texts for measure in first.measures),
        first.min_distance,
        compare(first.measures, blocks[:, TOTALS:], first.min_distance),
    )
