"""Messages of the admin service about a candidate: requests in, its state out."""

from __future__ import annotations

import math
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead.v1 import item_pb2

from polyhead_server.candidate.histogram import Latency
from polyhead_server.candidate.limits import CanaryLimits, SideReport
from polyhead_server.candidate.report import EmbeddingComparison, HeadComparison
from polyhead_server.candidate.status import CanaryStatus, CandidateStatus, ShadowStatus
from polyhead_server.errors import InvalidRequestError

MAX_KEPT_TEXTS = 1000
_SPACES = {
    "unknown": pb2.EmbeddingComparison.SPACE_UNSPECIFIED,
    "same": pb2.EmbeddingComparison.SPACE_SAME,
    "comparable": pb2.EmbeddingComparison.SPACE_COMPARABLE,
    "other": pb2.EmbeddingComparison.SPACE_OTHER,
    "other size": pb2.EmbeddingComparison.SPACE_OTHER_SIZE,
}

_PRIORITIES = {
    int(pb2.ShadowRequest.PRIORITY_UNSPECIFIED): True,
    int(pb2.ShadowRequest.PRIORITY_IDLE): True,
    int(pb2.ShadowRequest.PRIORITY_NORMAL): False,
}


def read_shadow(request: pb2.ShadowRequest) -> tuple[Path, float, int]:
    """Returns the bundle, the share and the number of texts to keep.

    Raises:
        InvalidRequestError: One of them is out of range.
    """
    if not request.bundle:
        raise _invalid("the bundle is missing")
    if request.keep_texts > MAX_KEPT_TEXTS:
        raise _invalid(f"at most {MAX_KEPT_TEXTS:,} texts can be kept")
    return Path(request.bundle), _share(request.share), request.keep_texts


def read_canary(request: pb2.CanaryRequest) -> tuple[Path | None, float, CanaryLimits]:
    """Returns the bundle, None for the candidate that is loaded, the share and the limits.

    Raises:
        InvalidRequestError: One of them is out of range.
    """
    given, usual = request.limits, CanaryLimits()
    limits = CanaryLimits(
        error_rate=given.error_rate if given.HasField("error_rate") else usual.error_rate,
        p99_ratio=given.p99_ratio if given.HasField("p99_ratio") else usual.p99_ratio,
        p99_s=given.p99.ToNanoseconds() / 1e9,
        min_texts=given.min_texts if given.HasField("min_texts") else usual.min_texts,
    )
    if not 0 <= limits.error_rate <= 1:
        raise _invalid("the error rate must be between 0 and 1")
    if not 0 <= limits.p99_ratio < math.inf or limits.p99_s < 0:
        raise _invalid("a limit of the latency must be finite and not negative")
    return Path(request.bundle) if request.bundle else None, _share(request.share), limits


def is_idle(priority: int) -> bool:
    """Returns whether a shadow computes only while nothing else does.

    Raises:
        InvalidRequestError: There is no such priority.
    """
    if priority not in _PRIORITIES:
        raise _invalid(f"there is no priority {priority}")
    return _PRIORITIES[priority]


def candidate(status: CandidateStatus) -> pb2.Candidate:
    """Describes a candidate."""
    found = status.description
    heads = [item_pb2.HeadFingerprint(head=name, fingerprint=value) for name, value in found.heads.items()]
    return pb2.Candidate(
        model_id=found.model_id,
        bundle=str(status.bundle),
        fingerprints=item_pb2.Fingerprints(embedding_space=found.embedding_space, heads=heads),
    )


def comparison(status: CandidateStatus, *, include_texts: bool) -> pb2.CompareResponse:
    """Describes a candidate with its comparison and its canary."""
    return pb2.CompareResponse(
        candidate=candidate(status),
        served_model_id=status.served_model_id,
        shadow=_shadow(status.shadow, include_texts=include_texts) if status.shadow else None,
        canary=_canary(status.canary) if status.canary else None,
    )


def duration(seconds: float) -> Duration:
    """Converts seconds."""
    converted = Duration()
    converted.FromNanoseconds(round(seconds * 1e9))
    return converted


def _shadow(status: ShadowStatus, *, include_texts: bool) -> pb2.ShadowComparison:
    report = status.report
    return pb2.ShadowComparison(
        share=status.share,
        answered=report.answered,
        selected=report.selected,
        dropped=report.dropped,
        compared=report.compared,
        other_model=report.other_model,
        errors_total=report.errors,
        embedding=_embedding(report.embedding),
        heads=[_head(head, include_texts=include_texts) for head in report.heads],
        not_compared=report.not_compared,
        served_latency=_latency(report.served),
        candidate_latency=_latency(report.candidate),
        candidate_cpu=duration(report.candidate_cpu_s),
        report_age=duration(status.age_s),
        failure=status.failure,
    )


def _embedding(found: EmbeddingComparison) -> pb2.EmbeddingComparison:
    return pb2.EmbeddingComparison(
        space=_SPACES[found.space],
        texts=found.texts,
        mean_cosine=found.mean,
        low_cosine=found.low,
        least_cosine=found.least,
        recognized=found.recognized,
    )


def _head(found: HeadComparison, *, include_texts: bool) -> pb2.HeadComparison:
    examples = found.examples if include_texts else ()
    return pb2.HeadComparison(
        name=found.name,
        kind=found.kind,
        rows=found.rows,
        columns=found.columns,
        cells=[pb2.MatrixCell(row=row, column=column, texts=texts) for row, column, texts in found.cells],
        other_texts=found.other_texts,
        compared=found.compared,
        changed=found.changed,
        weighted=found.weighted,
        difference=found.difference,
        only_served=found.only_served,
        only_candidate=found.only_candidate,
        texts=[pb2.ChangedText(text=one.text, served=one.served, candidate=one.candidate) for one in examples],
    )


def _canary(status: CanaryStatus) -> pb2.CanaryState:
    limits = status.limits
    return pb2.CanaryState(
        share=status.share,
        limits=pb2.CanaryLimits(
            error_rate=limits.error_rate,
            p99_ratio=limits.p99_ratio,
            p99=duration(limits.p99_s) if limits.p99_s else None,
            min_texts=limits.min_texts,
        ),
        served=_answers(status.served),
        candidate=_answers(status.candidate),
        rollback=status.rollback,
    )


def _answers(side: SideReport) -> pb2.ModelAnswers:
    return pb2.ModelAnswers(texts=side.texts, errors_total=side.errors, latency=_latency(side.latency))


def _latency(found: Latency) -> pb2.Latency:
    return pb2.Latency(
        texts=found.texts,
        mean=duration(found.mean),
        p50=duration(found.p50),
        p90=duration(found.p90),
        p99=duration(found.p99),
    )


def _share(share: float) -> float:
    if not 0 < share <= 1:
        raise _invalid("the share must be above 0 and at most 1")
    return share


def _invalid(problem: str) -> InvalidRequestError:
    return InvalidRequestError("INVALID_CANDIDATE", problem)
