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
from polyhead_server.candidate.description import Description
from polyhead_server.candidate.histogram import Latency
from polyhead_server.candidate.limits import CanaryLimits, SideReport
from polyhead_server.candidate.report import Example, HeadComparison, ShadowReport
from polyhead_server.candidate.status import CanaryStatus, CandidateStatus, ShadowStatus
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


def status_of() -> CandidateStatus:
    head = HeadComparison(
        "topic", "softmax", ("a", "b"), ("a", "b"), ((0, 1, 2),), 0, 4, 2, 0.25, 0.5, (), (), (Example("w1", "a", "b"),)
    )
    shadow = ShadowStatus(0.5, ShadowReport(9, 5, 1, 4, {"INTERNAL": 1}, heads=(head,)), age_s=2.0)
    side = SideReport(10, {"INTERNAL": 1}, Latency(9, 0.1, 0.1, 0.2, 0.3))
    canary = CanaryStatus(0.05, CanaryLimits(p99_s=0.5), SideReport(), side, "it is slow")
    return CandidateStatus(Path("/new"), Description("", "n", "d", "e", {"topic": "t"}), "m", shadow, canary)


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

    async def candidates(self, model: str) -> FakeBackend:
        if model:
            self.requested.append(f"candidate of {model}")
        return self

    async def shadow(self, bundle: Path, share: float, keep_texts: int, *, only_when_idle: bool) -> CandidateStatus:
        self._request(f"shadow {bundle} {share} {keep_texts} idle={only_when_idle}")
        return status_of()

    async def canary(self, bundle: Path | None, share: float, limits: CanaryLimits, *, force: bool) -> CandidateStatus:
        self._request(f"canary {bundle} {share} {limits} force={force}")
        return status_of()

    async def compare(self) -> CandidateStatus:
        self._request("compare")
        return status_of()

    async def promote(self, *, force: bool) -> list[ReloadResult]:
        self._request(f"promote force={force}")
        return [ReloadResult(7, "n", {}, ModelIdentity("e", ()))]

    async def discard(self) -> None:
        self._request("discard")

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
    server = AdminServer(settings_with(f"unix:{tmp_path}/admin"), backend, backend.candidates, health)
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


async def test_shadow_returns_the_candidate(stub: Any, backend: FakeBackend) -> None:
    request = pb2.ShadowRequest(bundle="/new", share=0.5, keep_texts=3)
    candidate = (await stub.Shadow(request, timeout=30)).candidate
    assert (candidate.model_id, candidate.bundle, candidate.fingerprints.embedding_space) == ("n", "/new", "e")
    request.priority = pb2.ShadowRequest.PRIORITY_NORMAL
    await stub.Shadow(request, timeout=30)
    assert backend.requested == ["shadow /new 0.5 3 idle=True", "shadow /new 0.5 3 idle=False"]


OUT_OF_RANGE: list[Any] = [
    pb2.ShadowRequest(share=0.5),
    pb2.ShadowRequest(bundle="/new"),
    pb2.ShadowRequest(bundle="/new", share=1.5),
    pb2.ShadowRequest(bundle="/new", share=float("nan")),
    pb2.ShadowRequest(bundle="/new", share=0.5, keep_texts=1001),
    pb2.ShadowRequest(bundle="/new", share=0.5, priority=9),  # type: ignore[arg-type]
    pb2.CanaryRequest(),
    pb2.CanaryRequest(share=0.5, limits=pb2.CanaryLimits(error_rate=2)),
    pb2.CanaryRequest(share=0.5, limits=pb2.CanaryLimits(p99_ratio=-1)),
    pb2.CanaryRequest(share=0.5, limits=pb2.CanaryLimits(p99=Duration(seconds=-1))),
]


async def test_candidate_requests_out_of_range_are_rejected(stub: Any, backend: FakeBackend) -> None:
    for request_ in OUT_OF_RANGE:
        method = stub.Shadow if isinstance(request_, pb2.ShadowRequest) else stub.Canary
        with pytest.raises(grpc.RpcError) as caught:
            await method(request_, timeout=30)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not backend.requested


async def test_canary_has_default_limits(stub: Any, backend: FakeBackend) -> None:
    await stub.Canary(pb2.CanaryRequest(share=0.05), timeout=30)
    limits = pb2.CanaryLimits(error_rate=0.0, p99_ratio=0.0, p99=Duration(nanos=5 * 10**8), min_texts=7)
    await stub.Canary(pb2.CanaryRequest(bundle="/new", share=0.05, limits=limits, force=True), timeout=30)
    assert backend.requested == [
        f"canary None 0.05 {CanaryLimits()} force=False",
        f"canary /new 0.05 {CanaryLimits(0.0, 0.0, 0.5, 7)} force=True",
    ]


@pytest.mark.parametrize("include_texts", [False, True])
async def test_comparison_shows_texts_on_request_alone(stub: Any, include_texts: bool) -> None:
    found = await stub.Compare(pb2.CompareRequest(include_texts=include_texts), timeout=30)
    shadow, (head,) = found.shadow, found.shadow.heads
    assert (shadow.answered, shadow.selected, shadow.dropped, shadow.compared) == (9, 5, 1, 4)
    assert [(cell.row, cell.column, cell.texts) for cell in head.cells] == [(0, 1, 2)]
    assert [one.text for one in head.texts] == (["w1"] if include_texts else [])
    assert not shadow.embedding.HasField("mean_cosine")
    assert (found.canary.rollback, found.canary.candidate.texts, found.canary.limits.p99.nanos) == (
        "it is slow",
        10,
        5 * 10**8,
    )


async def test_candidate_is_that_of_the_named_model(stub: Any, backend: FakeBackend) -> None:
    await stub.Discard(pb2.DiscardRequest(), timeout=30, metadata=[("x-polyhead-model", "reviews")])
    assert backend.requested == ["candidate of reviews", "discard"]


async def test_promote_and_discard_reach_the_server(stub: Any, backend: FakeBackend) -> None:
    (worker,) = (await stub.Promote(pb2.PromoteRequest(force=True), timeout=30)).workers
    assert worker.model_id == "n"
    await stub.Discard(pb2.DiscardRequest(), timeout=30)
    assert backend.requested == ["promote force=True", "discard"]


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
    server = AdminServer(settings_with(""), backend, backend.candidates, health)
    await server.open()
    await server.close()


async def test_address_that_is_taken_is_refused(backend: FakeBackend, health: Health, tmp_path: Path) -> None:
    first, second = (
        AdminServer(settings_with(f"unix:{tmp_path}/admin"), backend, backend.candidates, health) for _ in range(2)
    )
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
    server = AdminServer(
        settings_with(f"unix:{tmp_path}/admin", api_keys=str(file)), backend, backend.candidates, health
    )
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
