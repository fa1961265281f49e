"""The admin service in the supervisor, over a real socket, with worker processes played by a script."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_channelz.v1 import channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead.v1 import admin_service_pb2_grpc
from polyhead_server.errors import StartupError
from polyhead_server.rpc.admin_service import AdminServer
from polyhead_server.settings import Settings
from polyhead_server.workers import supervisor
from polyhead_server.workers.ipc import WorkerConfig
from polyhead_server.workers.supervisor import supervise

pytestmark = pytest.mark.timeout(120)

TIMEOUT_S = 30

WORKER = """
    import json, os, sys

    def send(**message):
        print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

    IDENTITY = {"embedding_space": "e", "heads": []}
    STATS = {
        "process_id": os.getpid(), "model_id": "m", "serving": True, "up_time": 1.5, "requests_running": 0,
        "queued_items": 0, "queued_tokens": 0, "expected_wait": 0.0, "items_total": 0, "tokens_total": 0,
        "padding_tokens_total": 0, "batches_total": 0, "compute_total": 0.0, "item_errors_total": {},
        "compute_threads": 1,
    }
    STATS["serving"] = not json.loads(sys.stdin.readline())["params"]["drained"]
    send(method="serving", params=IDENTITY)
    for line in sys.stdin:
        request = json.loads(line)
        if request["method"] == "reload":
            result = {"process_id": os.getpid(), "model_id": "m", "head_fingerprints": {}, "identity": IDENTITY}
        elif request["method"] == "drain":
            STATS["serving"] = False
            result = {}
        else:
            result = STATS
        send(result=result, id=request["id"])
    """


class Admin:
    """A client of the admin service."""

    def __init__(self, channel: aio.Channel) -> None:
        self.stub: Any = admin_service_pb2_grpc.AdminServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)
        self.channelz: Any = channelz_pb2_grpc.ChannelzStub(channel)

    async def stats(self) -> list[Any]:
        """Statistics by worker; none while the server reports that no worker serves."""
        call = self.stub.GetStats(pb2.GetStatsRequest(), timeout=TIMEOUT_S)
        code = await call.code()
        assert code in {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, await call.details()
        return list((await call).workers) if code is grpc.StatusCode.OK else []

    async def wait_for_replacement(self, process_id: int) -> list[Any]:
        """Waits until two workers serve, neither of which is this process; returns their statistics."""
        return await self.wait_until(
            lambda workers: len(workers) == 2 and process_id not in [one.process_id for one in workers]
        )

    async def wait_until(self, condition: Callable[[list[Any]], bool]) -> list[Any]:
        """Waits until the statistics fulfil a condition, and returns them."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition(workers := await self.stats()):
                await asyncio.sleep(0.01)
            return workers

    async def status(self, service: str) -> str:
        answer = await self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


@pytest.fixture
def settings(script: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a server with two workers, whatever the number of cores here."""
    script(WORKER)
    monkeypatch.setattr(supervisor, "RESTART_DELAY_S", 0.0)
    settings = Settings(
        bundle=Path("x"), listen="127.0.0.1:0", workers=2, admin_listen=f"unix:{tmp_path}/admin", drain_timeout_s=1.0
    )
    monkeypatch.setattr(supervisor, "worker_configs", lambda *_: [WorkerConfig(settings)] * 2)
    return settings


@asynccontextmanager
async def supervised(settings: Settings) -> AsyncIterator[Admin]:
    """Runs the supervisor beside the test, on the same loop."""
    running = asyncio.create_task(supervise(settings))
    try:
        async with aio.insecure_channel(settings.admin_listen) as channel:
            await asyncio.wait_for(channel.channel_ready(), TIMEOUT_S)
            yield Admin(channel)
    finally:
        # Without the supervisor's handler, the signal would end the tests.
        if not running.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await running


async def test_workers_that_are_killed_are_restarted_while_grpc_runs_in_the_supervisor(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """A forked child that runs code of its own after gRPC has started hangs or crashes: none dies but by our hand."""
    async with supervised(settings) as admin:
        workers = await admin.wait_until(lambda workers: len(workers) == 2)
        for _ in range(10):
            killed = workers[0].process_id
            os.kill(killed, signal.SIGKILL)
            workers = await admin.wait_for_replacement(killed)
        response = await admin.stub.Reload(pb2.ReloadRequest(), timeout=TIMEOUT_S)
        assert {one.process_id for one in response.workers} == {one.process_id for one in workers}
    assert caplog.text.count("died with code -9") == caplog.text.count("died with code") == 10


async def test_server_whose_workers_have_all_died_is_not_alive(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "RESTART_DELAY_S", 10.0)
    async with supervised(settings) as admin:
        for worker in await admin.wait_until(lambda workers: len(workers) == 2):
            os.kill(worker.process_id, signal.SIGKILL)
        await admin.wait_until(lambda workers: not workers)
        async with asyncio.timeout(TIMEOUT_S):
            while await admin.status("") != "NOT_SERVING":
                await asyncio.sleep(0.01)


async def test_admin_address_that_is_taken_is_refused_before_any_worker_starts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor.Supervisor, "run", None)
    async with await asyncio.start_unix_server(lambda *_: None, settings.admin_listen.removeprefix("unix:")):
        with pytest.raises(StartupError, match="cannot listen on"):
            await supervise(settings)


async def test_server_that_is_stopped_while_the_admin_service_opens_exits_with_0(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def open_slowly(_: AdminServer) -> None:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.01)

    monkeypatch.setattr(AdminServer, "open", open_slowly)
    assert await supervise(settings) == 0
