"""What a comparison has found so far, as the candidate's process reports it and the admin service sends it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .histogram import Latency


@dataclass(frozen=True, slots=True)
class Example:
    """A text whose answer changed. Kept only on request."""

    text: str
    served: str
    candidate: str


@dataclass(frozen=True, slots=True)
class HeadComparison:
    """Agreement of a head that both models have with the same kind.

    Attributes:
        name: Name of the head.
        kind: Kind of the head in both models.
        rows: Labels of the rows of the matrix: those of both models, those of the served one first.
        columns: Labels of its columns, the same; for a multi-label head "both", "served alone", "candidate alone".
        cells: The cells of the matrix that are not 0, each as (row, column, texts): label of the served model, label of
            the candidate. Empty for a regression head.
        other_texts: Texts of cells that are not kept because there are too many different ones.
        compared: Number of texts.
        changed: Those of them with another answer; 0 for a regression head.
        weighted: Mean over all texts of the lower of both confidences where the answer changed, else 0; None unless the
            head has one label per text.
        difference: Mean difference of the answers: of a regression head or of the places of ordinal labels, in units of
            the answer; otherwise half the sum of the differences of the probabilities, or the mean over the labels of a
            multi-label head. None if the labels differ.
        only_served: Labels that the served model alone has.
        only_candidate: Labels that the candidate alone has.
        examples: Texts whose answer changed, the last ones.
    """

    name: str
    kind: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...]
    other_texts: int
    compared: int
    changed: int
    weighted: float | None
    difference: float | None
    only_served: tuple[str, ...]
    only_candidate: tuple[str, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class EmbeddingComparison:
    """Agreement of the embeddings.

    Attributes:
        space: ``same``: the fingerprints are equal; ``comparable``: other weights, but the vectors of both models can
            stand in one index; ``other``: they cannot, since a text is not nearest to itself; ``other size``;
            ``unknown``: too few texts.
        texts: Number of texts.
        mean: Mean cosine of the two vectors of a text; None with other sizes.
        low: 5th percentile of the cosines.
        least: Smallest cosine.
        recognized: Share of texts whose vector of the candidate is nearer to their own vector of the served model than
            to that of any other text, among the first different ones; None with other sizes.
    """

    space: str = "unknown"
    texts: int = 0
    mean: float | None = None
    low: float | None = None
    least: float | None = None
    recognized: float | None = None


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """What a shadow has seen and found.

    Attributes:
        answered: Texts that the served model has answered since the shadow began.
        selected: Those of them that belong to the share.
        dropped: Those of the selected ones that the candidate did not get: no compute was left, or they were too long.
        compared: Texts that both models have answered.
        errors: Texts that the candidate could not answer, by reason.
        other_model: Texts that another model than the compared one had answered, after a reload.
        embedding: Agreement of the embeddings.
        heads: Agreement of each head that both models have with the same kind.
        not_compared: Reason for each other head, by name.
        served: Time that the served model took for a text: that of its batch, divided by the texts of the batch.
        candidate: The same of the candidate, which computes only while nothing else does.
        candidate_cpu_s: Processor time of the candidate per text, in seconds.
    """

    answered: int = 0
    selected: int = 0
    dropped: int = 0
    compared: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    other_model: int = 0
    embedding: EmbeddingComparison = field(default_factory=EmbeddingComparison)
    heads: tuple[HeadComparison, ...] = ()
    not_compared: dict[str, str] = field(default_factory=dict)
    served: Latency = field(default_factory=Latency)
    candidate: Latency = field(default_factory=Latency)
    candidate_cpu_s: float = 0.0
