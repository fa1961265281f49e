"""Bursts of calls while the event loop is busy, with the options of the server and with gRPC's defaults."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc import aio
from polyhead_server.rpc.server_options import inference_options
from polyhead_server.settings import Settings

pytestmark = pytest.mark.timeout(120)

CALLS = 3000


async def burst(options: list[tuple[str, int]], connections: int) -> Counter[str]:
    """Makes calls at once while the server's event loop does nothing for a second; returns their status codes."""

    async def busy(_: Any, __: Any) -> bytes:
        # The event loop of a server that decodes a large message.
        time.sleep(0.5)  # noqa: ASYNC251 - it must block
        return b""

    async def answer(_: Any, __: Any) -> bytes:
        return b""

    handlers: dict[str, Any] = {
        "Busy": grpc.unary_unary_rpc_method_handler(busy),
        "Answer": grpc.unary_unary_rpc_method_handler(answer),
    }
    server = aio.server(options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.S", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channels = [
        aio.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) for _ in range(connections)
    ]
    codes: Counter[str] = Counter()

    async def call(number: int) -> None:
        method: Any = channels[number % connections].unary_unary(f"/t.S/{'Answer' if number % 1500 else 'Busy'}")
        pending = method(b"", timeout=100)
        codes[(await pending.code()).name] += 1

    await asyncio.gather(*map(call, range(CALLS)))
    for channel in channels:
        await channel.close()
    await server.stop(None)
    return codes


@pytest.mark.parametrize("connections", [1, 8])
async def test_burst_of_calls_is_answered(settings: Callable[..., Settings], connections: int) -> None:
    assert await burst(inference_options(settings(), shares_port=False), connections) == {"OK": CALLS}


async def test_grpc_cancels_calls_of_a_burst_by_default() -> None:
    """Control."""
    assert (await burst([], 1))["CANCELLED"] > 0


def test_connections_leave_descriptors_for_everything_else(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def limit(hard: int, **values: Any) -> int:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (hard, hard))
        return dict(inference_options(settings(max_connections=4096, **values), shares_port=False))[
            "grpc.max_allowed_incoming_connections"
        ]

    assert limit(1024) < 1024 - 100
    # HTTP has connections too.
    http = {"http_listen": "127.0.0.1:0", "http_max_connections": 1000}
    assert limit(4096, **http) == limit(4096) - 1000
    assert 300 < limit(1024, **http) < limit(1024) / 2 + 1
    assert limit(2**20) == limit(resource.RLIM_INFINITY) == 4096


@pytest.mark.parametrize(
    ("values", "age_s"),
    [
        ({}, None),
        ({"workers": 2}, 300.0),
        ({"workers": 2, "max_connection_age_s": 7.0}, 7.0),
        ({"max_connection_age_s": 7.0}, 7.0),
    ],
)
def test_connections_to_several_workers_have_an_age_limit(
    settings: Callable[..., Settings], values: dict[str, Any], age_s: float | None
) -> None:
    options = dict(inference_options(settings(**values), shares_port=False))
    assert options.get("grpc.max_connection_age_ms") == (age_s and 1000 * age_s)
    assert (settings(**values).stream_age_s() is None) == (age_s is None)
    # Streams end by themselves before their connection is cut off.
    if age_s:
        assert 1000 * (settings(**values).stream_age_s() or 0) < options["grpc.max_connection_age_grace_ms"]
