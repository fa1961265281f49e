"""What an operator sees of a real server process: metrics, traces, log lines, ``polyhead top``."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from bench.harness.servers import free_port
from tests.contract.test_metrics_docs import documented
from tests.support.demo import BIN
from tests.support.polling import wait_until

from .conftest import START_S, Server, Start

pytestmark = pytest.mark.model

TRACE, ABOVE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TLS_ALONE = {"polyhead_certificate_expiry_seconds"}
# No other word of a log or a trace has this one in it.
ODD = "Zanzibarquux"


def analyze(server: Server, *texts: str, **metadata: str) -> Any:
    """One unary call over a connection of its own; returns the call."""
    request = pb2.AnalyzeRequest(
        items=[item_pb2.Item(item_id=str(index), text=text) for index, text in enumerate(texts)]
    )
    with grpc.insecure_channel(server.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        pairs = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        response, call = stub.Analyze.with_call(request, timeout=START_S, metadata=pairs, wait_for_ready=True)
    assert all(answer.WhichOneof("outcome") == "result" for answer in response.answers)
    return call


def scrape(port: int) -> dict[str, Metric]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=START_S) as response:
        return {family.name: family for family in text_string_to_metric_families(response.read().decode())}


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    """The one sample of that name that has these labels."""
    samples = [sample for family in families.values() for sample in family.samples]
    (found,) = [one.value for one in samples if one.name == name and labels.items() <= one.labels.items()]
    return float(found)


@dataclass(frozen=True)
class Observed:
    """A server that has answered one call, the id of whose request is ``r-1``.

    Attributes:
        server: Its process, which logs every call as JSON.
        admin: Target of its admin service.
        families: Its metrics after the call.
    """

    server: Server
    admin: str
    families: dict[str, Metric]


@pytest.fixture(scope="module")
def observed(start: Start, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    port, admin = free_port(), f"unix:{tmp_path_factory.mktemp('admin')}/socket"
    listen = ("--metrics-listen", f"127.0.0.1:{port}", "--admin-listen", admin)
    server = start(demo_bundle, *listen, "--log-format", "json", "--access-log", "info", "--log-level", "debug")
    server.wait_until_serving()
    analyze(server, f"{ODD} ordered a teapot", "and another", x_request_id="r-1")
    return Observed(server, admin, scrape(port))


def test_every_documented_metric_is_scraped_and_no_other(observed: Observed) -> None:
    families = observed.families
    assert set(families) == {name.removesuffix("_total") for name in documented() - TLS_ALONE}
    assert value(families, "polyhead_requests_total", method="Analyze", code="OK") == 1
    assert value(families, "polyhead_request_duration_seconds_count", method="Analyze") == 1
    assert value(families, "polyhead_items_total") == 2
    assert value(families, "polyhead_event_loop_lag_seconds_count") > 0
    assert value(families, "process_resident_memory_bytes") > 2**20


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Receives OTLP as a collector does."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def resource(self) -> dict[str, str]:
        return {one.key: one.value.string_value for one in self.requests[0].resource_spans[0].resource.attributes}

    def spans(self) -> dict[str, trace_pb2.Span]:
        """The spans by their names, of which each is there once."""
        spans = [
            span
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        assert len({span.name for span in spans}) == len(spans)
        return {span.name: span for span in spans}


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    """A receiver of traces, and its URL."""
    with ThreadPoolExecutor(2) as pool:
        receiver, server = Receiver(), grpc.server(pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield receiver, f"http://127.0.0.1:{port}"
        server.stop(None).wait()


def test_trace_of_the_client_goes_on_in_a_receiver(
    start: Start, demo_bundle: Path, receiver: tuple[Receiver, str]
) -> None:
    received, url = receiver
    # The end of the server sends what is left.
    server = start(demo_bundle, "--otlp-endpoint", url, environment={"OTEL_SERVICE_NAME": "tickets"})
    server.wait_until_serving()
    call = analyze(server, f"{ODD} ordered a teapot", traceparent=f"00-{TRACE}-{ABOVE}-01", x_request_id="r-1")
    assert dict(call.trailing_metadata())["x-request-id"] == "r-1"
    assert server.stop() == 0
    assert received.resource()["service.name"] == "tickets"
    spans = received.spans()
    assert set(spans) == {"polyhead.v1.InferenceService/Analyze", "tokenization", "queue", "batch"}
    above = spans["polyhead.v1.InferenceService/Analyze"]
    assert (above.trace_id.hex(), above.parent_span_id.hex()) == (TRACE, ABOVE)
    assert {span.parent_span_id for name, span in spans.items() if name != above.name} == {above.span_id}
    assert above.start_time_unix_nano <= spans["batch"].start_time_unix_nano < spans["batch"].end_time_unix_nano
    assert spans["batch"].end_time_unix_nano <= above.end_time_unix_nano
    assert not any(ODD in str(request) for request in received.requests)


def test_receiver_that_is_not_there_costs_no_answer(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle, "--otlp-endpoint", f"http://127.0.0.1:{free_port()}")
    server.wait_until_serving()
    analyze(server, "one text")
    began = time.monotonic()
    assert server.stop() == 0
    # Far below the time for which the exporter would try.
    assert time.monotonic() - began < 15


def test_json_log_tells_of_each_call_and_never_its_text(observed: Observed) -> None:
    def accesses() -> list[dict[str, Any]]:
        # Without a line that is being written.
        lines = [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]
        access = [line for line in lines if line["logger"] == "polyhead_server.rpc.interceptors.telemetry"]
        return [line for line in access if line["request_id"] == "r-1"]

    log = observed.server.log
    wait_until(lambda: bool(accesses()), "the call is logged")
    (access,) = accesses()
    assert (access["level"], access["method"]) == ("info", "Analyze")
    assert (access["code"], access["items"]) == ("OK", 2)
    assert access["duration_s"] > 0
    assert ODD not in log.read_text()


def test_top_shows_a_running_server(observed: Observed) -> None:
    server = observed.server
    command = [str(BIN / "polyhead"), "top", "--target", observed.admin, "--json", "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout
        first = json.loads(top.stdout.readline())
        assert (first["process_id"], first["items_per_s"]) == (server.process.pid, None)
        analyze(server, "one text")
        # The reading after the call has it.
        seen = next(row for row in map(json.loads, top.stdout) if row["items_per_s"])
        top.terminate()
    assert seen["items_per_batch"] == 1
    assert 0 < seen["busy_share"] <= 1
