"""From exec to exit: bind, load, self-test, serve; on SIGTERM or SIGINT drain and leave.

::

    bind (health NOT_SERVING) -> load, self-test -> SERVING -> signal -> NOT_SERVING, drain -> exit
"""

from __future__ import annotations

import asyncio
import logging
import signal

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
        await server.stop(settings.drain_s)
        await pipeline.close()
        logger.info("stopped")
    finally:
        await server.stop(None)


async def _load(settings: Settings, stop: asyncio.Event) -> Pipeline | None:
    """The pipeline, once the model is ready; None when the server was told to stop before."""
    metrics = Metrics()
    if settings.metrics_listen:
        host, port = split_address(settings.metrics_listen)
        metrics.listen(host, port)
    loaded = asyncio.create_task(asyncio.to_thread(loading.load, settings))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({loaded, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not loaded.done():
        return None
    model = loaded.result()
    logger.info(loading.describe(model.engine.runtime, settings.compute_threads()))
    metrics.serving(model)
    pipeline = Pipeline(model, settings, metrics.observe)
    pipeline.start()
    return pipeline


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
