"""Documentation, dashboard and alert rules name exactly the metrics that the server exposes."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]
from polyhead_server.observability.candidate_metrics import CandidateFigures
from polyhead_server.observability.metrics import Metrics

from tests.support import sources
from tests.support.demo import ROOT

# The first lines of the table of metrics and of the runbooks, wherever the pages stand.
METRIC_TABLE, FIRST_RUNBOOK = "| name | unit, kind | labels |", "### PolyheadDown"
PAGES = sources.documentation_pages()
DOCS = "\n".join(page.read_text() for page in PAGES if METRIC_TABLE in page.read_text())
RUNBOOKS = sources.documentation_page(FIRST_RUNBOOK)
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/polyhead.json").read_text())
# Metrics of Prometheus itself.
FOREIGN = {"up"}


@functools.cache
def documented() -> set[str]:
    """Names in the first column of the table; those of counters end in ``_total``."""
    return set(re.findall(r"^\| `((?:polyhead|process)_\w+)` \|", DOCS, re.MULTILINE))


@functools.cache
def labels() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `((?:polyhead|process)_\w+)` \|[^|]*\|([^|]*)\|", DOCS, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in rows}


def with_all_metrics() -> Metrics:
    """Returns the metrics of a server with TLS that compares its traffic."""
    metrics = Metrics()
    metrics.certificate_expiry()
    metrics.drift()
    return metrics


@functools.cache
def registered() -> dict[str, str]:
    """Returns the type of each metric, by name."""
    metrics = with_all_metrics()
    return {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in metrics.registry.collect()
    }


@functools.cache
def sample_names() -> set[str]:
    """Returns the names that a query may use."""
    return {
        name + suffix
        for name, kind in registered().items()
        for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }


def panels() -> Iterator[dict[str, Any]]:
    return (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def queries() -> list[str]:
    """Returns all queries of dashboard and rules, with an interval in place of Grafana's variable."""
    targets = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [query.replace("$__rate_interval", "5m") for query in targets] + [rule["expr"] for rule in RULES]


def selectors(query: str) -> list[Any]:
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def test_documented_metrics_are_those_of_the_server() -> None:
    assert documented() == set(registered())


def test_pages_name_existing_metrics_only() -> None:
    # The Python packages have similar names.
    rooms = ("adapters", "bulk", "bundle", "client", "export", "rows", "server", "training")
    known = {f"polyhead_{room}" for room in rooms} | sample_names() | set(registered())
    unknown = {page.name: set(re.findall(r"\bpolyhead_\w+", page.read_text())) - known for page in PAGES}
    assert {name: found for name, found in unknown.items() if found} == {}


def test_every_metric_of_the_sources_is_documented() -> None:
    # This includes metrics that only some configurations create.
    text = sources.source_text("server/polyhead_server")
    made = set(re.findall(r"\.(?:gauge|counter|histogram)\(\s*\"(polyhead_\w+)\"", text))
    assert len(made) > 20
    assert made - {name.removesuffix("_total") for name in documented()} == set()


def test_documented_labels_are_those_of_the_metrics() -> None:
    actual = {metric.name: set(metric.labels) for metric in with_all_metrics().instruments.descriptions}
    assert len(actual) > 20
    assert {name: labels()[name] for name in actual} == actual


def test_documented_labels_of_candidates_are_those_of_the_metrics() -> None:
    metrics = with_all_metrics()
    counts = {"dropped": 3}, {"topic": 2}, {("candidate", "error"): 1}, {"candidate": 0.25}
    metrics.candidate.figures = CandidateFigures({"shadow": "new-1"}, *counts)
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    actual = {one.name: set(one.labels) for one in samples if re.match("polyhead_(candidate|shadow|canary)_", one.name)}
    assert len(actual) == 6
    assert {name: labels()[name] for name in actual} == actual


@pytest.mark.parametrize("query", queries())
def test_query_names_existing_metrics_and_labels_only(query: str) -> None:
    named = selectors(query)
    assert named
    for selector in named:
        assert selector.name in sample_names() | FOREIGN
        base = re.sub(r"_(bucket|sum|count)$", "", selector.name)
        known = labels().get(base, set()) | {"job", "instance", "le"}
        assert {matcher.name for matcher in selector.matchers.matchers} <= known


def test_malformed_query_is_noticed() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        selectors("sum(rate(polyhead_items_total[5m])")


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    alerts = [rule["alert"] for rule in RULES]
    assert len(set(alerts)) == len(alerts)
    assert re.findall(r"^### (Polyhead\w+)$", RUNBOOKS.read_text(), re.MULTILINE) == alerts
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"{RUNBOOKS.relative_to(ROOT)}#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"page", "ticket"}


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool comes with Prometheus; Debian's package has it")
def test_alerts_fire_when_they_should_and_only_then() -> None:
    folder = ROOT / "deploy/prometheus"
    subprocess.run(["promtool", "check", "rules", folder / "alerts.yml"], check=True)
    subprocess.run(["promtool", "test", "rules", folder / "alerts_test.yml"], check=True)


def test_every_alert_has_a_test() -> None:
    tests = yaml.safe_load((ROOT / "deploy/prometheus/alerts_test.yml").read_text())["tests"]
    fired = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in RULES}


def test_panels_do_not_overlap() -> None:
    seen: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & seen, panel["title"]
        assert max(x for x, _ in cells) < 24
        seen |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
