"""Drift of a real server's traffic: the report of ``polyhead drift``, and the metrics, in each layout of processes."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from polyhead_client import Client
from prometheus_client.parser import text_string_to_metric_families

from bench.harness.servers import free_port
from tests.support.command import polyhead
from tests.support.demo import ROOT
from tests.support.polling import wait_until
from tests.support.worker_load import serving

from .conftest import START_S, Server, Start
from .test_admin import admin

pytestmark = pytest.mark.model

DATA = ROOT / "training/demo"
# Buckets of a second, so that two of them soon have texts.
FLAGS = ("--drift-window-s", "600", "--drift-bucket-s", "1")
WORKERS = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers require two cores")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]


USUAL = [row["text"] for row in rows("validation")]
COMPLAINTS = [row["text"] for row in rows("train") if (row["label"], row["sentiment"]) == ("billing", 0)]


def drift(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Runs ``polyhead drift --json``; returns its exit code, what it printed, and its standard error."""
    code, output, error = polyhead("drift", "--json", *arguments)
    return code, json.loads(output or "{}"), error


def send_until_told(server: Server, target: str, texts: list[str]) -> tuple[int, dict[str, Any], int]:
    """Sends texts over new connections until two buckets have some; returns the last report and their number."""
    sent, code = 0, 3
    report: dict[str, Any] = {}
    while code == 3:
        with Client(server.target) as client:
            assert not [answer for answer in client.analyze(texts) if answer.error]
        sent += len(texts)
        code, report, error = drift("--target", target)
        assert code != 2, error
    return code, report, sent


def samples(port: int, name: str) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=START_S) as page:
        families = {family.name: family for family in text_string_to_metric_families(page.read().decode())}
    found = families[name].samples if name in families else []
    return {(one.labels.get("head", ""), one.labels.get("measure", "")): one.value for one in found}


@pytest.mark.parametrize(
    ("flags", "processes"),
    [((), 1), pytest.param(("--workers", "2"), 2, marks=WORKERS), (("--fronts", "1"), 1)],
    ids=["one process", "workers", "fronts"],
)
def test_drift_is_named_by_head_and_a_reload_begins_anew(
    start: Start, demo_bundle: Path, tmp_path: Path, flags: tuple[str, ...], processes: int
) -> None:
    target, port = f"unix:{tmp_path}/admin", free_port()
    server = start(demo_bundle, *flags, *FLAGS, "--admin-listen", target, "--metrics-listen", f"127.0.0.1:{port}")
    if processes > 1:
        wait_until(lambda: serving(server) == processes, "all workers serve")
    else:
        server.wait_until_serving()
    assert drift("--target", target)[0] == 3

    code, report, sent = send_until_told(server, target, USUAL)
    assert (code, report["drift"], report["reference_texts"]) == (0, [], len(USUAL))
    assert 0 < report["texts"] <= report["texts"] + report["uncounted_texts"] <= sent
    measures = {(one["head"], one["name"]): one for one in report["measures"]}
    assert {head for head, _ in measures} == {"topic", "sentiment", ""}
    assert {name for _, name in measures} == {
        *("answers", "confidence", "tokens", "truncated", "unknown_tokens", "novelty", "embedding")
    }
    wait_until(lambda: bool(samples(port, "polyhead_drift_p_value")), "the gauges are set")
    assert set(samples(port, "polyhead_drift_detected").values()) == {0}

    # The window forgets the texts of the old model, or those that follow would be a part of them.
    assert admin("reload", "--target", target)[0] == 0
    code, report, _ = drift("--target", target)
    assert (code, report["texts"]) == (3, 0)
    code, report, sent = send_until_told(server, target, COMPLAINTS)
    # A few more buckets make differences of this size significant.
    while not {"topic answers", "sentiment answers"} <= set(report["drift"]):
        code, report, _ = send_until_told(server, target, COMPLAINTS)
    assert code == 1
    answers = {one["head"]: one["bins"] for one in report["measures"] if one["name"] == "answers"}
    assert {bin_["name"]: bin_["observed"] for bin_ in answers["topic"]}["billing"] > 0.7
    wait_until(lambda: samples(port, "polyhead_drift_detected").get(("topic", "answers")) == 1, "the gauge shows it")
    assert samples(port, "polyhead_drift_distance")["topic", "answers"] > 0.5
    assert server.stop() == 0


def test_server_that_does_not_count_says_so(start: Start, demo_bundle: Path, tmp_path: Path) -> None:
    target, port = f"unix:{tmp_path}/admin", free_port()
    flags = ("--drift-window-s", "0", "--admin-listen", target, "--metrics-listen", f"127.0.0.1:{port}")
    server = start(demo_bundle, *flags)
    server.wait_until_serving()
    code, _, error = drift("--target", target)
    assert code == 2
    assert "FAILED_PRECONDITION" in error
    assert "--drift-window-s 0" in error
    assert samples(port, "polyhead_drift_texts") == {}


def test_server_that_is_not_there_is_no_drift() -> None:
    code, _, error = drift("--target", f"127.0.0.1:{free_port()}")
    assert code == 2
    assert len(error.splitlines()) == 1
