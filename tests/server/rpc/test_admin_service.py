"""The admin service over a real socket, and what is behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import aio
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead.v1 import admin_service_pb2_grpc
from polyhead_server.errors import InternalError, NotReadyError, ReloadError, StartupError
from polyhead_server.inference.model import Model
from polyhead_server.json_types import Values
from polyhead_server.lifecycle.operations import Control
from polyhead_server.lifecycle.reload import Reloader
from polyhead_server.rpc import service_names
from polyhead_server.rpc.admin_service import AdminServer
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.security.api_keys import make
from polyhead_server.settings import Settings

pytestmark = pytest.mark.timeout(60)

STATS: Values = {"process_id": 7, "queued_items": 3, "expected_wait": 1.5, "item_errors_total": {"OVERLOADED": 2}}


def settings_with(admin_listen: str, **more: Any) -> Settings:
    return Settings(bundle=Path("fake"), admin_listen=admin_listen, **more)


class Asked:
    """Answers what the admin service asks, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Values]] = []
        self.fails: Exception | None = None

    async def __call__(self, what: str, arguments: Values) -> list[Values]:
        self.asked.append((what, arguments))
        if self.fails:
            raise self.fails
        if what == "stats":
            return [STATS, STATS | {"process_id": 8}]
        return [{"process_id": 7, "model_id": "m", "embedding_space": "e", "heads": {"topic": "t"}, "identity": {}}]


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
async def health() -> Health:
    health = Health()
    await health.set(serving=True, alive=True)
    return health


@pytest.fixture
async def channel(asked: Asked, health: Health, tmp_path: Path) -> AsyncIterator[aio.Channel]:
    server = AdminServer(settings_with(f"unix:{tmp_path}/admin"), asked, health, shares_port=False)
    await server.open()
    async with aio.insecure_channel(f"unix:{tmp_path}/admin") as channel:
        yield channel
    await server.close()
    assert not (tmp_path / "admin").exists()


@pytest.fixture
def stub(channel: aio.Channel) -> Any:
    return admin_service_pb2_grpc.AdminServiceStub(channel)


async def test_stats_are_those_of_each_worker(stub: Any) -> None:
    first, second = (await stub.GetStats(pb2.GetStatsRequest(), timeout=30)).workers
    assert (first.process_id, second.process_id) == (7, 8)
    assert (first.queued_items, first.expected_wait) == (3, Duration(seconds=1, nanos=500_000_000))
    assert first.item_errors_total == {"OVERLOADED": 2}


@pytest.mark.parametrize("force", [False, True])
async def test_reload_says_what_answers_now(stub: Any, asked: Asked, force: bool) -> None:
    (worker,) = (await stub.Reload(pb2.ReloadRequest(force=force), timeout=30)).workers
    assert (worker.model_id, worker.fingerprints.embedding_space) == ("m", "e")
    assert [(one.head, one.fingerprint) for one in worker.fingerprints.heads] == [("topic", "t")]
    assert asked.asked == [("reload", {"force": force})]


async def test_reload_that_is_refused_says_why(stub: Any, asked: Asked) -> None:
    asked.fails = ReloadError("worker 1: it is damaged")
    with pytest.raises(grpc.RpcError) as caught:
        await stub.Reload(pb2.ReloadRequest(), timeout=30)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "worker 1: it is damaged"


async def test_drain_reaches_all(stub: Any, asked: Asked) -> None:
    await stub.Drain(pb2.DrainRequest(), timeout=30)
    assert asked.asked == [("drain", {})]


async def test_health_is_told_there_too(channel: aio.Channel, health: Health) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    for serving, status in ((True, "SERVING"), (False, "NOT_SERVING")):
        await health.set(serving=serving, alive=serving)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == status


async def test_connections_can_be_looked_at(channel: aio.Channel) -> None:
    stub: Any = channelz_pb2_grpc.ChannelzStub(channel)
    answer = await stub.GetServers(channelz_pb2.GetServersRequest(), timeout=30)
    assert any(server.data.calls_started for server in answer.server)


async def test_without_an_address_nothing_listens(asked: Asked, health: Health) -> None:
    server = AdminServer(settings_with(""), asked, health, shares_port=False)
    await server.open()
    await server.close()


async def test_address_that_is_taken_is_refused(asked: Asked, health: Health, tmp_path: Path) -> None:
    first, second = (
        AdminServer(settings_with(f"unix:{tmp_path}/admin"), asked, health, shares_port=True) for _ in range(2)
    )
    await first.open()
    with pytest.raises(StartupError, match="another server"):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


# What is behind it


class PlayedReloader:
    def __init__(self, model: Model) -> None:
        self._model = model
        self.forced: list[bool] = []

    async def reload(self, *, force: bool) -> Model:
        self.forced.append(force)
        return self._model


class PlayedService:
    def stats(self) -> Values:
        return {"requests_running": 3}


@pytest.fixture
def control(settings: Callable[..., Settings], health: Health) -> Control:
    return Control(settings(), cast(InferenceService, PlayedService()), health, None)


async def test_reload_before_the_model_is_there_is_refused(control: Control) -> None:
    with pytest.raises(NotReadyError):
        await control.do("reload", {"force": False})


async def test_reload_answers_with_the_new_model(control: Control, model: Model) -> None:
    reloader = PlayedReloader(model)
    control.reloader = cast(Reloader, reloader)
    answer = await control.do("reload", {"force": True})
    assert reloader.forced == [True]
    assert answer["embedding_space"] == model.fingerprints.embedding_space
    assert answer["identity"]["embedding_space"] == model.fingerprints.embedding_space


async def test_server_that_is_drained_is_alive(control: Control, health: Health, channel: aio.Channel) -> None:
    """Who asks for the whole server starts it again when it is not well; who asks for the service sends it calls."""
    stub: Any = health_pb2_grpc.HealthStub(channel)

    async def statuses() -> list[str]:
        asked = [health_pb2.HealthCheckRequest(service=name) for name in ("", service_names.INFERENCE)]
        answers = [await stub.Check(one, timeout=30) for one in asked]
        return [health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) for answer in answers]

    assert await statuses() == ["SERVING", "SERVING"]
    await control.do("drain", {})
    assert await statuses() == ["SERVING", "NOT_SERVING"]
    await health.set(serving=False, alive=False)
    assert await statuses() == ["NOT_SERVING", "NOT_SERVING"]


async def test_drain_before_the_model_is_ready_is_remembered(control: Control, health: Health) -> None:
    await health.set(serving=False, alive=False)
    await control.do("drain", {})
    assert control.drained
    assert not health.alive


class SlowReloader:
    """Loads until it is let go on.

    Attributes:
        begun: Loads that have begun.
        most: The most that ran at once.
    """

    def __init__(self, model: Model) -> None:
        self.begun = 0
        self.most = 0
        self.gate = asyncio.Event()
        self._model = model
        self._running = 0

    async def reload(self, *, force: bool) -> Model:
        self.begun += 1
        self._running += 1
        self.most = max(self.most, self._running)
        try:
            await self.gate.wait()
        finally:
            self._running -= 1
        return self._model


async def test_reload_that_nobody_waits_for_any_more_goes_on_and_holds_up_the_next(
    control: Control, model: Model
) -> None:
    reloader = SlowReloader(model)
    control.reloader = cast(Reloader, reloader)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(control.do("reload", {"force": False}), 0.01)
    assert reloader.begun == 1
    last = asyncio.create_task(control.do("reload", {"force": False}))
    await asyncio.sleep(0)
    assert reloader.begun == 1
    reloader.gate.set()
    assert (await last)["model_id"] == model.source.model_id
    # The first, which was not cancelled, and the last, which may find another bundle than that.
    assert (reloader.begun, reloader.most) == (2, 1)


async def test_drain_is_seen_in_the_stats(control: Control) -> None:
    assert (await control.do("stats", {}))["serving"]
    await control.do("drain", {})
    stats = await control.do("stats", {})
    assert (stats["requests_running"], stats["serving"]) == (3, False)


async def test_what_goes_wrong_inside_is_told_by_its_incident_alone(control: Control) -> None:
    class Broken:
        async def reload(self, *, force: bool) -> Model:
            raise RuntimeError("a secret")

    control.reloader = cast(Reloader, Broken())
    with pytest.raises(InternalError) as caught:
        await control.do("reload", {"force": False})
    assert "secret" not in str(caught.value)


async def test_reload_as_told_by_a_signal_raises_nothing(control: Control, caplog: pytest.LogCaptureFixture) -> None:
    await control.reload_as_told()
    assert "not reloaded: the model is being loaded" in caplog.text


async def test_keys_with_the_right_to_infer_may_not_administer(asked: Asked, health: Health, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    operator, client = (make(keys, name, [right], None) for name, right in (("operator", "admin"), ("client", "infer")))
    server = AdminServer(settings_with(f"unix:{tmp_path}/admin", api_keys=str(keys)), asked, health, shares_port=False)
    await server.open()
    codes = []
    async with aio.insecure_channel(f"unix:{tmp_path}/admin") as channel:
        stub: Any = admin_service_pb2_grpc.AdminServiceStub(channel)
        for key in (None, client, operator):
            metadata = [("authorization", f"Bearer {key}")] if key else []
            call = stub.GetStats(pb2.GetStatsRequest(), metadata=metadata)
            codes.append((await call.code()).name)
    await server.close()
    assert codes == ["UNAUTHENTICATED", "PERMISSION_DENIED", "OK"]
    assert len(asked.asked) == 1
