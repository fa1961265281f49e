"""Real proxies with the configurations of deploy/load_balancing in front of three servers, one of which is killed."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_client import Client, PolyheadError

from bench.harness.servers import free_port, metric
from tests.support.demo import ROOT
from tests.support.deploy_tools import find_tool
from tests.support.polling import wait_until
from tests.support.recovery_load import BEFORE, STREAMS, TEXTS, Load, call_until

from .conftest import START_S, Server, Start

pytestmark = pytest.mark.model

EXAMPLES = ROOT / "deploy/load_balancing"
UNARY_CALLERS = 4


@dataclass(frozen=True)
class Proxy:
    """A program that balances calls.

    Attributes:
        example: Its configuration in deploy/load_balancing.
        command: The program, and its arguments before the path of the configuration.
        install: How to install it.
    """

    example: str
    command: tuple[str, ...]
    install: str


PROXIES = {
    "envoy": Proxy(
        "envoy.yaml", ("envoy", "--log-level", "warn", "--disable-hot-restart", "-c"), "run make deploy-tools"
    ),
    "haproxy": Proxy("haproxy.cfg", ("haproxy", "-db", "-f"), "on Debian: apt-get install haproxy"),
    "nginx": Proxy("nginx.conf", ("nginx", "-c"), "on Debian: apt-get install nginx-light"),
}


@dataclass(frozen=True)
class Cluster:
    """Three servers behind a proxy.

    Attributes:
        servers: The servers.
        scrapes: HOST:PORT of each server's metrics.
        target: HOST:PORT of the proxy.
    """

    servers: list[Server]
    scrapes: list[str]
    target: str

    def calls(self) -> list[float]:
        """Returns the running calls of each server."""
        return [metric(scrape, "polyhead_requests_running") for scrape in self.scrapes]

    def served(self) -> list[float]:
        """Returns the number of items that each server has answered."""
        return [metric(scrape, "polyhead_items_total") for scrape in self.scrapes]


def configuration(proxy: Proxy, ports: dict[str, int], pid_file: Path) -> str:
    """Returns the example with the ports of this test in place of its own."""
    text = (EXAMPLES / proxy.example).read_text().replace("/run/polyhead-nginx.pid", str(pid_file))
    pattern = "|".join(rf"\b{port}\b" for port in ports)
    return re.sub(pattern, lambda found: str(ports[found[0]]), text)


@pytest.fixture(params=PROXIES)
def cluster(request: pytest.FixtureRequest, start: Start, demo_bundle: Path, tmp_path: Path) -> Iterator[Cluster]:
    proxy = PROXIES[request.param]
    program = find_tool(proxy.command[0])
    if program is None:
        pytest.skip(f"{proxy.command[0]} is not installed; {proxy.install}")
    ports = {"50050": free_port()}
    servers, scrapes = [], []
    for number in (1, 2, 3):
        http, metrics = free_port(), free_port()
        server = start(
            demo_bundle,
            "--http-listen",
            f"127.0.0.1:{http}",
            "--metrics-listen",
            f"127.0.0.1:{metrics}",
            "--threads",
            "1",
            "--drain-delay-s",
            "5",
        )
        servers.append(server)
        scrapes.append(f"127.0.0.1:{metrics}")
        ports |= {f"5005{number}": int(server.target.rpartition(":")[2]), f"808{number}": http}
    for server in servers:
        server.wait_until_serving()
    path = tmp_path / proxy.example
    path.write_text(configuration(proxy, ports, tmp_path / "pid"))
    log = tmp_path / "proxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *proxy.command[1:], str(path)], cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        target = f"127.0.0.1:{ports['50050']}"
        found = Cluster(servers, scrapes, target)
        _wait_for_servers(found, log, process)
        yield found
    finally:
        process.terminate()
        process.wait(START_S)


def _wait_for_servers(cluster: Cluster, log: Path, process: subprocess.Popen[bytes]) -> None:
    """Waits until every server has answered a call through the proxy."""
    # Several at a time: the call with which the client watches the health of its target occupies one server, so that a
    # single call is never sent there.
    with Client(cluster.target) as client, ThreadPoolExecutor(STREAMS) as pool:

        def call(_: int) -> None:
            with contextlib.suppress(PolyheadError):
                client.analyze(["one"])

        def all_answer() -> bool:
            assert process.poll() is None, log.read_text()
            list(pool.map(call, range(STREAMS)))
            return min(cluster.served()) > 0

        wait_until(all_answer, "every server answers calls through the proxy")


def kill_one(cluster: Cluster, spread: list[float]) -> Callable[[], object]:
    """Returns a fault: notes the calls of each server, then kills the first one."""

    def fault() -> None:
        spread.extend(cluster.calls())
        cluster.servers[0].stop(signal.SIGKILL)

    return fault


def test_streams_spread_over_the_servers_and_survive_the_death_of_one(cluster: Cluster) -> None:
    """The control, streams of plain stubs under the same load, is in test_client_recovery."""
    spread: list[float] = []
    load = Load(kill_one(cluster, spread), START_S)
    ended = threading.Event()
    # One connection: a proxy that balanced connections would send all streams to one server.
    with Client(cluster.target, connections=1) as client, ThreadPoolExecutor(2 * STREAMS) as pool:
        streams = [pool.submit(load.stream, client) for _ in range(STREAMS)]
        calls = [pool.submit(call_until, ended, client) for _ in range(UNARY_CALLERS)]
        try:
            load.inject_fault()
            assert all(one.result() for one in streams)
        finally:
            ended.set()
        assert all(one.result() for one in calls)
    # Each had streams to lose. Envoy's threads take turns apart from each other, so that shares differ.
    assert min(spread) >= 1
    assert BEFORE <= load.answered_before < load.answered == STREAMS * TEXTS


# nginx sends calls to a server that drains, which only clients that retry survive.
@pytest.mark.parametrize("cluster", ["envoy", "haproxy"], indirect=True)
def test_calls_without_retries_survive_the_drain_of_a_server(cluster: Cluster) -> None:
    request = pb2.AnalyzeRequest(items=[item_pb2.Item(text="one")])
    ended = threading.Event()

    def call_until_ended(stub: inference_service_pb2_grpc.InferenceServiceStub) -> int:
        calls = 0
        while not ended.is_set():
            assert stub.Analyze(request).answers[0].HasField("result")
            calls += 1
        return calls

    # No retries by gRPC either.
    options = [("grpc.enable_retries", 0)]
    with grpc.insecure_channel(cluster.target, options) as channel, ThreadPoolExecutor(UNARY_CALLERS) as pool:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        calls = [pool.submit(call_until_ended, stub) for _ in range(UNARY_CALLERS)]
        try:
            before = cluster.served()
            wait_until(lambda: all(now > then for now, then in zip(cluster.served(), before, strict=True)), "all serve")
            assert cluster.servers[0].stop(signal.SIGTERM) == 0
        finally:
            ended.set()
        assert all(one.result() for one in calls)
