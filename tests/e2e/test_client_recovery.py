"""The client under load while a server or a worker dies: no call fails and no item is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from polyhead.v1 import inference_service_pb2_grpc
from polyhead_client import AsyncClient, Client

from tests.support.recovery_load import BEFORE, STREAMS, TEXTS, Load, call_until, is_complete

from .conftest import START_S, Server, Start

pytestmark = pytest.mark.model


@pytest.fixture
def servers(start: Start, demo_bundle: Path) -> list[Server]:
    servers = [start(demo_bundle), start(demo_bundle)]
    for server in servers:
        server.wait_until_serving()
    return servers


def target(servers: list[Server]) -> str:
    return "ipv4:" + ",".join(server.target for server in servers)


def test_streams_and_calls_survive_the_death_of_one_of_two_servers(servers: list[Server]) -> None:
    load = Load(lambda: servers[0].stop(signal.SIGKILL), START_S)
    ended = threading.Event()
    with Client(target(servers), connections=STREAMS) as client, ThreadPoolExecutor(2 * STREAMS) as pool:
        calls = [pool.submit(call_until, ended, client) for _ in range(4)]
        streams = [pool.submit(load.stream, client) for _ in range(STREAMS)]
        try:
            load.inject_fault()
            assert all(one.result() for one in streams)
        finally:
            ended.set()
        assert all(one.result() for one in calls)
    assert BEFORE <= load.answered_before < load.answered == STREAMS * TEXTS


def test_control_streams_of_plain_stubs_do_not_survive_it(servers: list[Server]) -> None:
    load = Load(lambda: servers[0].stop(signal.SIGKILL), START_S)
    config = '{"loadBalancingConfig": [{"round_robin": {}}]}'
    with (
        grpc.insecure_channel(target(servers), [("grpc.service_config", config)]) as channel,
        ThreadPoolExecutor(STREAMS) as pool,
    ):
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        grpc.channel_ready_future(channel).result(START_S)
        streams = [pool.submit(load.plain_stream, stub) for _ in range(STREAMS)]
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

    load = Load(kill_worker, START_S)

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
