"""The admin service over a real socket, with a fake server behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import aio
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead.v1 import admin_service_pb2_grpc
from polyhead_server.drift.report import DriftReport, MeasureDrift
from polyhead_server.errors import DriftNotAvailableError, ReloadError, StartupError
from polyhead_server.process_reports import Measure, MeasureKind, ModelIdentity, ReloadResult, WorkerStats
from polyhead_server.rpc.admin_service import AdminServer
from polyhead_server.rpc.health import Health
from polyhead_server.security import api_keys
from polyhead_server.settings import Settings

pytestmark = pytest.mark.timeout(60)


def settings_with(admin_listen: str, **more: Any) -> Settings:
    return Settings(bundle=Path("fake"), admin_listen=admin_listen, **more)


def stats_of(process_id: int) -> WorkerStats:
    return WorkerStats(
        process_id,
        model_id="m",
        serving=True,
        up_time=60.0,
        requests_running=1,
        queued_items=3,
        queued_tokens=30,
        expected_wait=1.5,
        items_total=4,
        tokens_total=40,
        padding_tokens_total=2,
        batches_total=2,
        compute_total=0.5,
        item_errors_total={"OVERLOADED": 2},
        compute_threads=1,
    )


class FakeBackend:
    """A server of two workers that remembers which operations were requested.

    Attributes:
        requested: The operations, in order.
        fails: Raised by every operation if it is set.
    """

    def __init__(self) -> None:
        self.requested: list[str] = []
        self.fails: Exception | None = None

    async def reload(self, *, force: bool, model: str = "") -> list[ReloadResult]:
        self._request(f"reload force={force}{model and f' of {model}'}")
        return [ReloadResult(7, "m", {"topic": "t"}, ModelIdentity("e", ()), model)]

    async def drain(self) -> None:
        self._request("drain")

    async def stats(self, model: str = "") -> list[WorkerStats]:
        self._request(f"stats{model and f' of {model}'}")
        return [stats_of(7), stats_of(8)]

    async def drift(self, model: str = "") -> DriftReport:
        self._request(f"drift of {model}" if model else "drift")
        topic = Measure("topic", "answers", MeasureKind.SHARES, ("a", "b"), (0.5, 0.5), 400)
        mean = Measure("", "embedding", MeasureKind.MEAN, (), (0.0, 1.0), 400, (1.0, 1.0))
        measures = [
            MeasureDrift(topic, 90, (0.9, 0.1), 0.4, 1e-5, 45.0, drifted=True),
            MeasureDrift(mean, 90, (), 0.1, None, 90.0, drifted=False),
        ]
        return DriftReport("m", 86400.0, 90, 7, 400, 0.1, measures)

    def _request(self, operation: str) -> None:
        self.requested.append(operation)
        if self.fails:
            raise self.fails


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
async def health() -> Health:
    health = Health()
    await health.set(serving=True, alive=True)
    return health


@pytest.fixture
async def channel(backend: FakeBackend, health: Health, tmp_path: Path) -> AsyncIterator[aio.Channel]:
    server = AdminServer(settings_with(f"unix:{tmp_path}/admin"), backend, health)
    await server.open()
    async with aio.insecure_channel(f"unix:{tmp_path}/admin") as channel:
        yield channel
    await server.close()
    assert not (tmp_path / "admin").exists()


@pytest.fixture
def stub(channel: aio.Channel) -> Any:
    return admin_service_pb2_grpc.AdminServiceStub(channel)


async def test_metadata_names_one_of_several_models(stub: Any, backend: FakeBackend) -> None:
    metadata = (("x-polyhead-model", "tickets"),)
    (result,) = (await stub.Reload(pb2.ReloadRequest(), timeout=30, metadata=metadata)).workers
    assert result.model_name == "tickets"
    await stub.GetStats(pb2.GetStatsRequest(), timeout=30, metadata=metadata)
    assert backend.requested == ["reload force=False of tickets", "stats of tickets"]


async def test_stats_contain_every_worker(stub: Any) -> None:
    first, second = (await stub.GetStats(pb2.GetStatsRequest(), timeout=30)).workers
    assert (first.process_id, second.process_id) == (7, 8)
    assert (first.queued_items, first.expected_wait) == (3, Duration(seconds=1, nanos=500_000_000))
    assert first.item_errors_total == {"OVERLOADED": 2}


async def test_drift_of_all_workers_is_one_report(stub: Any, backend: FakeBackend) -> None:
    metadata = (("x-polyhead-model", "tickets"),)
    report = await stub.GetDrift(pb2.GetDriftRequest(), timeout=30, metadata=metadata)
    assert backend.requested == ["drift of tickets"]
    assert (report.model_id, report.texts, report.uncounted_texts, report.reference_texts) == ("m", 90, 7, 400)
    assert (report.window, report.min_distance, report.max_p_value) == (Duration(seconds=86400), 0.1, 0.001)
    topic, mean = report.measures
    assert (topic.head, topic.name, topic.texts, topic.effective_texts) == ("topic", "answers", 90, 45)
    assert (topic.distance, topic.p_value, topic.drifted) == (0.4, 1e-5, True)
    assert [(one.name, one.reference, one.observed) for one in topic.bins] == [("a", 0.5, 0.9), ("b", 0.5, 0.1)]
    assert (mean.head, mean.HasField("p_value"), len(mean.bins)) == ("", False, 0)


async def test_missing_reference_is_a_failed_precondition(stub: Any, backend: FakeBackend) -> None:
    backend.fails = DriftNotAvailableError("m has no reference")
    with pytest.raises(grpc.RpcError) as caught:
        await stub.GetDrift(pb2.GetDriftRequest(), timeout=30)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "m has no reference"


@pytest.mark.parametrize("force", [False, True])
async def test_reload_returns_the_model_that_serves(stub: Any, backend: FakeBackend, force: bool) -> None:
    (worker,) = (await stub.Reload(pb2.ReloadRequest(force=force), timeout=30)).workers
    assert (worker.model_id, worker.fingerprints.embedding_space) == ("m", "e")
    assert [(one.head, one.fingerprint) for one in worker.fingerprints.heads] == [("topic", "t")]
    assert backend.requested == [f"reload force={force}"]


async def test_refused_reload_states_why(stub: Any, backend: FakeBackend) -> None:
    backend.fails = ReloadError("worker 1: it is damaged")
    with pytest.raises(grpc.RpcError) as caught:
        await stub.Reload(pb2.ReloadRequest(), timeout=30)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "worker 1: it is damaged"


async def test_drain_reaches_the_server(stub: Any, backend: FakeBackend) -> None:
    await stub.Drain(pb2.DrainRequest(), timeout=30)
    assert backend.requested == ["drain"]


async def test_health_is_served_on_the_admin_address(channel: aio.Channel, health: Health) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    for serving, status in ((True, "SERVING"), (False, "NOT_SERVING")):
        await health.set(serving=serving, alive=serving)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == status


async def test_channelz_shows_connections(channel: aio.Channel) -> None:
    stub: Any = channelz_pb2_grpc.ChannelzStub(channel)
    answer = await stub.GetServers(channelz_pb2.GetServersRequest(), timeout=30)
    assert any(server.data.calls_started for server in answer.server)


async def test_server_does_not_listen_without_an_address(backend: FakeBackend, health: Health) -> None:
    server = AdminServer(settings_with(""), backend, health)
    await server.open()
    await server.close()


async def test_address_that_is_taken_is_refused(backend: FakeBackend, health: Health, tmp_path: Path) -> None:
    first, second = (AdminServer(settings_with(f"unix:{tmp_path}/admin"), backend, health) for _ in range(2))
    await first.open()
    with pytest.raises(StartupError, match="another server"):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


async def test_admin_service_requires_the_scope_admin(backend: FakeBackend, health: Health, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    operator, client = (
        api_keys.create(file, name, [scope], None) for name, scope in (("operator", "admin"), ("client", "infer"))
    )
    server = AdminServer(settings_with(f"unix:{tmp_path}/admin", api_keys=str(file)), backend, health)
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
    assert backend.requested == ["stats"]
