"""The texts that load generators send: a server that computes equal texts once gains from no load but Zipf's."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench.harness.texts import write_texts
from bench.loadgen.launch import figures_of, run_load, run_loads, start_load
from tests.support.demo import ROOT
from tests.support.fake_server import FakeServicer, serve_fake

SECONDS = 2.0
IN_FLIGHT = 10_000


class AnalyzeHandler(BaseHTTPRequestHandler):
    """Answers every text of POST /v1/analyze and keeps it in ``sent``."""

    protocol_version = "HTTP/1.1"
    sent: list[str]

    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["content-length"])))["texts"]
        self.sent.extend(texts)
        body = json.dumps({"answers": [{} for _ in texts]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Fewer texts than are in flight, two of them equal."""
    return write_texts(tmp_path / "texts.jsonl", ["one", "two", "two"])


@pytest.fixture
def server() -> Iterator[FakeServicer]:
    with serve_fake() as servicer:
        yield servicer


def received(server: FakeServicer) -> list[str]:
    return [item.text for request in server.requests for item in request.items]


def assert_distinct(sent: list[str]) -> None:
    """Texts recur, after more of them than any load has in flight."""
    assert len(sent) > 64
    last: dict[str, int] = {}
    for number, text in enumerate(sent):
        assert number - last.get(text, -IN_FLIGHT) >= IN_FLIGHT
        last[text] = number
    assert {text.split()[-1] for text in sent} == {"one", "two"}


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("main", ("--mode", "unary")),
        ("main", ("--mode", "stream", "--items", "8")),
        ("main", ("--mode", "client")),
        ("main", ("--mode", "unary", "--rate", "200", "--connections", "2")),
        ("streams", ("--streams", "16")),
    ],
)
def test_no_two_texts_of_a_load_are_equal(
    server: FakeServicer, texts: Path, program: str, flags: tuple[str, ...]
) -> None:
    run_load(server.target, texts, SECONDS, flags, program)
    assert_distinct(received(server))


def test_no_two_texts_of_several_load_generators_are_equal(server: FakeServicer, texts: Path) -> None:
    run_loads(server.target, texts, SECONDS, 3, ("--mode", "unary"))
    assert_distinct(received(server))


def test_no_two_texts_over_http_are_equal(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(AnalyzeHandler, "sent", sent, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), AnalyzeHandler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        run_load(f"127.0.0.1:{http.server_port}", texts, SECONDS, ("--items", "4"), "http")
        http.shutdown()
    assert_distinct(sent)


def test_clients_of_the_comparison_send_the_same_texts_as_the_load_generator(server: FakeServicer, texts: Path) -> None:
    run_load(server.target, texts, SECONDS, ("--in-flight", "1"))
    own = received(server)
    server.requests.clear()
    command = [sys.executable, "-m", "bench.comparison.analyze_client", server.target, str(texts), "--in-flight", "1"]
    subprocess.run([*command, "--seconds", str(SECONDS)], check=True, capture_output=True, cwd=ROOT)
    assert_distinct(received(server))
    assert received(server)[:50] == own[:50]


def test_zipf_repeats_texts(server: FakeServicer, texts: Path) -> None:
    run_load(server.target, texts, SECONDS, ("--zipf", "1.1", "--distinct", "10"))
    assert len(set(received(server))) <= 10 < len(received(server))


def test_load_generator_that_fails_ends_the_wait_for_its_load(tmp_path: Path) -> None:
    client = start_load("127.0.0.1:1", tmp_path / "missing.jsonl", 1.0, (), lambda: 0.0)
    with pytest.raises(SystemExit, match="the load generator failed"):
        figures_of(client)
