"""The request and its response on a connection of uvicorn's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from polyhead_server.http import exchange
from polyhead_server.http.exchange import ClientDisconnectError, Exchange, Response, UvicornExchange, exchange_of

from .conftest import HttpServer
from .test_listener import connect, until_closed

pytestmark = pytest.mark.timeout(60)


class Cycle:
    """uvicorn's request and response, as far as an exchange uses them; records what is written."""

    def __init__(self, body: bytes = b"", *, more_body: bool = False, **state: bool) -> None:
        self.body, self.more_body = bytearray(body), more_body
        self.disconnected = state.get("disconnected", False)
        self.keep_alive = state.get("keep_alive", True)
        self.response_started = self.response_complete = False
        self.waiting_for_100_continue = True
        self.message_event = asyncio.Event()
        self.flow = SimpleNamespace(write_paused=state.get("write_paused", False), drain=self._drain)
        # Sizes of what the client has not read, each time they are asked for; 0: it has read all.
        self.unread = [0]
        self.events: list[Any] = []
        self.transport = SimpleNamespace(
            write=self._write,
            writelines=lambda parts: self._write(b"".join(parts)),
            close=lambda: self.events.append("close"),
            abort=lambda: self.events.append("abort"),
            get_write_buffer_size=lambda: self.unread.pop(0),
            # Without a queue in the operating system.
            get_extra_info=lambda _: SimpleNamespace(fileno=lambda: -1),
        )
        self.messages: list[dict[str, Any]] = []

    def on_response(self) -> None:
        self.events.append("complete")

    async def send(self, message: Any) -> None:
        self.messages.append(message)

    async def receive(self) -> Any:
        return self.messages.pop(0)

    def _write(self, data: bytes) -> None:
        self.events.append(data)
        self.flow.write_paused = any(self.unread)

    async def _drain(self) -> None:
        self.events.append("drain")
        if any(self.unread):
            await asyncio.Event().wait()
        self.flow.write_paused = False

    def exchange(self, method: str = "POST", *headers: tuple[bytes, bytes], query: bytes = b"") -> Exchange:
        scope = {"method": method, "path": "/", "headers": list(headers), "query_string": query, "client": None}
        return UvicornExchange(scope, self.receive, self.send)


def response(text: bytes) -> tuple[bytes, list[bytes], bytes]:
    head, _, body = text.partition(b"\r\n\r\n")
    status, *headers = head.split(b"\r\n")
    return status, sorted(headers), body


async def test_whole_response_is_one_write() -> None:
    cycle = Cycle()
    await cycle.exchange().respond(Response(b"abc", 429, {"retry-after": "1"}))
    written, *rest = cycle.events
    assert response(written) == (b"HTTP/1.1 429 Too Many Requests", [b"content-length: 3", b"retry-after: 1"], b"abc")
    assert rest == ["complete"]
    assert cycle.response_started
    assert cycle.response_complete
    assert cycle.message_event.is_set()


async def test_large_response_is_complete() -> None:
    cycle, body = Cycle(), b"x" * 1_000_000
    await cycle.exchange().respond(Response(body))
    written = b"".join(cycle.events[:-1])
    assert response(written) == (b"HTTP/1.1 200 OK", [b"content-length: 1000000"], body)


async def test_head_has_the_length_and_no_body() -> None:
    cycle = Cycle()
    await cycle.exchange("HEAD").respond(Response(b"abc"))
    assert response(cycle.events[0]) == (b"HTTP/1.1 200 OK", [b"content-length: 3"], b"")


async def test_response_without_content_has_no_length() -> None:
    cycle = Cycle()
    await cycle.exchange().respond(Response(status=204))
    assert response(cycle.events[0]) == (b"HTTP/1.1 204 No Content", [], b"")


async def test_connection_that_is_not_kept_is_closed_after_the_response() -> None:
    cycle = Cycle(keep_alive=False)
    await cycle.exchange().respond(Response())
    assert b"connection: close" in response(cycle.events[0])[1]
    assert cycle.events[1:] == ["close", "complete"]


async def test_response_waits_for_a_client_that_does_not_read() -> None:
    cycle = Cycle(write_paused=True)
    await cycle.exchange().respond(Response())
    assert cycle.events[0] == "drain"


@pytest.mark.parametrize(("unread", "read"), [([9, 8, 7, 0, 0], True), ([9, 8, 8], False)])
async def test_client_that_reads_nothing_more_is_not_waited_for(
    unread: list[int], read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_UNREAD_TIMEOUT_S", 0.01)
    cycle = Cycle()
    cycle.unread = unread
    await cycle.exchange().respond(Response())
    assert ("abort" in cycle.events) is not read
    assert cycle.events[-1] == "complete"


async def test_client_that_has_gone_gets_no_response() -> None:
    cycle = Cycle(disconnected=True)
    await cycle.exchange().respond(Response())
    assert not cycle.events


async def test_body_is_taken_at_once_only_if_it_is_complete() -> None:
    assert Cycle(b"abc").exchange().arrived_body() == b"abc"
    assert Cycle(b"ab", more_body=True).exchange().arrived_body() is None
    assert Cycle(b"abc", disconnected=True).exchange().arrived_body() is None


async def test_parts_end_with_the_body_or_an_error() -> None:
    cycle = Cycle()
    part = {"type": "http.request", "body": b"a", "more_body": True}
    cycle.messages = [part, {**part, "body": b""}, {**part, "more_body": False}]
    assert [one async for one in cycle.exchange().parts()] == [b"a", b"a"]
    cycle.messages = [part, {"type": "http.disconnect"}]
    with pytest.raises(ClientDisconnectError):
        assert [one async for one in cycle.exchange().parts()]


def test_headers_and_query_are_read() -> None:
    exchange = Cycle().exchange("POST", (b"a", b"1"), (b"a", b"2"), query=b"tasks=embedding%2Csentiment&empty=")
    assert exchange.headers == {b"a": b"1"}
    assert exchange.all_values(b"a") == ["1", "2"]
    assert exchange.query == {"tasks": "embedding,sentiment", "empty": ""}
    assert exchange.peer == "unix"


async def test_pipelined_requests_are_answered_in_order(running: HttpServer) -> None:
    reader, writer = await connect(running)
    request = (
        b"POST /v1/analyze HTTP/1.1\r\nhost: x\r\nx-request-id: %d\r\ncontent-length: 13\r\n%b\r\n" + b'{"text":"w1"}'
    )
    writer.write(b"".join(request % (number, b"connection: close\r\n" if number == 3 else b"") for number in range(4)))
    received = await until_closed(reader)
    assert received.count(b"HTTP/1.1 200 OK") == 4
    positions = [received.find(b"x-request-id: %d" % number) for number in range(4)]
    assert positions == sorted(positions)
    assert positions[0] > 0
    writer.close()


async def test_client_that_expects_100_continue_is_answered(running: HttpServer) -> None:
    reader, writer = await connect(running)
    writer.write(b"POST /v1/analyze HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n")
    writer.write(b"connection: close\r\ncontent-length: 13\r\n\r\n")
    async with asyncio.timeout(10):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b'{"text":"w1"}')
    assert (await until_closed(reader)).startswith(b"HTTP/1.1 200 OK")
    writer.close()


async def test_other_server_gets_the_steps_of_asgi() -> None:
    sent: list[dict[str, Any]] = []
    arriving = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": False},
    ]

    async def receive() -> dict[str, Any]:
        return arriving.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"method": "POST", "path": "/", "headers": [], "query_string": b"", "client": None}
    exchange = exchange_of(scope, receive, send)
    assert exchange.arrived_body() is None
    assert [one async for one in exchange.parts()] == [b"a", b"b"]
    await exchange.respond(Response(b"abc", 429, {"retry-after": "1"}))
    headers = [(b"retry-after", b"1"), (b"content-length", b"3")]
    assert sent == [
        {"type": "http.response.start", "status": 429, "headers": headers},
        {"type": "http.response.body", "body": b"abc", "more_body": False},
    ]
