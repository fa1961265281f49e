"""Bytes of incomplete requests and unread responses: estimates, limits, and the choice of what is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from polyhead_server.errors import OverloadedError
from polyhead_server.rpc import held_bytes
from polyhead_server.rpc.held_bytes import HeldBytes
from polyhead_server.rpc.sockets import Transferred

KB, MB = 10**3, 10**6
MESSAGE_BYTES = 10 * MB
METADATA_BYTES = 14


class Call:
    """The context of a call, in a task of its own as in gRPC."""

    def __init__(self, peer: str) -> None:
        self._peer = f"ipv4:{peer}"
        self._callbacks: list[Callable[[Any], None]] = []

    def peer(self) -> str:
        return self._peer

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def end(self) -> None:
        for callback in self._callbacks:
            callback(self)


class Held:
    """An account whose connections transfer what the test says.

    Attributes:
        closed: Peers whose connection was closed, in order.
    """

    def __init__(self, max_bytes: int = 100 * MB) -> None:
        self.closed: list[str] = []
        self.account = HeldBytes(max_bytes, MESSAGE_BYTES, sample=lambda _: {}, close=self._close)
        self._transferred: dict[str, Transferred] = {}

    async def call(self, peer: str, *, large: bool = True, messages: tuple[int, ...] = (), response: int = 0) -> Call:
        """Begins a call, delivers messages of these sizes to it, and holds a response."""
        context: Any = Call(peer)

        async def run() -> None:
            self.account.begin(context, METADATA_BYTES, large=large)
            for size in messages:
                held_bytes.on_message(size)
            if response:
                self.account.require_room()
                self.account.hold(response)

        await asyncio.create_task(run())
        return context  # type: ignore[no-any-return]

    async def transfer(self, **received: int) -> None:
        """Lets connections receive bytes, samples, and waits for what is closed; ``a_1`` stands for ``a:1``."""
        for name, size in received.items():
            peer = name.replace("_", ":")
            self._transferred[peer] = Transferred(0, self._transferred.get(peer, Transferred(0, 0)).received + size)
        self.account.check(dict(self._transferred))
        await settle()

    def _close(self, peer: str, _: int) -> None:
        self.closed.append(peer)


async def test_delivered_messages_are_not_held() -> None:
    held = Held()
    await held.call("a:1", messages=(10 * MB,) * 20)
    await held.transfer(a_1=201 * MB)
    assert held.closed == []


async def test_connection_that_sends_too_much_without_completing_it_is_closed() -> None:
    held = Held()
    for _ in range(4):
        await held.call("a:1")
    await held.call("b:1")
    await held.transfer(a_1=24 * MB, b_1=9 * MB)
    assert held.closed == []
    await held.transfer(a_1=2 * MB)
    assert held.closed == ["a:1"]


async def test_calls_that_need_no_large_messages_may_hold_little() -> None:
    held = Held()
    await held.call("a:1", large=False)
    await held.call("b:1", large=True)
    await held.transfer(a_1=200 * KB, b_1=200 * KB)
    assert held.closed == []
    await held.transfer(a_1=100 * KB, b_1=100 * KB)
    assert held.closed == ["a:1"]


async def test_parts_of_calls_that_have_ended_are_not_held() -> None:
    held = Held()
    stream = await held.call("a:1")
    for _ in range(10):
        cancelled = await held.call("a:1")
        await held.transfer(a_1=9 * MB)
        cancelled.end()
    assert held.closed == []
    stream.end()
    await held.transfer(a_1=9 * MB)
    assert held.closed == []


@pytest.mark.parametrize("lasting", [False, True])
async def test_parts_of_ended_calls_do_not_add_up_on_a_busy_connection(lasting: bool) -> None:
    # A load balancer with a connection for all its clients, some of which give up in the middle of a message.
    held = Held()
    running = [await held.call("a:1") for _ in range(20)]
    for _ in range(40):
        await held.transfer(a_1=3 * MB)
        if not lasting:
            ended, running = running, [await held.call("a:1") for _ in range(20)]
            for call in ended:
                call.end()
    assert bool(held.closed) == lasting


async def test_connection_that_floods_the_server_with_anything_but_messages_is_closed() -> None:
    held = Held()
    await held.call("a:1", messages=(10 * MB,) * 2)
    await held.transfer(a_1=21 * MB, b_1=1 * MB, c_1=20 * MB)
    assert held.closed == ["c:1"]
    await held.transfer(a_1=10 * MB, b_1=20 * MB)
    assert held.closed == ["c:1", "b:1"]


async def test_connection_that_holds_the_most_is_closed_when_all_together_hold_too_much() -> None:
    held = Held()
    peers = {f"p_{number}": 18 * MB + number for number in range(6)}
    for peer in peers:
        for _ in range(3):
            await held.call(peer.replace("_", ":"))
    await held.transfer(**peers)
    assert held.closed == ["p:5"]


async def test_unread_responses_of_a_connection_are_refused() -> None:
    held = Held()
    first = await held.call("a:1", response=20 * MB)
    with pytest.raises(OverloadedError):
        await held.call("a:1", response=6 * MB)
    await held.call("a:1", response=5 * MB)
    await held.call("b:1", response=20 * MB)
    with pytest.raises(OverloadedError):
        await held.call("a:1", response=1)
    first.end()
    await held.call("a:1", response=20 * MB)
    assert held.account.unread_bytes == 45 * MB


async def test_response_larger_than_the_limit_is_sent_alone() -> None:
    held = Held()
    await held.call("a:1", response=30 * MB)
    with pytest.raises(OverloadedError):
        await held.call("a:1", response=1)


async def test_connections_that_fill_the_limit_do_not_keep_others_out() -> None:
    held = Held()
    greedy = [f"h:{number}" for number in range(4)]
    for connection in greedy:
        await held.call(connection, response=25 * MB)
    await held.call("a:1", response=1 * MB)
    await settle()
    assert len(held.closed) == 1
    assert set(held.closed) <= set(greedy)


async def test_equal_connections_are_not_closed_for_each_other() -> None:
    held = Held()
    for number in range(10):
        await held.call(f"p:{number}", response=10 * MB)
    with pytest.raises(OverloadedError):
        await held.call("a:1", response=8 * MB)
    assert held.closed == []


async def test_sampling_continues_after_a_sample_that_failed() -> None:
    samples: list[Any] = [{"a:1": Transferred(0, 20 * MB)}, OSError(24, "Too many open files")]
    samples.append({"a:1": Transferred(0, 30 * MB)})
    ports: list[int] = []

    def sample(port: int) -> Any:
        ports.append(port)
        found = samples.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    closed: list[tuple[str, int]] = []

    async def sleep(_: float) -> None:
        if not samples:
            raise asyncio.CancelledError

    account = HeldBytes(100 * MB, MESSAGE_BYTES, sample=sample, close=lambda *arguments: closed.append(arguments))
    for _ in range(3):
        await asyncio.create_task(begin(account, "a:1"))
    with pytest.raises(asyncio.CancelledError):
        await account.watch(50051, sleep)
    await settle()
    assert ports == [50051] * 3
    assert closed == [("a:1", 50051)]


async def test_connection_that_could_not_be_closed_is_closed_later() -> None:
    attempts: list[str] = []

    def close(peer: str, _: int) -> None:
        attempts.append(peer)
        if len(attempts) == 1:
            raise OSError(24, "Too many open files")

    account = HeldBytes(100 * MB, MESSAGE_BYTES, close=close)
    for _ in range(4):
        await asyncio.create_task(begin(account, "a:1"))
    for _ in range(2):
        account.check({"a:1": Transferred(0, 30 * MB)})
        await settle()
    assert attempts == ["a:1", "a:1"]


async def begin(account: HeldBytes, peer: str) -> None:
    context: Any = Call(peer)
    account.begin(context, METADATA_BYTES, large=True)


async def settle() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        await task
