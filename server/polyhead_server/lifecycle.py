"""From exec to exit: bind, load, self-test, serve; on SIGTERM or SIGINT drain and leave.

::

    bind (health NOT_SERVING) -> load, self-test -> SERVING -> signal -> NOT_SERVING, drain -> exit
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
from .metrics import Metrics
from .pipeline import Pipeline
from .service import NAME, InferenceService, handler
from .settings import Settings

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
# Seconds for the last answers to leave after the last of our calls has ended.
_FLUSH_S = 1.0


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Raises:
        StartupError: The address is taken, or the model cannot be served.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = aio.server(interceptors=[ErrorInterceptor(NAME)], options=_options(settings))
    service, health = InferenceService(settings), Health(server)
    await health.set(serving=False)
    server.add_generic_rpc_handlers((handler(service),))
    reflection.enable_server_reflection((NAME, "grpc.health.v1.Health", reflection.SERVICE_NAME), server)
    port = _bind(server, settings.listen)
    await server.start()
    try:
        pipeline = await _load(settings, stop)
        if pipeline is None:
            return
        service.serve(pipeline)
        await health.set(serving=True)
        logger.info("serving %s on %s", pipeline.model.source.model_id, f"{settings.listen.rpartition(':')[0]}:{port}")
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


async def _load(settings: Settings, stop: asyncio.Event) -> Pipeline | None:
    """The pipeline, once the model is ready; None when the server was told to stop before."""
    metrics = Metrics()
    if settings.metrics_listen:
        host, port = split_address(settings.metrics_listen)
        try:
            metrics.listen(host, port)
        except OSError as error:
            raise StartupError(f"cannot listen on {settings.metrics_listen}: {error}") from error
    loaded = _in_daemon(lambda: loading.load(settings))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([loaded, cast(Any, stopped)], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not loaded.done():
        return None
    model = loaded.result()
    logger.info(loading.describe(model.engine.runtime, settings.compute_threads()))
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


def split_address(address: str) -> tuple[str, int]:
    """``HOST:PORT`` as its two parts.

    Raises:
        StartupError: It has not that form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise StartupError(f"{address!r} is not HOST:PORT, such as 127.0.0.1:50051")
    return host.strip("[]"), int(port)


def _bind(server: aio.Server, address: str) -> int:
    split_address(address)
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartupError(f"cannot listen on {address}; is another server running there?") from error


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Otherwise a second server binds the same port in silence and takes half of the calls.
        ("grpc.so_reuseport", 0),
        # A stream whose client does not read costs 70 kB instead of 4.3 MB.
        ("grpc.http2.bdp_probe", 0),
    ]
