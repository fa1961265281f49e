"""One of the processes ends, hangs, or breaks the protocol."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import struct
from array import array
from pathlib import Path

import pytest
from polyhead_server.errors import InternalError, ModelReplacedError, OverloadedError
from polyhead_server.fronts import channel, records
from polyhead_server.fronts.channel import Channel, ChannelError, Ends, greeting, read_greeting, receive_ends
from polyhead_server.fronts.engine_client import MAX_LOSSES
from polyhead_server.fronts.records import Flag, Kind
from polyhead_server.fronts.ring import RingWriter
from polyhead_server.inference.types import Flow, ItemOutcome, OutcomeFuture, Result

from tests.support.fake_engine import FakeEngine, embedding_of
from tests.support.front_processes import TIMEOUT_S
from tests.support.polling import until
from tests.support.submissions import WINDOW, embedding, message

from .conftest import MakeModel, StartEngine, StartFront

pytestmark = pytest.mark.timeout(60)

# Of a text with two dimensions and two heads.
RESULT_BYTES = 8 + 40 + 4 * (2 + 3 + 1 + 3 + 1)


async def answered(futures: list[OutcomeFuture]) -> list[ItemOutcome]:
    return await asyncio.wait_for(asyncio.gather(*futures), TIMEOUT_S)


async def test_the_next_engine_computes_what_a_killed_one_has_accepted(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel
) -> None:
    first, fronts = new_engine(), [new_front(), new_front()]
    model = make_model()
    await first.start(model)
    for front in fronts:
        await front.serving()
    first.engine.gate.clear()
    flows = [Flow() for _ in fronts]
    futures: dict[str, OutcomeFuture] = {}
    for number, front in enumerate(fronts):
        unary = [f"w{number} w{item}" for item in range(5)]
        futures.update(zip(unary, await front.pipeline.submit(message(*unary), Flow(unary=True), None), strict=True))
        streamed = [f"w{number} w{item} w1" for item in range(5)]
        some = await front.pipeline.submit(message(*streamed), flows[number], None, blocking=True)
        futures.update(zip(streamed, some, strict=True))
    await first.engine.hold()
    await first.stop()
    # They also accept more while there is no engine.
    late = await fronts[0].pipeline.submit(message("w50"), Flow(unary=True), None)
    stream = asyncio.ensure_future(fronts[1].pipeline.submit(message("w51"), flows[1], None, blocking=True))
    await asyncio.sleep(0.05)
    assert not any(future.done() for future in (*futures.values(), *late))
    assert not stream.done()
    second = new_engine()
    await second.start(make_model("again"))
    futures.update({"w50": late[0], "w51": (await asyncio.wait_for(stream, TIMEOUT_S))[0]})
    await answered(list(futures.values()))
    assert {text: embedding(future.result()) for text, future in futures.items()} == {
        text: embedding_of(text) for text in futures
    }
    # It is the same model, so nothing was replaced.
    assert all(len(front.pipelines) == 1 for front in fronts)
    assert second.core.scheduler.accounting.snapshot()[:6] == (0,) * 6
    await until(lambda: all(one.counts()[:2] == (0, 0) for one in second.host.connections))
    for front in fronts:
        await asyncio.wait_for(front.pipeline.close(), TIMEOUT_S)


async def test_long_texts_survive_the_engine_window_by_window(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel
) -> None:
    first, front = new_engine(), new_front()
    await first.start(make_model())
    pipeline = await front.serving()
    expected = await answered(await pipeline.submit(message("w1 w2 " * 100, options=WINDOW), Flow(unary=True), None))
    first.engine.gate.clear()
    futures = await pipeline.submit(message("w1 w2 " * 100, options=WINDOW), Flow(unary=True), None)
    await first.stop()
    await new_engine().start(make_model("again"))
    found = await answered(futures)
    assert embedding(found[0]) == embedding(expected[0])


async def test_calls_without_an_engine_are_bounded(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel
) -> None:
    engine, front = new_engine(), new_front(max_queue_tokens=20)
    await engine.start(make_model())
    pipeline = await front.serving()
    await engine.stop()
    await until(lambda: pipeline.target.number is None)
    held = await pipeline.submit(message(*["w1 w2 w3"] * 5), Flow(unary=True), None)
    (refused,) = await answered(await pipeline.submit(message("w1 w2 w3"), Flow(unary=True), None))
    assert isinstance(refused, OverloadedError)
    # A call whose client has gone makes room again.
    for future in held:
        future.cancel()
    await asyncio.sleep(0)
    held = await pipeline.submit(message("w1 w2 w3"), Flow(unary=True), None)
    assert not held[0].done()
    await new_engine().start(make_model("again"))
    assert isinstance((await answered(held))[0], Result)


async def test_a_text_that_ends_every_engine_is_given_up(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel
) -> None:
    engine, front = new_engine(), new_front()
    await engine.start(make_model())
    pipeline = await front.serving()
    engine.engine.gate.clear()
    poison = await pipeline.submit(message("poison"), Flow(unary=True), None)
    flow = Flow()
    streamed = await pipeline.submit(message("poison w1"), flow, None, blocking=True)
    for number in range(MAX_LOSSES):
        await engine.engine.hold()
        assert not poison[0].done()
        await engine.stop()
        await until(lambda: pipeline.target.number is None)
        engine = new_engine()
        model = make_model(str(number))
        assert isinstance(model.engine, FakeEngine)
        model.engine.gate.clear()
        if number == MAX_LOSSES - 1:
            model.engine.gate.set()
        await engine.start(model)
    assert all(isinstance(outcome, InternalError) for outcome in await answered(poison + streamed))
    # Later texts are computed.
    assert isinstance((await answered(await pipeline.submit(message("w1"), Flow(unary=True), None)))[0], Result)
    assert not engine.core.scheduler.accounting.waiting_items


async def test_the_end_of_a_front_drops_its_texts_alone(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel
) -> None:
    engine, dying, other = new_engine(), new_front(), new_front()
    await engine.start(make_model())
    await dying.serving()
    await other.serving()
    engine.engine.gate.clear()
    blocker = await other.pipeline.submit(message("w9"), Flow(unary=True), None)
    await engine.engine.hold()
    stream = Flow()
    await dying.pipeline.submit(message("w1", "w2"), stream, None, blocking=True)
    await dying.pipeline.submit(message("w3", "w4"), Flow(unary=True), None)
    kept = await other.pipeline.submit(message("w5"), Flow(unary=True), None)
    await until(lambda: engine.core.scheduler.accounting.waiting_items == 5)
    await dying.stop()
    await until(lambda: engine.core.scheduler.accounting.waiting_items == 1)
    engine.engine.gate.set()
    await answered(blocker + kept)
    assert len(engine.host.connections) == 1
    assert engine.core.scheduler.accounting.snapshot()[:6] == (0,) * 6


async def connect(path: Path) -> tuple[socket.socket, Ends]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    connection.connect(str(path))
    connection.send(greeting())
    return connection, await receive_ends(connection)


async def test_a_front_that_does_not_read_holds_up_no_other(
    new_engine: StartEngine,
    new_front: StartFront,
    make_model: MakeModel,
    socket_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel, "MAX_BACKLOG_BYTES", 1_000_000)
    engine, other = new_engine(), new_front()
    await engine.start(make_model())
    pipeline = await other.serving()
    connection, ends = await connect(socket_path)
    memory = memoryview(mmap.mmap(ends.memory, 2 * channel.RING_BYTES))
    writer = RingWriter(memory[: channel.RING_BYTES], ends.to_engine_data, ends.to_engine_space)
    ids = array("I", [2, 5, 3]).tobytes()
    sent = 0
    async with asyncio.timeout(TIMEOUT_S):
        while len(engine.host.connections) == 2:
            sent += 1
            writer.on_space()
            for item in range(500):
                put = records.Put(sent << 32 | item, sent, -1, 0, 0, 1, item, len(ids) // 4, ids)
                writer.write(records.put(Flag.UNARY, put))
            writer.write(records.tokenized(Flag.LAST, records.Tokenized(sent, 500)))
            (outcome,) = await answered(await pipeline.submit(message(f"w{sent % 100}"), Flow(unary=True), None))
            assert isinstance(outcome, Result)
    # The outputs filled the ring first, so the limit is what ended the connection.
    assert sent * 500 * RESULT_BYTES > channel.RING_BYTES
    assert connection.recv(channel.MAX_MESSAGE_BYTES)
    connection.close()
    channel.close_all(*ends)


def raw(connection: socket.socket, ends: Ends, closed: list[str]) -> Channel:
    """A front that sends what a test wants."""
    return Channel(
        connection,
        ends,
        is_engine=False,
        on_records=lambda _: None,
        on_message=lambda _, descriptors: channel.close_all(*descriptors),
        on_close=closed.append,
    )


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 64,
        struct.pack("<IHH", 2**31, Kind.PUT, 0),
        struct.pack("<IHH", 8, 99, 0),
        struct.pack("<IHH", 16, Kind.PUT, 0) + b"\0" * 8,
        struct.pack("<IHHQQqI4x", 40, Kind.ADMIT, 0, 1, 1, -1, 1),
        # More token ids than the model reads.
        struct.pack("<IHHQQqqqII", 56 + 4000, Kind.PUT, 1, 1 << 32, 1, -1, 0, 0, 1, 0) + b"\1\0\0\0" * 1000,
    ],
)
async def test_a_front_that_breaks_the_protocol_ends_alone(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel, socket_path: Path, data: bytes
) -> None:
    engine, front = new_engine(), new_front()
    await engine.start(make_model())
    pipeline = await front.serving()
    closed: list[str] = []
    bad = raw(*await connect(socket_path), closed)
    bad.send(data)
    await until(lambda: closed)
    await until(lambda: len(engine.host.connections) == 1)
    assert isinstance((await answered(await pipeline.submit(message("w5"), Flow(unary=True), None)))[0], Result)
    bad.close()


async def test_a_front_cannot_shrink_the_memory(
    new_engine: StartEngine, make_model: MakeModel, socket_path: Path
) -> None:
    await new_engine().start(make_model())
    connection, ends = await connect(socket_path)
    with pytest.raises(PermissionError):
        os.ftruncate(ends.memory, 0)
    raw(connection, ends, []).close()


async def test_a_stranger_is_not_connected(new_engine: StartEngine, make_model: MakeModel, socket_path: Path) -> None:
    engine = new_engine()
    await engine.start(make_model())
    for data in (b"hello", greeting()[:-8] + struct.pack("<Q", 1)):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        connection.connect(str(socket_path))
        connection.send(data)
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 100), TIMEOUT_S) == b""
        connection.close()
        with pytest.raises(ChannelError):
            read_greeting(data)
    assert not engine.host.connections


async def test_an_engine_that_breaks_the_protocol_is_left(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel
) -> None:
    engine, front = new_engine(), new_front()
    await engine.start(make_model())
    pipeline = await front.serving()
    engine.engine.gate.clear()
    futures = await pipeline.submit(message("w1"), Flow(unary=True), None)
    (connection,) = engine.host.connections
    connection.send(struct.pack("<IHH", 8, 99, 0))
    engine.engine.gate.set()
    # It connects anew, and the text is computed.
    assert isinstance((await answered(futures))[0], Result)


async def test_an_unexpected_error_loses_no_text(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, front = new_engine(), new_front()
    await engine.start(make_model())
    pipeline = await front.serving()
    errors: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    real = records.read_put

    def fail(body: bytes) -> records.Put:
        monkeypatch.setattr(records, "read_put", real)
        raise KeyError(len(body))

    monkeypatch.setattr(records, "read_put", fail)
    futures = await pipeline.submit(message("w1"), Flow(unary=True), None)
    assert isinstance((await answered(futures))[0], Result)
    assert [type(error) for error in errors] == [KeyError]


async def test_texts_of_a_model_that_has_gone_with_its_engine_are_given_up(
    new_engine: StartEngine, new_front: StartFront, make_model: MakeModel
) -> None:
    engine, front = new_engine(), new_front()
    await engine.start(make_model("old"))
    pipeline = await front.serving()
    engine.engine.gate.clear()
    unary = await pipeline.submit(message("w1"), Flow(unary=True), None)
    flow = Flow()
    stream = await pipeline.submit(message("w2"), flow, None, blocking=True)
    await engine.stop()
    waiting = asyncio.ensure_future(pipeline.submit(message("w3"), flow, None, blocking=True))
    await new_engine().start(make_model("new", temperature=3.0))
    outcomes = await answered(unary + stream)
    assert all(isinstance(outcome, ModelReplacedError) for outcome in outcomes)
    # A stream's message that was not accepted is submitted again for the new model.
    assert await asyncio.wait_for(waiting, TIMEOUT_S) == []
    await asyncio.wait_for(pipeline.wait_until_replaced(), TIMEOUT_S)
    await asyncio.wait_for(pipeline.wait_for_capacity(flow), TIMEOUT_S)
    new = await front.serving(models=2)
    assert isinstance((await answered(await new.submit(message("w3"), Flow(unary=True), None)))[0], Result)
    await asyncio.wait_for(pipeline.close(), TIMEOUT_S)
