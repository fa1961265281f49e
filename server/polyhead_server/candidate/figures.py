"""The state of a candidate as figures of the metrics."""

from __future__ import annotations

from polyhead_server.observability.candidate_metrics import CandidateFigures

from .limits import SideReport
from .status import CandidateStatus


def figures_of(status: CandidateStatus) -> CandidateFigures:
    """Returns the figures of a candidate."""
    shadow, canary = status.shadow, status.canary
    modes = {"shadow": shadow and not shadow.failure, "canary": canary and not canary.rollback}
    texts: dict[str, int] = {}
    changed: dict[str, int] = {}
    if shadow:
        report = shadow.report
        texts = {
            "compared": report.compared,
            "dropped": report.dropped,
            "error": sum(report.errors.values()),
            "other_model": report.other_model,
        }
        changed = {head.name: head.changed for head in report.heads if head.kind != "regression"}
    sides: dict[str, SideReport] = {"served": canary.served, "candidate": canary.candidate} if canary else {}
    answers: dict[tuple[str, str], int] = {}
    for model, side in sides.items():
        failed = sum(side.errors.values())
        answers |= {(model, "success"): side.texts - failed, (model, "error"): failed}
    return CandidateFigures(
        modes={mode: status.description.model_id for mode, runs in modes.items() if runs},
        shadow_texts=texts,
        changed_texts=changed,
        canary_texts=answers,
        canary_p99_s={model: side.latency.p99 for model, side in sides.items()},
    )
