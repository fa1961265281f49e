"""Requests that no gRPC library sends, to every method: each gets a status, and nothing is logged.

The cases vary the method, the end of the request, its encoding, the caller's key, and the state of the server.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import itertools
import logging
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from grpc import aio
from grpc_channelz.v1 import channelz
from grpc_reflection.v1alpha import reflection
from polyhead.v1 import admin_service_pb2_grpc
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc import service_names
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.rpc.interceptors.auth import AuthInterceptor
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.rpc.interceptors.telemetry import TelemetryInterceptor
from polyhead_server.rpc.method_table import inference_handler
from polyhead_server.rpc.server_options import inference_options
from polyhead_server.security.api_keys import Keys
from polyhead_server.settings import Settings

from tests.support.http2_client import Http2Client, Outcome, frame
from tests.support.inference_server import items
from tests.support.polling import until

pytestmark = pytest.mark.timeout(120)

# A unary method answers one message, however the client ends its side; a streaming method answers any number.
UNARY = [
    f"{service_names.INFERENCE}/Analyze",
    f"{service_names.INFERENCE}/GetModelInfo",
    f"{service_names.HEALTH}/Check",
    f"{service_names.HEALTH}/List",
    f"{service_names.HEALTH}/Watch",
    f"{service_names.CHANNELZ}/GetServers",
    f"{service_names.CHANNELZ}/GetSocket",
    f"{service_names.ADMIN}/GetStats",
]
INFERENCE_STREAM, REFLECTION = (
    f"{service_names.INFERENCE}/StreamAnalyze",
    f"{service_names.REFLECTION}/ServerReflectionInfo",
)
UNKNOWN = ["no.Such/Thing", f"{service_names.HEALTH}/Nothing"]
METHODS = [*UNARY, INFERENCE_STREAM, REFLECTION, *UNKNOWN]
PUBLIC = {one for one in METHODS if one.startswith((f"{service_names.HEALTH}/", f"{service_names.REFLECTION}/"))}
OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, PERMISSION_DENIED, UNIMPLEMENTED, UNAUTHENTICATED = (
    *(0, 3, 4, 8, 7, 12, 16),
)
MESSAGE = pb2.AnalyzeRequest(items=items(["w1"])).SerializeToString()
KEY = "right"
WITH_KEY = [("authorization", f"Bearer {KEY}")]
TIMEOUT_S = 2.0


class Server:
    """A server of every service with the fake engine."""

    def __init__(self, service: InferenceService, pipeline: Pipeline, port: int) -> None:
        self.service = service
        self.pipeline = pipeline
        self.port = port

    async def run(self, use: Callable[[Http2Client], Outcome], window: int = 65_535) -> Outcome:
        """Returns what a client with a connection of its own receives."""

        def connect() -> Outcome:
            with Http2Client(self.port, window) as client:
                return use(client)

        return await asyncio.to_thread(connect)


@pytest.fixture
async def server(
    model: Model, settings: Callable[..., Settings], tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Server]:
    """A server that is loading its model; the parameters ``key`` and ``timeout_s`` change what it requires."""
    keys = tmp_path / "keys.toml"
    scopes = '["infer", "info", "admin"]'
    keys.write_text(f'[[keys]]\nname = "k"\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\nscopes = {scopes}\n')
    keys.chmod(0o600)
    config = settings(max_held_bytes=2**20)
    metrics, health = Metrics(), Health(max_watch_s=TIMEOUT_S)
    service = InferenceService(config, metrics)
    callspec = getattr(request.node, "callspec", None)
    parameters = callspec.params if callspec else {}
    timeout_s = parameters.get("timeout_s", TIMEOUT_S)
    errors = ErrorInterceptor(service_names.INFERENCE, request_timeout_s=timeout_s, held_bytes=service.held_bytes)
    keyless = parameters.get("key") == "not required"
    auth = [] if keyless else [AuthInterceptor(Keys(keys))]
    interceptors = [TelemetryInterceptor(config, metrics, None), *auth, errors]
    grpc_server = aio.server(interceptors=interceptors, options=inference_options(config, shares_port=False))
    grpc_server.add_generic_rpc_handlers((inference_handler(service),))
    health.add_to(grpc_server)
    reflection.enable_server_reflection((service_names.INFERENCE,), grpc_server)
    channelz.add_channelz_servicer(grpc_server)
    # A generated class, which implements no method.
    unimplemented = cast(Any, admin_service_pb2_grpc.AdminServiceServicer)()
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(unimplemented, grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    pipeline = Pipeline(model, config, metrics.observe_batches)
    pipeline.start()
    yield Server(service, pipeline, port)
    await grpc_server.stop(None)
    await pipeline.close()


WHOLE = frame(MESSAGE)
# What is sent after the headers, and with which encoding; whether the client then ends its side of the call; and the
# status of a unary call, if it does not depend on the method.
ODD: dict[str, tuple[bytes, str | None, bool, int | None]] = {
    "no message": (b"", None, True, INVALID_ARGUMENT),
    "cut prefix": (WHOLE[:3], None, True, INVALID_ARGUMENT),
    "cut message": (WHOLE[:-1], None, True, INVALID_ARGUMENT),
    "silence": (WHOLE[:-1], None, False, DEADLINE_EXCEEDED),
    "two messages": (WHOLE * 2, None, True, None),
    "noise": (frame(b"\xff" * 20), None, True, None),
    "large": (frame(b"\x7a\x80\x80\x02" + bytes(2**15)), None, True, None),
    "bomb": (frame(gzip.compress(bytes(2**24)), compressed=True), "gzip", True, None),
    "deflate": (frame(zlib.compress(MESSAGE), compressed=True), "deflate", True, None),
    "damaged gzip": (frame(gzip.compress(MESSAGE)[:-3], compressed=True), "gzip", True, None),
}


def send_odd(client: Http2Client, method: str, odd: str, headers: list[tuple[str, str]]) -> Outcome:
    data, encoding, end, _ = ODD[odd]
    if encoding:
        headers = [*headers, ("grpc-encoding", encoding)]
    stream = client.open(method, headers)
    client.send(stream, data, end=end)
    return client.finish(stream, timeout_s=30)


def expected(method: str, odd: str, key: str) -> set[int] | None:
    """The allowed statuses; None for any."""
    _, encoding, _, status = ODD[odd]
    small = not method.startswith(service_names.INFERENCE)
    if key == "none" and method not in PUBLIC:
        return {UNAUTHENTICATED}
    if method in UNKNOWN or (key == "right" and method.startswith(service_names.CHANNELZ)):
        return {PERMISSION_DENIED, UNIMPLEMENTED}
    if encoding and small:
        return {UNIMPLEMENTED}
    if odd == "large" and small:
        return {RESOURCE_EXHAUSTED}
    return {status} if status is not None and method in UNARY else None


@pytest.mark.parametrize(
    ("key", "moment"),
    [
        *(("not required", moment) for moment in ("loading", "serving", "draining")),
        ("right", "serving"),
        ("none", "serving"),
    ],
)
async def test_every_request_gets_a_status(
    server: Server, moment: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    if moment != "loading":
        server.service.serve(server.pipeline)
    if moment == "draining":
        server.service.drain()
    caplog.set_level(logging.INFO)
    headers = WITH_KEY if key == "right" else []

    async def check(method: str, odd: str) -> None:
        outcome = await server.run(lambda client: send_odd(client, method, odd, headers))
        statuses = expected(method, odd, key)
        if method == "grpc.health.v1.Health/Watch" and odd == "two messages" and outcome.data:
            # It had begun before the second message came, and goes on.
            return
        assert outcome.status is not None, (method, odd)
        assert statuses is None or outcome.status in statuses, (method, odd, outcome.headers)

    # Those that last until the server gives up run side by side, at the end.
    cases = sorted(itertools.product(METHODS, ODD), key=lambda case: case[1] == "silence" or "Watch" in case[0])
    # A stream of inferences may wait for the rest of a message for as long as its deadline allows.
    if moment == "serving":
        cases.remove((INFERENCE_STREAM, "silence"))
    for first in range(0, len(cases), 16):
        await asyncio.gather(*(check(*case) for case in cases[first : first + 16]))
    # Refused callers are logged in the server's own words; of what they send, nothing is.
    own = "polyhead_server.rpc.interceptors.auth"
    assert [one.getMessage() for one in caplog.records if one.levelno > logging.INFO and one.name != own] == []


async def test_ordinary_requests_are_answered(server: Server) -> None:
    """Control: the same client and server, with what gRPC libraries send."""
    server.service.serve(server.pipeline)
    analyze, check = UNARY[0], f"{service_names.HEALTH}/Check"
    compressed = [*WITH_KEY, ("grpc-encoding", "gzip")]
    plain = await server.run(lambda client: client.call(analyze, MESSAGE, WITH_KEY))
    packed = await server.run(lambda client: client.call(analyze, gzip.compress(MESSAGE), compressed, compressed=True))
    assert (plain.status, packed.status) == (OK, OK)
    answers = [pb2.AnalyzeResponse.FromString(bytes(one.data[5:])).answers for one in (plain, packed)]
    assert [answer.item_id for answer in itertools.chain(*answers)] == ["w1", "w1"]
    assert (await server.run(lambda client: client.call(check, b""))).status == OK
    empty = await server.run(lambda client: send_odd(client, INFERENCE_STREAM, "no message", WITH_KEY))
    assert empty.status == OK


@pytest.mark.parametrize("method", [UNARY[0], INFERENCE_STREAM])
async def test_bomb_is_not_inflated_beyond_its_worth(server: Server, method: str) -> None:
    server.service.serve(server.pipeline)
    outcome = await server.run(lambda client: send_odd(client, method, "bomb", WITH_KEY))
    assert outcome.status == RESOURCE_EXHAUSTED
    assert "inflates to more than" in outcome.headers["grpc-message"]


@pytest.mark.parametrize("timeout_s", [60.0])  # Forty large messages may take a busy machine longer than TIMEOUT_S.
async def test_unread_unary_responses_are_bounded(server: Server, timeout_s: float) -> None:
    """A client that never reads is refused further responses; another client is answered."""
    server.service.serve(server.pipeline)
    message = pb2.AnalyzeRequest(items=items(["w1"] * 200)).SerializeToString()

    def flood(client: Http2Client) -> Any:
        streams = [client.open(UNARY[0], WITH_KEY) for _ in range(40)]
        for stream in streams:
            client.send(stream, frame(message))
        refused = client.finish(streams[-1])
        assert refused.status == RESOURCE_EXHAUSTED
        assert "have not been read" in refused.headers["grpc-message"]
        assert int(refused.headers["grpc-retry-pushback-ms"]) > 0
        assert not client.outcome(streams[0]).ended
        # Before the connection is closed, after which nothing is held for it.
        assert 0 < server.service.held_bytes.unread_bytes <= 2**18
        with Http2Client(server.port) as other:
            return other.call(UNARY[0], MESSAGE, WITH_KEY)

    assert (await server.run(flood, window=0)).status == OK
    # The client has gone.
    await until(lambda: not server.service.held_bytes.unread_bytes)
