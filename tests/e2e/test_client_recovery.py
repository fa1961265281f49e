"""The client under load while a server or a worker dies: no call fails and no item is lost."""

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
# Texts per stream; answers of all streams before the fault; texts of each stream that are sent only after the fault.
TEXTS, BEFORE, AFTER = 600, 800, 100


@pytest.fixture
def servers(start: Start, demo_bundle: Path) -> list[Server]:
    servers = [start(demo_bundle), start(demo_bundle)]
    for server in servers:
        server.wait_until_serving()
    return servers


class Load:
    """Texts for several streams, with a fault after ``BEFORE`` answers."""

    def __init__(self, fault: Callable[[], object]) -> None:
        self._fault = fault
        self._before_fault = threading.Event()
        self._after_fault = threading.Event()
        self._lock = threading.Lock()
        self.answered = 0
        self.answered_before = 0

    def texts(self) -> Iterator[str]:
        for number in range(TEXTS):
            if number == TEXTS - AFTER:
                self._after_fault.wait(START_S)
            yield f"text number {number}"

    def count(self) -> None:
        with self._lock:
            self.answered += 1
            if self.answered == BEFORE:
                self._before_fault.set()

    def inject_fault(self) -> None:
        assert self._before_fault.wait(START_S)
        self.answered_before = self.answered
        self._fault()
        self._after_fault.set()


def target(servers: list[Server]) -> str:
    return "ipv4:" + ",".join(server.target for server in servers)


def is_complete(answers: list[Answer]) -> bool:
    """Whether every text of a stream was answered exactly once, in order, with a result."""
    ids = [answer.item_id for answer in answers]
    return ids == [str(number) for number in range(TEXTS)] and all(answer.result for answer in answers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_streams_and_calls_survive_the_death_of_one_of_two_servers(servers: list[Server], number: int) -> None:
    load = Load(lambda: servers[0].stop(number))
    ended = threading.Event()

    def stream(client: Client) -> bool:
        answers = []
        for answer in client.stream(load.texts()):
            answers.append(answer)
            load.count()
        return is_complete(answers)

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
            load.inject_fault()
            assert all(one.result() for one in streams)
        finally:
            ended.set()
        assert all(one.result() for one in calls)
    assert BEFORE <= load.answered_before < load.answered == STREAMS * TEXTS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_control_streams_of_plain_stubs_do_not_survive_it(servers: list[Server], number: int) -> None:
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
        load.inject_fault()
        assert not all(one.result() for one in streams)
    assert load.answered < STREAMS * TEXTS


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers require two cores")
async def test_streams_of_the_asyncio_client_survive_the_death_of_a_worker(start: Start, demo_bundle: Path) -> None:
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
        return is_complete(answers)

    async def texts() -> AsyncIterator[str]:
        source = load.texts()
        while (text := await asyncio.to_thread(next, source, None)) is not None:
            yield text

    async with AsyncClient(server.target, connections=STREAMS) as client:
        streams = [asyncio.create_task(stream(client)) for _ in range(STREAMS)]
        await asyncio.to_thread(load.inject_fault)
        assert all(await asyncio.gather(*streams))
    assert "died with code -9" in server.log.read_text()
    assert BEFORE <= load.answered_before < load.answered == STREAMS * TEXTS
