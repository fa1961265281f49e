"""From exec to exit: bind, load, self-test, serve; on SIGTERM or SIGINT drain and leave.

::

    bind (health NOT_SERVING) -> load, self-test -> SERVING -> signal -> NOT_SERVING, drain -> exit

One of several workers binds after the self-test, so that the kernel deals no connection to one that is not ready.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from grpc import aio
from grpc_reflection.v1alpha import reflection

from . import loading
from .errors import StartupError
from .health import Health
from .interceptors import ErrorInterceptor
from .metrics import Metrics, listen_for_scrapes
from .pipeline import Pipeline
from .service import NAME, InferenceService, handler
from .settings import Settings, split_address

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
# Seconds for the last answers to leave after the last of our calls has ended.
_FLUSH_S = 1.0


async def serve(
    settings: Settings, stop: asyncio.Event | None = None, announce: Callable[[], None] | None = None
) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Args:
        settings: What the server was told.
        stop: Ends the server as a signal does.
        announce: For one of several workers, which share a port: called when this one serves.

    Raises:
        StartupError: The address is taken, or the model cannot be served.
    """
    stop = stop or asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = aio.server(interceptors=[ErrorInterceptor(NAME)], options=_options(settings, shares_port=bool(announce)))
    metrics = Metrics()
    service, health = InferenceService(settings, metrics), Health(server)
    await health.set(serving=False)
    server.add_generic_rpc_handlers((handler(service),))
    reflection.enable_server_reflection((NAME, "grpc.health.v1.Health", reflection.SERVICE_NAME), server)
    if not announce:
        address = await _listen(server, settings.listen)
    try:
        pipeline = await _load(settings, metrics, stop)
        if pipeline is None:
            return
        service.serve(pipeline)
        await health.set(serving=True)
        if announce:
            address = await _listen(server, settings.listen)
            announce()
        logger.info("serving %s on %s", pipeline.model.source.model_id, address)
        await stop.wait()
        logger.info("draining for at most %g s", settings.drain_s)
        await health.set(serving=False)
        service.drain()
        if not await service.idle(settings.drain_s):
            logger.warning("calls are still running; they are ended")
        # Only now: a server that stops answers CANCELLED to calls that it has not looked at yet. The grace lets the
        # last answers leave, and is all that others' endless streams get, such as Watch of the health service.
        await server.stop(_FLUSH_S)
        await pipeline.close()
        logger.info("stopped")
    finally:
        await server.stop(None)


async def _load(settings: Settings, metrics: Metrics, stop: asyncio.Event) -> Pipeline | None:
    """The pipeline, once the model is ready; None when the server was told to stop before."""
    if settings.metrics_listen:
        listen_for_scrapes(settings.metrics_listen, metrics.registry)
    loaded = _in_daemon(lambda: loading.load(settings))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([loaded, cast(Any, stopped)], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not loaded.done():
        return None
    model = loaded.result()
    logger.info(loading.describe(model, settings.compute_threads(model.engine.runtime.device)))
    metrics.serving(model)
    pipeline = Pipeline(model, settings, metrics.observe)
    pipeline.start()
    return pipeline


def _in_daemon(work: Callable[[], _T]) -> asyncio.Future[_T]:
    """Runs ``work`` in a thread that keeps nobody from leaving, unlike those of asyncio's executor."""
    outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - the edge of a thread: the waiter raises it
            outcome.set_exception(error)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return asyncio.wrap_future(outcome)


async def _listen(server: aio.Server, address: str) -> str:
    """Starts the server on HOST:PORT; returns the same with the port that it got."""
    split_address(address)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartupError(f"cannot listen on {address}; is another server running there?") from error
    await server.start()
    return f"{address.rpartition(':')[0]}:{port}"


def _options(settings: Settings, *, shares_port: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Otherwise a second server binds the same port in silence and takes half of the calls. Workers want just that.
        ("grpc.so_reuseport", int(shares_port)),
        # A stream whose client does not read costs 70 kB instead of 4.3 MB.
        ("grpc.http2.bdp_probe", 0),
    ]
