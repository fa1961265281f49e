"""Every query of the Grafana dashboard has data in a real Prometheus that scrapes real servers under load."""

from __future__ import annotations

import contextlib
import itertools
import json
import runpy
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2

from bench.harness.servers import free_port
from tests.support.demo import ROOT
from tests.support.polling import wait_until

from .conftest import START_S, Start
from .test_candidate import Admin, changed

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus is not installed; Debian's package has it"),
]
CHECK: dict[str, Any] = runpy.run_path(str(ROOT / "deploy/grafana/check.py"))
Query, queries, values, main = (CHECK[name] for name in ("Query", "queries", "values", "main"))
# Four scrapes, as Grafana chooses it.
INTERVAL = "4s"
ROWS = [json.loads(line) for line in (ROOT / "training/demo/train.jsonl").read_text().splitlines()]
# Their labels are not those of validation: drift.
COMPLAINTS = [row["text"] for row in ROWS if (row["label"], row["sentiment"]) == ("billing", 0)][:20]
# Panels without data for a server with workers, without drift and without a candidate.
OTHER_FEATURES = {
    *("Distance from validation", "Drift", "Texts in the window"),
    *("Memory", "CPU", "File descriptors"),
    *("Texts of a shadow", "Changed answers", "Canary"),
}


def keep_busy(target: str, stopped: threading.Event) -> None:
    """Sends the calls of many callers until it is stopped."""
    with grpc.insecure_channel(target) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
        for number in itertools.count():
            if stopped.is_set():
                return
            caller = (("x-polyhead-routing-key", f"user {number % 30}"),)
            # New texts, of which two are equal and one is above the token limit, and one that the cache knows.
            texts = [f"{text} {number}" for text in (*COMPLAINTS, "Love it!", "Love it!", "late " * 500)] + ["Where?"]
            items = [item_pb2.Item(item_id=str(index), text=text) for index, text in enumerate(texts)]
            stub.Analyze(pb2.AnalyzeRequest(items=items), timeout=START_S, metadata=caller, wait_for_ready=True)


@contextlib.contextmanager
def busy(*targets: str) -> Iterator[None]:
    stopped = threading.Event()
    threads = [threading.Thread(target=keep_busy, args=(target, stopped)) for target in targets]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Any]:
    """Starts Prometheus with scrape jobs, HOST:PORT by name; returns its address."""
    started: list[subprocess.Popen[bytes]] = []

    def start(jobs: dict[str, str]) -> str:
        address = f"127.0.0.1:{free_port()}"
        config = tmp_path / "prometheus.yml"
        # JSON is YAML.
        scrapes = [{"job_name": name, "static_configs": [{"targets": [target]}]} for name, target in jobs.items()]
        config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": scrapes}))
        flags = (f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data", "--log.level=error")
        started.append(subprocess.Popen([str(PROMETHEUS), *flags, f"--web.listen-address={address}"]))
        wait_until(lambda: is_ready(address), "Prometheus is ready")
        return f"http://{address}"

    yield start
    for process in started:
        process.terminate()
        process.wait(START_S)


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=START_S) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def missing(address: str, job: str) -> set[str]:
    """Titles of the panels that have a query without data."""
    return {one.name.partition(",")[0] for one in queries() if not values(address, one, job, INTERVAL)}


def wait_until_missing(address: str, job: str, expected: set[str]) -> None:
    ends = time.monotonic() + START_S
    while (found := missing(address, job)) != expected:
        assert time.monotonic() < ends, found ^ expected
        time.sleep(0.5)


def test_every_query_of_the_dashboard_has_data(
    start: Start, demo_bundle: Path, tmp_path: Path, prometheus: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    admin = Admin(
        start(
            demo_bundle,
            *("--metrics-listen", metrics[0], "--admin-listen", f"unix:{tmp_path}/admin"),
            *("--answer-cache-mb", "16", "--collect", str(tmp_path / "collected"), "--collect-share", "1"),
            *("--drift-window-s", "600", "--drift-bucket-s", "1"),
        ),
        f"unix:{tmp_path}/admin",
    )
    admin.server.wait_until_serving()
    workers = start(demo_bundle, "--workers", "2", "--metrics-listen", metrics[1], "--drift-window-s", "0")
    workers.wait_until_serving()
    candidate = changed(demo_bundle, tmp_path / "stricter", sentiment={"threshold": 0.9})
    admin.ok("shadow", str(candidate), "--share", "100%", "--priority", "normal")
    admin.ok("canary", "--share", "50%", "--max-p99-ratio", "0")
    address = prometheus({"everything": metrics[0], "workers": metrics[1]})
    with busy(admin.server.target, workers.target):
        wait_until_missing(address, "everything", set())
        wait_until_missing(address, "workers", OTHER_FEATURES)
        assert main([address, "--job", "everything", "--interval", INTERVAL]) == 0
        assert main([address, "--job", "workers", "--interval", INTERVAL]) == 1
    listed = capsys.readouterr().out.splitlines()
    assert {line.partition(",")[0] for line in listed} == OTHER_FEATURES


def test_query_without_a_number_has_no_data(prometheus: Any) -> None:
    address = prometheus({})
    assert values(address, Query("", "vector(1) > 0"), ".*", INTERVAL) == [1.0]
    for expression in ("polyhead_gone_total", "vector(0) / 0"):
        assert values(address, Query("", expression), ".*", INTERVAL) == []
    with pytest.raises(urllib.error.HTTPError, match="400"):
        values(address, Query("", "sum("), ".*", INTERVAL)
