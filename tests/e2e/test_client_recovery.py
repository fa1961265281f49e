"""The shipped client through the death of a server, or of a worker, under load: nothing fails, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_client import Answer, AsyncClient, Client

from .conftest import START_S, Server, Start

pytestmark = pytest.mark.model

STREAMS = 8
# Texts of a stream; how many answers of all streams there are before the fault; and texts that come only after it.
TEXTS, BEFORE, AFTER = 600, 800, 100


@pytest.fixture
def servers(start: Start, demo_bundle: Path) -> list[Server]:
    servers = [start(demo_bundle), start(demo_bundle)]
    for server in servers:
        server.wait_until_serving()
    return servers


class Load:
    """Texts for several streams, and a fault in their midst."""

    def __init__(self, fault: Callable[[], object]) -> None:
        self._fault = fault
        self._enough = threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.answered = 0
        self.answered_before = 0

    def texts(self) -> Iterator[str]:
        for number in range(TEXTS):
            if number == TEXTS - AFTER:
                self._over.wait(START_S)
            yield f"text number {number}"

    def count(self) -> None:
        with self._lock:
            self.answered += 1
            if self.answered == BEFORE:
                self._enough.set()

    def break_it(self) -> None:
        assert self._enough.wait(START_S)
        self.answered_before = self.answered
        self._fault()
        self._over.set()


def target(servers: list[Server]) -> str:
    return "ipv4:" + ",".join(server.target for server in servers)


def whole(answers: list[Answer]) -> bool:
    """Whether every text of a stream was answered once, in order, with a result."""
    ids = [answer.item_id for answer in answers]
    return ids == [str(number) for number in range(TEXTS)] and all(answer.result for answer in answers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_streams_and_calls_outlive_one_of_two_servers(servers: list[Server], number: int) -> None:
    load = Load(lambda: servers[0].stop(number))
    ended = threading.Event()

    def stream(client: Client) -> bool:
        answers = []
        for answer in client.stream(load.texts()):
            answers.append(answer)
            load.count()
        return whole(answers)

    def call(client: Client) -> int:
        calls = 0
        while not ended.is_set():
            assert client.analyze(["one", "two"])[1].result
            calls += 1
        return calls

    with Client(target(servers), connections=STREAMS) as client, ThreadPoolExecutor(2 * STREAMS) as pool:
        calls = [pool.submit(call, client) for _ in range(4)]
        streams = [pool.submit(stream, client) for _ in range(STREAMS)]
        try:
            load.break_it()
            assert all(one.result() for one in streams)
        finally:
            ended.set()
        assert all(one.result() for one in calls)
    assert BEFORE <= load.answered_before < load.answered == STREAMS * TEXTS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_control_streams_of_plain_stubs_do_not_outlive_it(servers: list[Server], number: int) -> None:
    load = Load(lambda: servers[0].stop(number))

    def requests() -> Iterator[pb2.StreamAnalyzeRequest]:
        for text in load.texts():
            yield pb2.StreamAnalyzeRequest(items=[item_pb2.Item(text=text)])

    def stream(stub: inference_service_pb2_grpc.InferenceServiceStub) -> bool:
        try:
            for response in stub.StreamAnalyze(requests()):
                for _ in response.answers:
                    load.count()
        except grpc.RpcError:
            return False
        return True

    config = '{"loadBalancingConfig": [{"round_robin": {}}]}'
    with (
        grpc.insecure_channel(target(servers), [("grpc.service_config", config)]) as channel,
        ThreadPoolExecutor(STREAMS) as pool,
    ):
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        grpc.channel_ready_future(channel).result(START_S)
        streams = [pool.submit(stream, stub) for _ in range(STREAMS)]
        load.break_it()
        assert not all(one.result() for one in streams)
    assert load.answered < STREAMS * TEXTS


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers want two cores")
async def test_streams_of_the_asyncio_client_outlive_a_worker(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle, "--workers", "2")
    await asyncio.to_thread(server.wait_until_serving)
    pid = server.process.pid

    def kill_worker() -> None:
        os.kill(int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]), signal.SIGKILL)

    load = Load(kill_worker)

    async def stream(client: AsyncClient) -> bool:
        answers = []
        async for answer in client.stream(texts()):
            answers.append(answer)
            load.count()
        return whole(answers)

    async def texts() -> AsyncIterator[str]:
        coming = load.texts()
        while (text := await asyncio.to_thread(next, coming, None)) is not None:
            yield text

    async with AsyncClient(server.target, connections=STREAMS) as client:
        streams = [asyncio.create_task(stream(client)) for _ in range(STREAMS)]
        await asyncio.to_thread(load.break_it)
        assert all(await asyncio.gather(*streams))
    assert "died with code -9" in server.log.read_text()
    assert BEFORE <= load.answered_before < load.answered == STREAMS * TEXTS
