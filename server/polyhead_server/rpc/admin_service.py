"""``polyhead.v1.AdminService`` on its own address: operators reload, drain and inspect a running server through it.

With several workers the supervisor serves it and runs each operation on all of them; otherwise the server's only
process serves it. The same address serves health, reflection and channelz, which shows the gRPC connections of the
process that serves it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.duration_pb2 import Duration
from grpc import aio
from grpc_channelz.v1 import channelz
from grpc_reflection.v1alpha import reflection
from polyhead.v1 import admin_service_pb2 as pb2
from polyhead.v1 import admin_service_pb2_grpc, item_pb2

from polyhead_server.addresses import exclusive, private_files
from polyhead_server.candidate.limits import CanaryLimits
from polyhead_server.candidate.status import CandidateStatus
from polyhead_server.drift.report import MAX_P_VALUE, DriftReport
from polyhead_server.errors import StartupError
from polyhead_server.process_reports import ReloadResult, WorkerStats
from polyhead_server.rpc.interceptors.auth import AuthInterceptor
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.security.tls import Certificates, add_port
from polyhead_server.serving.models import name_in
from polyhead_server.settings import Settings

from . import candidate_messages, service_names
from .candidate_messages import duration
from .health import Health
from .server_options import common_options

logger = logging.getLogger(__name__)

_Context = aio.ServicerContext[Any, Any]
# Seconds for the last response to leave.
_FLUSH_S = 1.0


class AdminBackend(Protocol):
    """Operations on all processes of a server. Each raises a ``ServerError`` that states why it failed."""

    async def reload(self, *, force: bool, model: str = "") -> list[ReloadResult]:
        """Loads the bundle of a model again in every process, of all without a name; ``force`` accepts any model."""

    async def drain(self) -> None:
        """Makes every process report NOT_SERVING."""

    async def stats(self, model: str = "") -> list[WorkerStats]:
        """Returns the statistics of every process for a model, for each without a name."""

    async def drift(self, model: str = "") -> DriftReport:
        """Compares a model's traffic in all processes with its validation texts; without a name, the first model's."""


class CandidateBackend(Protocol):
    """Operations on the candidate of a server. Each raises a ``ServerError`` that states why it failed."""

    async def shadow(self, bundle: Path, share: float, keep_texts: int, *, only_when_idle: bool) -> CandidateStatus:
        """Loads a candidate and compares it on a share of the live texts."""

    async def canary(self, bundle: Path | None, share: float, limits: CanaryLimits, *, force: bool) -> CandidateStatus:
        """Lets a candidate answer a share of the calls; ``force`` accepts an incompatible one."""

    async def compare(self) -> CandidateStatus:
        """Returns the state of the candidate."""

    async def promote(self, *, force: bool) -> list[ReloadResult]:
        """Serves the candidate; ``force`` accepts an incompatible one."""

    async def discard(self) -> None:
        """Unloads the candidate."""


# Returns the operations for a model by its name; without a name, for the first one.
Candidates = Callable[[str], Awaitable[CandidateBackend]]


class AdminServer:
    """The listener of the admin service."""

    def __init__(self, settings: Settings, backend: AdminBackend, candidates: Candidates, health: Health) -> None:
        """Prepares the server; ``open`` starts it.

        Args:
            settings: Define the address, if any, and the accepted API keys.
            backend: Runs the operations.
            candidates: Returns what runs those on the candidate of a model.
            health: Health of the whole server, for clients that can reach only this address.
        """
        self._settings = settings
        self._servicer = _AdminServicer(backend, candidates)
        self._health = health
        self._running: contextlib.AsyncExitStack | None = None

    async def open(self) -> None:
        """Starts to listen, if an address is set.

        Raises:
            StartupError: The address is taken.
        """
        if not self._settings.admin_listen:
            return
        async with contextlib.AsyncExitStack() as stack:
            address = stack.enter_context(exclusive(self._settings.admin_listen))
            # An empty name: the messages of all these services are small.
            errors = ErrorInterceptor("", request_timeout_s=self._settings.request_timeout_s)
            interceptors = [*AuthInterceptor.from_settings(self._settings), errors]
            options = [("grpc.so_reuseport", 0), *common_options(self._settings)]
            server = aio.server(interceptors=interceptors, options=options)
            stack.push_async_callback(server.stop, _FLUSH_S)
            admin_service_pb2_grpc.add_AdminServiceServicer_to_server(self._servicer, server)
            self._health.add_to(server)
            channelz.add_channelz_servicer(server)
            names = (service_names.ADMIN, service_names.CHANNELZ, service_names.HEALTH, service_names.REFLECTION)
            reflection.enable_server_reflection(names, server)
            address = await listen(server, address)
            logger.info("the admin service listens on %s", address)
            self._running = stack.pop_all()

    async def close(self) -> None:
        """Stops listening."""
        if self._running:
            running, self._running = self._running, None
            await running.aclose()


async def listen(server: aio.Server, address: str, certificates: Certificates | None = None) -> str:
    """Starts a server on an address, with TLS if there are certificates.

    Returns:
        The address with the port that the server got.

    Raises:
        StartupError: The address is taken.
    """
    try:
        with private_files():
            port = add_port(server, address, certificates)
    except RuntimeError as error:
        raise StartupError(f"cannot listen on {address}; is another server running there?") from error
    await server.start()
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


class _AdminServicer(admin_service_pb2_grpc.AdminServiceServicer):
    """The RPCs of the admin service."""

    def __init__(self, backend: AdminBackend, candidates: Candidates) -> None:
        self._backend = backend
        self._candidates = candidates

    async def Reload(self, request: pb2.ReloadRequest, context: _Context) -> pb2.ReloadResponse:  # noqa: N802
        results = await self._backend.reload(force=request.force, model=name_in(context.invocation_metadata()))
        return pb2.ReloadResponse(workers=map(_worker_reload, results))

    async def Drain(self, _: pb2.DrainRequest, __: _Context) -> pb2.DrainResponse:  # noqa: N802
        await self._backend.drain()
        return pb2.DrainResponse()

    async def GetStats(self, _: pb2.GetStatsRequest, context: _Context) -> pb2.GetStatsResponse:  # noqa: N802
        results = await self._backend.stats(name_in(context.invocation_metadata()))
        return pb2.GetStatsResponse(workers=map(_worker_stats, results))

    async def GetDrift(self, _: pb2.GetDriftRequest, context: _Context) -> pb2.GetDriftResponse:  # noqa: N802
        return _drift(await self._backend.drift(name_in(context.invocation_metadata())))

    async def _candidates_of(self, context: _Context) -> CandidateBackend:
        return await self._candidates(name_in(context.invocation_metadata()))

    async def Shadow(self, request: pb2.ShadowRequest, context: _Context) -> pb2.ShadowResponse:  # noqa: N802
        bundle, share, keep_texts = candidate_messages.read_shadow(request)
        status = await (await self._candidates_of(context)).shadow(
            bundle, share, keep_texts, only_when_idle=candidate_messages.is_idle(request.priority)
        )
        return pb2.ShadowResponse(candidate=candidate_messages.candidate(status))

    async def Compare(self, request: pb2.CompareRequest, context: _Context) -> pb2.CompareResponse:  # noqa: N802
        status = await (await self._candidates_of(context)).compare()
        return candidate_messages.comparison(status, include_texts=request.include_texts)

    async def Canary(self, request: pb2.CanaryRequest, context: _Context) -> pb2.CanaryResponse:  # noqa: N802
        bundle, share, limits = candidate_messages.read_canary(request)
        status = await (await self._candidates_of(context)).canary(bundle, share, limits, force=request.force)
        return pb2.CanaryResponse(candidate=candidate_messages.candidate(status))

    async def Promote(self, request: pb2.PromoteRequest, context: _Context) -> pb2.PromoteResponse:  # noqa: N802
        results = await (await self._candidates_of(context)).promote(force=request.force)
        return pb2.PromoteResponse(workers=map(_worker_reload, results))

    async def Discard(self, _: pb2.DiscardRequest, context: _Context) -> pb2.DiscardResponse:  # noqa: N802
        await (await self._candidates_of(context)).discard()
        return pb2.DiscardResponse()


def _worker_reload(result: ReloadResult) -> pb2.WorkerReload:
    heads = [item_pb2.HeadFingerprint(head=head, fingerprint=value) for head, value in result.head_fingerprints.items()]
    return pb2.WorkerReload(
        process_id=result.process_id,
        model_id=result.model_id,
        fingerprints=item_pb2.Fingerprints(embedding_space=result.identity.embedding_space, heads=heads),
        model_name=result.model_name,
    )


def _worker_stats(stats: WorkerStats) -> pb2.WorkerStats:
    fields = pb2.WorkerStats.DESCRIPTOR.fields_by_name
    values: dict[str, Any] = {
        name: duration(value) if fields[name].message_type is Duration.DESCRIPTOR else value
        for name, value in dataclasses.asdict(stats).items()
    }
    return pb2.WorkerStats(**values)


def _drift(report: DriftReport) -> pb2.GetDriftResponse:
    return pb2.GetDriftResponse(
        model_id=report.model_id,
        window=duration(report.window_s),
        texts=report.texts,
        uncounted_texts=report.uncounted,
        reference_texts=report.reference_texts,
        min_distance=report.min_distance,
        max_p_value=MAX_P_VALUE,
        measures=[
            pb2.DriftMeasure(
                head=one.measure.head,
                name=one.measure.name,
                texts=one.texts,
                effective_texts=one.effective,
                distance=one.distance,
                p_value=one.p_value,
                drifted=one.drifted,
                bins=[pb2.DriftBin(name=name, reference=old, observed=new) for name, old, new in one.bins()],
            )
            for one in report.measures
        ],
    )
