"""The metrics that there are, docs/metrics.md, the dashboard and the alert rules speak of the same."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]
from polyhead_server.observability.metrics import Metrics

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/metrics.md").read_text()
PAGES = (ROOT / "README.md", *ROOT.glob("docs/*.md"))
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/polyhead.json").read_text())
# Prometheus's own.
FOREIGN = {"up"}


def documented() -> set[str]:
    """The first column of the table, of which a counter has its ``_total``."""
    return set(re.findall(r"^\| `((?:polyhead|process)_\w+)` \|", DOCS, re.MULTILINE))


def labels() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `((?:polyhead|process)_\w+)` \|[^|]*\|([^|]*)\|", DOCS, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", cell)) for name, cell in rows}


def registered() -> dict[str, str]:
    """Name to type of what a server with TLS counts."""
    metrics = Metrics()
    metrics.certificate_expiry()
    return {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in metrics.registry.collect()
    }


def sample_names() -> set[str]:
    """What queries may name."""
    return {
        name + suffix
        for name, kind in registered().items()
        for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }


def panels() -> Iterator[dict[str, Any]]:
    return (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def queries() -> list[str]:
    """All queries of the dashboard, with a time that Grafana would put in, and of the rules."""
    targets = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [query.replace("$__rate_interval", "5m") for query in targets] + [rule["expr"] for rule in RULES]


def selectors(query: str) -> list[Any]:
    found: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def test_documented_metrics_are_those_that_are_counted() -> None:
    assert documented() == set(registered())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_names_only_metrics_that_there_are(page: Path) -> None:
    # The rooms' packages are called alike.
    packages = {f"polyhead_{room}" for room in ("client", "export", "server", "training")}
    named = set(re.findall(r"\bpolyhead_\w+", page.read_text())) - packages
    assert named - sample_names() - set(registered()) == set()


def test_every_metric_of_the_sources_is_documented() -> None:
    # Also one that is made only when a feature is used.
    sources = "\n".join(path.read_text() for path in (ROOT / "server/polyhead_server").glob("*.py"))
    made = set(re.findall(r"\b(?:Gauge|Counter|Histogram)\(\s*\"(polyhead_\w+)\"", sources))
    assert made
    assert made - {name.removesuffix("_total") for name in documented()} == set()


def test_documented_labels_are_those_of_the_metrics() -> None:
    metrics = Metrics()
    actual = {
        metric._name + ("_total" if metric._type == "counter" else ""): set(metric._labelnames)
        for metric in vars(metrics).values()
        if hasattr(metric, "_labelnames")
    }
    assert {name: labels()[name] for name in actual} == actual


@pytest.mark.parametrize("query", queries())
def test_query_names_only_metrics_that_there_are(query: str) -> None:
    named = selectors(query)
    assert named
    for selector in named:
        assert selector.name in sample_names() | FOREIGN


@pytest.mark.parametrize("query", queries())
def test_query_names_only_labels_that_its_metrics_have(query: str) -> None:
    for selector in selectors(query):
        base = re.sub(r"_(bucket|sum|count)$", "", selector.name)
        known = labels().get(base, set()) | {"job", "instance", "le"}
        assert {matcher.name for matcher in selector.matchers.matchers} <= known


def test_query_that_is_broken_is_noticed() -> None:
    with pytest.raises(ValueError, match="unclosed"):
        selectors("sum(rate(polyhead_items_total[5m])")


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    alerts = [rule["alert"] for rule in RULES]
    assert len(set(alerts)) == len(alerts)
    assert re.findall(r"^### (\w+)$", DOCS, re.MULTILINE) == alerts
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"docs/metrics.md#{rule['alert'].lower()}"
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


def test_panels_have_places_of_their_own() -> None:
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
