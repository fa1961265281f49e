"""A real server with two fronts and one engine process."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import tempfile
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from prometheus_client.parser import text_string_to_metric_families

from bench.harness.servers import free_port
from tests.reliability.recalibrated_bundle import write_bundle_with_other_head
from tests.support.polling import wait_until
from tests.support.worker_load import NOT_ACCEPTED, Load, alive, workers_of

from .conftest import START_S, Server, Start, put

pytestmark = pytest.mark.model

TEXTS = ["I want my money back", "The app crashes on my phone.", "Where is my parcel?", "word " * 300]


def processes_of(server: Server, role: str) -> list[int]:
    """Returns the processes of the server that play a part."""
    return [
        pid
        for pid in workers_of(server)
        if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-2:] == [role.encode(), b""]
    ]


def serving(server: Server) -> int:
    """Returns how many processes have started to serve since the start of the server."""
    return server.log.read_text().count(" serves as process ")


def start_fronts(start: Start, served: Path, *flags: str, count: int = 2, **options: Any) -> Server:
    server = start(served, "--fronts", str(count), *flags, **options)
    wait_until(lambda: serving(server) == count + 1, "the engine and the fronts serve")
    return server


def stub_of(channel: grpc.Channel) -> Any:
    return inference_service_pb2_grpc.InferenceServiceStub(channel)


def channel_to(server: Server) -> grpc.Channel:
    """A connection of its own, without retries."""
    return grpc.insecure_channel(server.target, [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)])


def analyze(stub: Any, *texts: str) -> Any:
    request = pb2.AnalyzeRequest(items=[item_pb2.Item(item_id=text, text=text) for text in texts])
    return stub.Analyze(request, timeout=START_S, wait_for_ready=True)


@pytest.fixture(scope="module")
def shared(start: Start, demo_bundle: Path) -> Server:
    """Two fronts, for tests that stop nothing."""
    metrics, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
    server = start_fronts(start, demo_bundle, "--metrics-listen", metrics, "--http-listen", http)
    server.metrics, server.http = metrics, http  # type: ignore[attr-defined]
    return server


def test_answers_are_those_of_one_process(start: Start, shared: Server, demo_bundle: Path) -> None:
    single = start(demo_bundle)
    single.wait_until_serving()
    with channel_to(single) as one, channel_to(shared) as other:
        for text in TEXTS:
            (expected,), (found,) = (analyze(stub_of(channel), text).answers for channel in (one, other))
            # A single text is computed alone, so every bit is the same.
            assert found.result == expected.result
            assert found.item_id == expected.item_id
        info, expected_info = (
            stub_of(channel).GetModelInfo(pb2.GetModelInfoRequest(), timeout=START_S) for channel in (other, one)
        )
        assert info == expected_info
    assert single.stop() == 0


def test_every_protocol_goes_to_the_one_engine(shared: Server) -> None:
    before = samples(shared, "polyhead_items")
    with channel_to(shared) as channel:
        requests = (pb2.StreamAnalyzeRequest(items=[item_pb2.Item(item_id=str(n), text=f"{n}")]) for n in range(50))
        answers = [
            answer for one in stub_of(channel).StreamAnalyze(requests, timeout=START_S) for answer in one.answers
        ]
    assert [answer.item_id for answer in answers] == [str(n) for n in range(50)]
    connection = http.client.HTTPConnection(shared.http, timeout=START_S)  # type: ignore[attr-defined]
    connection.request("POST", "/v1/analyze", json.dumps({"texts": ["over HTTP"]}))
    assert len(json.load(connection.getresponse())["answers"]) == 1
    connection.close()
    assert samples(shared, "polyhead_items") == before + 51
    # One queue and one set of compute threads, those of the engine.
    assert samples(shared, "polyhead_compute_threads") == len(os.sched_getaffinity(0))
    assert samples(shared, "polyhead_requests") >= 2


def samples(server: Server, name: str) -> float:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as page:  # type: ignore[attr-defined]
        families = {family.name: family for family in text_string_to_metric_families(page.read().decode())}
    return sum(sample.value for sample in families[name].samples if not sample.name.endswith("_created"))


def test_one_process_alone_has_the_model(shared: Server) -> None:
    (engine,) = processes_of(shared, "engine")
    maps = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in workers_of(shared)}
    assert [pid for pid, text in maps.items() if "libonnxruntime" in text] == [engine]
    assert "grpc/_cython" not in Path(f"/proc/{shared.process.pid}/maps").read_text()


@pytest.fixture(scope="module")
def restarting(start: Start, demo_bundle: Path) -> Server:
    """Two fronts, for tests that kill processes."""
    return start_fronts(start, demo_bundle)


def test_plain_stubs_notice_nothing_of_a_killed_engine_but_time(restarting: Server) -> None:
    server, started = restarting, serving(restarting)
    lost = server.log.read_text().count("the engine is lost")
    with Load(server.target, pause_s=0.05) as load:
        load.wait_for(200)
        for kill in range(2):
            (engine,) = processes_of(server, "engine")
            os.kill(engine, signal.SIGKILL)
            wait_until(partial(lambda count: serving(server) == count, started + 1 + kill), "the next engine serves")
            load.wait_for(load.answers["result"] + 200)
    assert set(load.answers) == {"result"}
    assert set(load.ends) == {"OK"}
    assert server.log.read_text().count("the engine is lost") == lost + 4


def test_a_killed_front_takes_its_connections_alone(restarting: Server) -> None:
    server, started = restarting, serving(restarting)
    (engine,) = processes_of(server, "engine")
    with Load(server.target, pause_s=0.05) as load:
        load.wait_for(200)
        os.kill(processes_of(server, "front")[0], signal.SIGKILL)
        wait_until(lambda: serving(server) == started + 1, "the front serves again")
        load.wait_for(load.answers["result"] + 200)
    assert set(load.answers) == {"result"}
    assert load.ends.keys() <= NOT_ACCEPTED
    # At most the calls of 8 connections, those of them that the front had.
    assert sum(count for end, count in load.ends.items() if end != "OK") < 8 * 20
    assert processes_of(server, "engine") == [engine]


@dataclass(frozen=True)
class Reloading:
    """Two fronts, for tests that replace the bundle and put the first one back.

    Attributes:
        server: The process.
        served: Link to the bundle.
        other: A bundle with another head.
    """

    server: Server
    served: Path
    other: Path

    def reloads(self) -> int:
        """Returns the number of reloads."""
        return self.server.log.read_text().count("the engine has reloaded")

    def reload(self, bundle: Path) -> None:
        """Serves a bundle, and waits until the engine does."""
        before = self.reloads()
        put(bundle, self.served)
        self.server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.reloads() > before, "the bundle is reloaded")


@pytest.fixture(scope="module")
def reloading(start: Start, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Reloading:
    folder = tmp_path_factory.mktemp("reloading")
    served = folder / "served"
    put(demo_bundle, served)
    other = write_bundle_with_other_head(demo_bundle, folder / "other")
    return Reloading(start_fronts(start, served), served, other)


def test_a_stopped_front_holds_up_neither_the_others_nor_a_reload(reloading: Reloading, demo_bundle: Path) -> None:
    server = reloading.server

    def version(channel: grpc.Channel) -> str:
        (answer,) = analyze(stub_of(channel), "one text").answers
        return str(answer.result.fingerprints)

    with contextlib.ExitStack() as stack:
        # The probability that a front has none of 20 connections is 2 ** -19.
        channels = [stack.enter_context(channel_to(server)) for _ in range(20)]
        (old,) = {version(channel) for channel in channels}
        stopped = processes_of(server, "front")[0]
        stack.callback(os.kill, stopped, signal.SIGCONT)
        os.kill(stopped, signal.SIGSTOP)
        request = pb2.AnalyzeRequest(items=[item_pb2.Item(text="one text")])
        calls = [stub_of(channel).Analyze.future(request, timeout=START_S) for channel in channels]
        wait_until(lambda: any(call.done() for call in calls), "the other front answers")
        reloading.reload(reloading.other)
        answering = [channel for channel, call in zip(channels, calls, strict=True) if call.done()]
        assert 0 < len(answering) < len(channels)
        (new,) = {version(channel) for channel in answering}
        assert new != old
        os.kill(stopped, signal.SIGCONT)
        # Its calls came before the reload and were submitted after it.
        assert {str(call.result().answers[0].result.fingerprints) for call in calls} == {old, new}
        assert {version(channel) for channel in channels} == {new}
    reloading.reload(demo_bundle)


def test_a_stop_answers_what_was_accepted(start: Start, demo_bundle: Path) -> None:
    server = start_fronts(start, demo_bundle)
    pids = workers_of(server)
    with Load(server.target) as load:
        load.wait_for(200)
        assert server.stop() == 0
    assert set(load.answers) == {"result"}
    assert load.ends.keys() <= NOT_ACCEPTED
    assert not any(map(alive, pids))


def test_a_signal_to_every_process_answers_what_was_accepted(start: Start, demo_bundle: Path) -> None:
    server = start_fronts(start, demo_bundle)
    with Load(server.target) as load:
        load.wait_for(200)
        for pid in workers_of(server):
            os.kill(pid, signal.SIGTERM)
        assert server.stop() == 0
    assert set(load.answers) == {"result"}
    assert load.ends.keys() <= NOT_ACCEPTED


def test_processes_end_with_their_supervisor(start: Start, demo_bundle: Path) -> None:
    # The path of a socket is short, and tmp_path is not.
    with tempfile.TemporaryDirectory() as folder:
        server = start_fronts(start, demo_bundle, environment={"TMPDIR": folder})
        assert list(Path(folder).glob("polyhead-engine-*/engine.sock"))
        pids = workers_of(server)
        server.stop(signal.SIGKILL)
        wait_until(lambda: not any(map(alive, pids)), "the processes end")
        assert not list(Path(folder).glob("polyhead-engine-*"))


def test_a_refused_reload_changes_nothing(reloading: Reloading, demo_bundle: Path, twin: Path) -> None:
    server = reloading.server
    put(twin, reloading.served)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "0123456789abcdef differs" in server.log.read_text(), "the reload is refused")
    with channel_to(server) as channel:
        (answer,) = analyze(stub_of(channel), "one text").answers
    assert answer.result.fingerprints.embedding_space != "0123456789abcdef"
    put(demo_bundle, reloading.served)
