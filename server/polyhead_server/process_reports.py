"""Reports of one server process: the identity of its model, the result of a reload, its statistics, its traffic.

The admin service sends them to operators, and workers send them to their supervisor. A server without ``--workers`` is
one process and reports in the same types.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HeadIdentity:
    """Name, kind and ordered labels of one head."""

    name: str
    kind: str
    labels: tuple[str, ...]

    def __str__(self) -> str:
        """The head as shown in an error message."""
        labels = f": {', '.join(self.labels)}" if self.labels else ""
        return f"{self.name} ({self.kind}{labels})"


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The properties of a model that clients rely on and that must not change without their knowledge.

    Attributes:
        embedding_space: Fingerprint; only embeddings of the same space can be compared.
        heads: The heads, in order.
        prompts: Text of each prompt, by its name.
    """

    embedding_space: str
    heads: tuple[HeadIdentity, ...]
    prompts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """The model that a process serves after a reload.

    Attributes:
        process_id: The process.
        model_id: Name of the bundle, as in ``polyhead.v1.ModelInfo``.
        head_fingerprints: Fingerprint by head name.
        identity: Identity of the model.
        model_name: Its name in requests.
    """

    process_id: int
    model_id: str
    head_fingerprints: dict[str, str]
    identity: ModelIdentity
    model_name: str = ""


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """State of one process. ``polyhead.v1.WorkerStats`` documents the fields; durations are in seconds here."""

    process_id: int
    model_id: str
    serving: bool
    up_time: float
    requests_running: int
    queued_items: int
    queued_tokens: int
    expected_wait: float
    items_total: int
    tokens_total: int
    padding_tokens_total: int
    batches_total: int
    compute_total: float
    item_errors_total: dict[str, int]
    compute_threads: int
    model_name: str = ""


class MeasureKind(enum.StrEnum):
    """How a property of the traffic is counted and compared.

    SHARES: each text counts for one of the bins. RATES: each text counts for any number of them. MEAN: the vectors of
    the texts are summed.
    """

    SHARES = "shares"
    RATES = "rates"
    MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Measure:
    """One property of the traffic, and its values on the validation texts of the model.

    Attributes:
        head: Name of the head; empty for a property of the texts themselves.
        name: Name of the property, as in ``polyhead.v1.DriftMeasure``.
        kind: How it is counted.
        bins: Names of the bins; empty for a mean.
        reference: Share of each bin; the mean of each dimension.
        texts: Number of validation texts that these values come from.
        spread: Standard deviation of each dimension; empty for shares and rates.
    """

    head: str
    name: str
    kind: MeasureKind
    bins: tuple[str, ...]
    reference: tuple[float, ...]
    texts: int
    spread: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """Length of its counts: the bins or sums, and for rates and means the number of texts."""
        return len(self.reference) + (self.kind is not MeasureKind.SHARES)


@dataclass(frozen=True, slots=True)
class DriftCounts:
    """What a process has counted of its traffic, or why it counts nothing.

    Attributes:
        problem: Why nothing is counted; empty if something is.
        model_id: Name of the bundle and the first digits of its digest.
        measures: What is counted.
        window_s: Seconds whose texts are counted.
        min_distance: Smallest distance that is drift.
        numbers: (K,) numbers of the buckets of time.
        counts: Base64 of their (K, 2 + width) float64, little-endian: texts, texts that were left out, the measures.
    """

    problem: str
    model_id: str = ""
    measures: tuple[Measure, ...] = ()
    window_s: float = 0.0
    min_distance: float = 0.0
    numbers: tuple[int, ...] = ()
    counts: str = ""
