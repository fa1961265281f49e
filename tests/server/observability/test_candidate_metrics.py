"""Metrics of candidates, of one model or of several."""

from __future__ import annotations

from polyhead_server.observability.candidate_metrics import CandidateCollector, CandidateFigures

FIGURES = CandidateFigures(
    {"shadow": "new-1"}, {"dropped": 3}, {"topic": 2}, {("candidate", "error"): 1}, {"candidate": 0.25}
)


def samples(collector: CandidateCollector) -> dict[str, tuple[dict[str, str], float]]:
    return {one.name: (one.labels, one.value) for family in collector.collect() for one in family.samples}


def test_server_without_a_candidate_has_only_the_count_of_roll_backs() -> None:
    collector = CandidateCollector()
    collector.add()
    assert samples(collector) == {"polyhead_canary_rollbacks_total": ({}, 0.0)}


def test_candidate_of_the_only_model_has_no_name() -> None:
    collector = CandidateCollector()
    metrics = collector.add()
    metrics.figures = FIGURES
    metrics.rollbacks += 1
    found = samples(collector)
    assert found["polyhead_candidate_info"] == ({"model_id": "new-1", "mode": "shadow"}, 1.0)
    assert found["polyhead_shadow_texts_total"] == ({"outcome": "dropped"}, 3.0)
    assert found["polyhead_shadow_changed_texts_total"] == ({"head": "topic"}, 2.0)
    assert found["polyhead_canary_texts_total"] == ({"side": "candidate", "outcome": "error"}, 1.0)
    assert found["polyhead_canary_latency_p99_seconds"] == ({"side": "candidate"}, 0.25)
    assert found["polyhead_canary_rollbacks_total"] == ({}, 1.0)


def test_candidates_of_several_models_have_their_names() -> None:
    collector = CandidateCollector()
    collector.add("tickets")
    collector.add("reviews").figures = FIGURES
    rows = [one for family in collector.collect() for one in family.samples]
    assert [one.labels["model"] for one in rows if one.name == "polyhead_canary_rollbacks_total"] == [
        "tickets",
        "reviews",
    ]
    assert {one.labels["model"] for one in rows if one.name != "polyhead_canary_rollbacks_total"} == {"reviews"}
