"""Collected texts of real servers: rows of every process, private files, metrics, redaction, and a full disk."""

from __future__ import annotations

import json
import resource
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from polyhead_client import Client
from prometheus_client.parser import text_string_to_metric_families

from bench.harness.servers import free_port
from tests.support.polling import wait_until

from .conftest import Start

pytestmark = pytest.mark.model

TEXTS = [f"order {number} of mail{number}@example.org has not arrived after {number * 3} days" for number in range(600)]


def rows(folder: Path) -> list[dict[str, Any]]:
    """Reads the rows of all files, each line of which must be complete."""
    found = []
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        content = path.read_text("utf-8")
        assert content.endswith("\n")
        found += [json.loads(line) for line in content.splitlines()]
    return found


def scrape(port: int) -> dict[str, float]:
    """Returns the metrics of the collection by name and reason."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        families = text_string_to_metric_families(response.read().decode())
    return {
        " ".join([sample.name.removeprefix("polyhead_"), *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
        if "collect" in sample.name
    }


def send(target: str, texts: list[str]) -> None:
    """Sends the texts over several connections, so that each process receives some."""
    for begin in range(0, len(texts), 50):
        with Client(target) as client:
            assert all(answer.unwrap() for answer in client.analyze(texts[begin : begin + 50]))


@pytest.mark.parametrize("flags", [(), ("--workers", "2"), ("--fronts", "2")], ids=["one", "workers", "fronts"])
def test_every_process_collects_its_texts(
    start: Start, demo_bundle: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    folder, port, patterns = tmp_path / "collected", free_port(), tmp_path / "redact.toml"
    patterns.write_text("email = '[^ @]+@[^ @]+'\n")
    server = start(
        demo_bundle,
        *("--collect", str(folder), "--collect-share", "0.5", "--collect-redact", str(patterns)),
        *("--metrics-listen", f"127.0.0.1:{port}", *flags),
    )
    server.wait_until_serving()
    send(server.target, TEXTS)
    wait_until(lambda: scrape(port)["collected_texts_total random"] > 50, "texts are collected")
    assert scrape(port)["collection_stopped"] == 0
    assert server.stop() == 0
    found = rows(folder)
    # The probability of fewer than 50 of 100 random rows is beyond measure.
    assert 100 < len(found) < 400
    assert len({row["text"] for row in found}) == len(found)
    assert all("[email]" in row["text"] and "@" not in row["text"] for row in found)
    assert all(row["topic"] is row["sentiment"] is None for row in found)
    metas = [row["_collected"] for row in found]
    assert {reason for meta in metas for reason in meta["reasons"]} == {"random", "low_confidence", "novel"}
    assert all(0 < meta["probability"] <= 1 and meta["redacted"] == 1 for meta in metas)
    assert {len(list(folder.iterdir()))} <= ({1} if not flags else {1, 2})
    assert "personal data" not in server.log.read_text()


def test_full_disk_stops_the_collection_and_not_the_server(start: Start, demo_bundle: Path, tmp_path: Path) -> None:
    folder, port = tmp_path / "collected", free_port()
    server = start(
        demo_bundle, "--collect", str(folder), "--collect-share", "1", "--metrics-listen", f"127.0.0.1:{port}"
    )
    server.wait_until_serving()
    assert "personal data included" in server.log.read_text()
    # Files beyond this size cannot be written, as on a full disk.
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (2**16, 2**16))
    send(server.target, TEXTS)
    wait_until(lambda: scrape(port)["collection_stopped"] == 1, "the collection has stopped")
    send(server.target, TEXTS)
    values = scrape(port)
    assert values["uncollected_texts_total write_failed"] > 0
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2**16
    assert len(rows(folder)) > 50
    assert server.log.read_text().count("texts cannot be collected") == 1
    assert server.stop() == 0
