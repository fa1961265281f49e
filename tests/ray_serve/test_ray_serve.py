"""Ray Serve answers as a plain server does, and loses no call of the shipped client when a replica dies or is replaced.

Takes about two minutes; `make test-ray` runs it in an environment of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from google.rpc import error_details_pb2, status_pb2
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_client import Answer, Client

from bench.harness.processes import cpu_s
from bench.harness.servers import BIN

from .conftest import Plain

if TYPE_CHECKING:
    from bench.harness.ray_serve import RayServe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; run `make test-ray`"),
]

TOLERANCE = 1e-6
TEXTS = [
    "",
    "a",
    "The parcel never came.",
    "I love this app!",
    "word " * 400,
    *(f"ticket {i} is open" for i in range(60)),
]
STREAMS = ("stream", "stream_embed", "stream_classify", "stream_sentiment")
WAIT_S = 60
_NUMBERS = itertools.count()


@pytest.fixture
def clients(plain: Plain, cluster: RayServe) -> Iterator[tuple[Client, Client]]:
    with Client(plain.target, api_key=plain.key) as one, Client(cluster.target, api_key=plain.key) as other:
        yield one, other


def assert_equal(expected: list[Answer], actual: list[Answer]) -> None:
    assert [one.item_id for one in actual] == [one.item_id for one in expected]
    for one, other in zip(expected, actual, strict=True):
        assert one.result is not None
        assert other.result is not None
        if one.result.embedding is None or other.result.embedding is None:
            assert one.result.embedding is other.result.embedding
        else:
            assert np.abs(one.result.embedding - other.result.embedding).max() <= TOLERANCE
        assert probabilities(other) == pytest.approx(probabilities(one), abs=TOLERANCE)
        assert other.result.fingerprints == one.result.fingerprints
        assert other.result.truncation == one.result.truncation


def probabilities(answer: Answer) -> dict[str, float]:
    assert answer.result
    found = {}
    if classes := answer.result.classification:
        found.update({f"{classes.head}/{score.label}": score.probability for score in classes.scores})
    if sentiment := answer.result.sentiment:
        found[f"{sentiment.head}/{sentiment.label}"] = sentiment.probability
    return found


def test_unary_answers_equal_those_of_a_plain_server(clients: tuple[Client, Client]) -> None:
    plain, ray = clients
    assert ray.info() == plain.info()
    assert_equal(plain.analyze(TEXTS), ray.analyze(TEXTS))


@pytest.mark.parametrize("method", STREAMS)
def test_streams_equal_those_of_a_plain_server(clients: tuple[Client, Client], method: str) -> None:
    expected, actual = (list(getattr(client, method)(TEXTS)) for client in clients)
    assert_equal(expected, actual)


def request(**fields: Any) -> bytes:
    return pb2.AnalyzeRequest(**fields).SerializeToString()


def item(text: str, item_id: str = "") -> item_pb2.Item:
    return item_pb2.Item(text=text, item_id=item_id)


def long_items(count: int) -> list[item_pb2.Item]:
    """Returns texts of more tokens than the model reads, all different: equal ones would be computed once."""
    return [item(f"{next(_NUMBERS)} " + "word " * 300) for _ in range(count)]


REQUESTS = {
    "malformed": b"\xff\xff\xff",
    "too many items": request(items=[item("a")] * 2000),
    "unknown task": request(items=[item("a")], tasks=[99]),
    "too many dimensions": request(items=[item("a")], embedding_options=item_pb2.EmbeddingOptions(dimensions=100_000)),
    "another model": request(
        items=[item("a")],
        options=item_pb2.ItemOptions(expected_fingerprints=item_pb2.Fingerprints(embedding_space="0" * 16)),
    ),
    "a text that is too long among others": request(
        items=[item("a"), item("word " * 400)],
        options=item_pb2.ItemOptions(truncation=item_pb2.TRUNCATION_POLICY_ERROR),
    ),
    "a text that is not UTF-8 among others": b"\n\x05\x12\x03abc" + b"\n\x04\x12\x02\xff\xfe",
    "an id that is too long": request(items=[item("a", "i" * 5000)]),
    "too large": request(items=[item("x" * 17_000_000)]),
}


def metadata_of(call: Any) -> dict[str, Any]:
    return dict(call.trailing_metadata() or ())


def outcome(call: Callable[[], Any]) -> Any:
    """Returns the errors of a call's items, or the code and the details of its status."""
    try:
        answers = call()
    except grpc.RpcError as error:
        trailing = metadata_of(error)
        status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
        return error.code(), facts(status)
    return [(answer.item_id, facts(answer.error)) for answer in answers]


def facts(status: status_pb2.Status) -> tuple[Any, ...]:
    """Returns what a status says; the bytes of its metadata have no fixed order."""
    details = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            details.append((info.reason, info.domain, dict(info.metadata)))
    return status.code, status.message, details


def outcomes(target: str, data: bytes, metadata: list[tuple[str, str]]) -> tuple[Any, Any]:
    """Returns what a request gets as a unary call, and as the first message of a stream."""
    service = "/polyhead.v1.InferenceService"
    options: dict[str, Any] = {"metadata": metadata, "timeout": WAIT_S}
    with grpc.insecure_channel(target) as channel:
        unary: Any = channel.unary_unary(f"{service}/Analyze", None, pb2.AnalyzeResponse.FromString)
        stream: Any = channel.stream_stream(f"{service}/StreamAnalyze", None, pb2.StreamAnalyzeResponse.FromString)
        calls = stream(iter([data]), **options)
        return (
            outcome(lambda: unary(data, **options).answers),
            outcome(lambda: [answer for response in calls for answer in response.answers]),
        )


@pytest.mark.parametrize("name", REQUESTS)
def test_errors_equal_those_of_a_plain_server(plain: Plain, cluster: RayServe, name: str) -> None:
    expected, actual = (outcomes(one.target, REQUESTS[name], plain.metadata()) for one in (plain, cluster))
    if name == "too large":
        # A plain server's gRPC refuses it before polyhead sees it, without a reason.
        assert [one[0] for one in expected] == [one[0] for one in actual] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2
        assert actual[0][1][2][0][0] == "MESSAGE_TOO_LARGE"
    else:
        assert actual == expected


@pytest.mark.parametrize("metadata", [[], [("authorization", "Bearer wrong")]])
def test_a_call_without_a_valid_key_is_refused(cluster: RayServe, metadata: list[tuple[str, str]]) -> None:
    with grpc.insecure_channel(cluster.target) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
        for call in (
            lambda: stub.Analyze(pb2.AnalyzeRequest(items=[item("a")]), metadata=metadata, timeout=WAIT_S),
            lambda: list(stub.StreamAnalyze(iter(()), metadata=metadata, timeout=WAIT_S)),
        ):
            with pytest.raises(grpc.RpcError) as error:
                call()
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert b"UNAUTHENTICATED" in metadata_of(error.value)["grpc-status-details-bin"]


def test_a_key_has_its_scopes_alone(plain: Plain, cluster: RayServe) -> None:
    with Client(cluster.target, api_key=plain.info_key) as client:
        assert client.info().model_id
        with pytest.raises(Exception, match="PERMISSION_DENIED"):
            client.analyze(["a"])


def test_a_call_whose_deadline_is_shorter_than_the_queue_is_refused_at_once(plain: Plain, cluster: RayServe) -> None:
    """The deadline reaches the replica: one that did not know it would accept the call."""
    # More than a second of work on any machine, with the streams before it.
    message = pb2.AnalyzeRequest(items=long_items(512))

    def long_texts() -> Iterator[pb2.StreamAnalyzeRequest]:
        for _ in range(20):
            yield pb2.StreamAnalyzeRequest(items=long_items(64))

    def is_refused(call: Any) -> bool:
        """Returns whether the call was refused, or the last of its texts."""
        trailing = metadata_of(call)
        if call.code() is grpc.StatusCode.OK:
            return b"OVERLOADED" in call.result().SerializeToString()
        refused = b"OVERLOADED" in trailing.get("grpc-status-details-bin", b"")
        return refused and int(trailing["grpc-retry-pushback-ms"]) > 0

    with grpc.insecure_channel(cluster.target) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
        # One for each replica at least.
        streams = [stub.StreamAnalyze(long_texts(), metadata=plain.metadata()) for _ in range(6)]
        wait_until(
            lambda: is_refused(stub.Analyze.future(message, metadata=plain.metadata(), timeout=1.0)),
            "refused call",
        )
        for stream in streams:
            stream.cancel()


def post(address: str, path: str, body: Any, key: str) -> tuple[int, Any]:
    call = urllib.request.Request(
        f"http://{address}{path}",
        json.dumps(body).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(call, timeout=WAIT_S) as response:  # noqa: S310 - http alone
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


HTTP_CALLS = [
    ("/v1/analyze", {"texts": ["a", "The parcel never came."]}),
    ("/v1/analyze", {"texts": "a", "unknown": 1}),
    ("/v1/embeddings", {"input": ["a", "b"], "model": "demo"}),
    ("/v1/embeddings", {"input": ["a"], "model": "another"}),
    ("/embed", {"inputs": ["a", "b"]}),
    ("/embed", {"inputs": ["word " * 400]}),
    ("/v2/models/demo/infer", {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}),
    ("/v2/models/another/infer", {"inputs": []}),
    ("/nowhere", {}),
]


@pytest.mark.parametrize(("path", "body"), HTTP_CALLS)
def test_http_equals_that_of_a_plain_server(plain: Plain, cluster: RayServe, path: str, body: Any) -> None:
    status, expected = post(plain.http_target, path, body, plain.key)
    found, actual = post(cluster.http_target, path, body, plain.key)
    assert found == status
    assert flat(actual) == pytest.approx(flat(expected), abs=TOLERANCE)
    assert post(cluster.http_target, path, body, "wrong")[0] in {401, 404}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Returns the numbers and texts of a JSON document by their paths."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: one for name, part in pairs for key, one in flat(part, f"{path}/{name}").items()}
    return {path: value}


def test_replicas_start_with_one_thread_of_numpy(cluster: RayServe) -> None:
    for pid in cluster.replicas():
        assert b"OPENBLAS_NUM_THREADS=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def test_health_is_served(cluster: RayServe) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(cluster.target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        check = health_pb2.HealthCheckRequest(service="polyhead.v1.InferenceService")
        assert stub.Check(check, timeout=WAIT_S).status == health_pb2.HealthCheckResponse.SERVING
        assert next(stub.Watch(check, timeout=WAIT_S)).status == health_pb2.HealthCheckResponse.SERVING


class Load:
    """Calls and streams of the shipped client, until they are stopped."""

    def __init__(self, target: str, key: str) -> None:
        self._client = Client(target, api_key=key, connections=2)
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(8)
        self.calls = self.answers = 0
        self._work = [self._pool.submit(self._call) for _ in range(4)]
        self._work += [self._pool.submit(self._stream) for _ in range(4)]

    def _call(self) -> None:
        while not self._ended.is_set():
            assert [bool(answer.result) for answer in self._client.analyze(["one", "two"])] == [True, True]
            self.calls += 1

    def _stream(self) -> None:
        sent: list[str] = []

        def texts() -> Iterator[str]:
            while not self._ended.is_set():
                sent.append(f"text {len(sent)}")
                yield sent[-1]

        answered = 0
        for answer in self._client.stream(texts()):
            assert answer.result is not None
            assert answer.item_id == str(answered)
            answered += 1
            self.answers += 1
        assert answered == len(sent)

    def wait_for_more(self) -> None:
        """Waits until another hundred of each have been answered."""
        calls, answers, ends = self.calls, self.answers, time.monotonic() + WAIT_S
        while self.calls < calls + 100 or self.answers < answers + 100:
            assert time.monotonic() < ends, f"{self.calls - calls} calls, {self.answers - answers} answers"
            for one in self._work:
                assert not one.done(), one.exception()
            time.sleep(0.05)

    def end(self) -> None:
        """Ends the load; raises what failed."""
        self._ended.set()
        try:
            for one in self._work:
                one.result(WAIT_S)
        finally:
            self._client.close()
            self._pool.shutdown()


@pytest.fixture
def load(plain: Plain, cluster: RayServe) -> Iterator[Load]:
    running = Load(cluster.target, plain.key)
    try:
        running.wait_for_more()
        yield running
    finally:
        running.end()


def test_no_call_fails_when_a_replica_is_killed(cluster: RayServe, load: Load) -> None:
    before = set(cluster.replicas())
    killed = before.pop()
    os.kill(killed, signal.SIGKILL)
    load.wait_for_more()
    wait_until(lambda: len(set(cluster.replicas()) - {killed}) == 2, "another replica")
    load.wait_for_more()
    assert killed not in cluster.replicas()


def test_control_a_call_without_retries_fails_when_a_replica_is_killed(plain: Plain, cluster: RayServe) -> None:
    """The status of a call that a dead replica had is one by which a client retries."""
    wait_until(lambda: len(cluster.replicas()) == 2, "two replicas")
    with grpc.insecure_channel(cluster.target) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
        messages = [pb2.AnalyzeRequest(items=long_items(64)) for _ in range(6)]
        idle_s = {pid: cpu_s(pid) for pid in cluster.replicas()}
        calls = [stub.Analyze.future(one, metadata=plain.metadata(), timeout=WAIT_S) for one in messages]
        wait_until(lambda: max(cpu_s(pid) - idle_s[pid] for pid in idle_s) > 0.1, "a replica that computes")
        os.kill(max(idle_s, key=lambda pid: cpu_s(pid) - idle_s[pid]), signal.SIGKILL)
        codes = {call.code() for call in calls}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert grpc.StatusCode.UNAVAILABLE in codes


def test_no_call_fails_during_a_rolling_update(cluster: RayServe, load: Load) -> None:
    before = set(cluster.replicas())
    path = cluster.log.with_name("serve.yaml")
    config = yaml.safe_load(path.read_text())
    config["applications"][0]["args"]["max_queue_s"] = 29
    changed = path.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump(config))
    dashboard = re.search(r"http://127\.0\.0\.1:\d+", cluster.log.read_text())
    assert dashboard
    # The cluster has made a token, which this mode makes the command send.
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    command = [str(BIN / "serve"), "deploy", str(changed), "--address", dashboard[0]]
    subprocess.run(command, check=True, timeout=WAIT_S, env=environment)
    wait_until(lambda: len(set(cluster.replicas()) - before) == 2, "two new replicas")
    load.wait_for_more()
    wait_until(lambda: not before & set(cluster.replicas()), "the end of the old replicas")
    load.wait_for_more()


def wait_until(true: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < ends, f"no {what} after {WAIT_S} s"
        time.sleep(0.2)
