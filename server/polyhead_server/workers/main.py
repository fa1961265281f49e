"""Entry point of a worker process; its supervisor starts ``python -m polyhead_server.workers.main``."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from polyhead_server.background import BackgroundTasks
from polyhead_server.candidate.parameters import CanaryCounts, CanaryParams, SamplingParams
from polyhead_server.errors import InternalError, NotReadyError, ServerError
from polyhead_server.lifecycle.entry import run
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.process_reports import DriftCounts, ModelIdentity, ReloadResult, WorkerStats

from . import ipc
from .ipc import (
    Method,
    NoParams,
    NoResult,
    PromoteParams,
    ReloadParams,
    Request,
    Response,
    Role,
    RpcError,
    WorkerConfig,
)

if TYPE_CHECKING:
    from polyhead_server.lifecycle.candidate_operations import CandidateOperations
    from polyhead_server.lifecycle.operations import ProcessOperations

# Not __name__, which is __main__ here.
logger = logging.getLogger("polyhead_server.workers.main")


def main() -> None:
    """Serves on its share of the cores until it receives a signal to stop or its supervisor ends."""
    # Reads the first line and not a byte more: the event loop reads what follows.
    message = ipc.decode(io.FileIO(0, closefd=False).readline())
    assert isinstance(message, Request)  # noqa: S101 - the supervisor sends nothing else first
    config = ipc.CONFIGURE.params_of(message)
    if config.cores:
        # Before any library counts the cores.
        os.sched_setaffinity(0, config.cores)
    if config.metrics_folder:
        # Before prometheus_client, which reads the variable, is imported.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = config.metrics_folder
    # Reserves standard output for messages: what a library prints goes to standard error.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    run(config.settings, lambda _: _serve(config, output))


async def _serve(config: WorkerConfig, output: BinaryIO) -> int:
    from polyhead_server.lifecycle.server import WorkerRole, serve

    stop = asyncio.Event()
    connection = SupervisorConnection(output)
    reader = asyncio.StreamReader(limit=ipc.MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    reading = asyncio.create_task(connection.read_requests(reader))
    # The pipe ends when the supervisor does.
    reading.add_done_callback(lambda _: stop.set())
    socket = Path(config.engine_socket) if config.engine_socket else None
    role = WorkerRole(config.identity, config.drained, connection.announce_serving, socket, config.bundle)
    try:
        if config.role is Role.ENGINE:
            from polyhead_server.lifecycle.engine_process import serve_engine

            return await serve_engine(config.settings, stop, role)
        return await serve(config.settings, stop, role)
    finally:
        if reading.done():
            # The supervisor was killed and cannot remove them.
            for folder in (config.metrics_folder, str(socket.parent) if socket else ""):
                if folder:
                    shutil.rmtree(folder, ignore_errors=True)


class SupervisorConnection:
    """The worker's end of the connection to its supervisor: runs the operations that the supervisor requests.

    Attributes:
        in_progress: One task for each request that has not been answered yet.
    """

    def __init__(self, output: BinaryIO) -> None:
        """Takes the stream on which messages to the supervisor are written."""
        self._output = output
        self._operations: ProcessOperations | None = None
        self._handlers: dict[str, Callable[[Request], Awaitable[Any]]] = {
            ipc.RELOAD.name: _handler(ipc.RELOAD, self._reload),
            ipc.DRAIN.name: _handler(ipc.DRAIN, self._drain),
            ipc.STATS.name: _handler(ipc.STATS, self._stats),
            ipc.PROMOTE.name: _handler(ipc.PROMOTE, self._promote),
            ipc.SAMPLE.name: _handler(ipc.SAMPLE, self._sample),
            ipc.SET_CANARY.name: _handler(ipc.SET_CANARY, self._set_canary),
            ipc.DRAIN_CANARY.name: _handler(ipc.DRAIN_CANARY, self._drain_canary),
            ipc.CANARY_COUNTS.name: _handler(ipc.CANARY_COUNTS, self._canary_counts),
            ipc.DRIFT.name: _handler(ipc.DRIFT, self._drift),
        }
        self.in_progress = BackgroundTasks()

    def announce_serving(self, identity: ModelIdentity, operations: ProcessOperations) -> None:
        """Tells the supervisor that this worker serves; from then on it can run operations."""
        self._operations = operations
        self._write(ipc.encode_notification(ipc.SERVING, identity))

    async def read_requests(self, reader: asyncio.StreamReader) -> None:
        """Reads requests and answers them as their operations end, until the supervisor ends."""
        while True:
            try:
                if not (line := await reader.readline()):
                    return
                message = ipc.decode(line)
            except RpcError as error:
                self._write(ipc.encode_error(error))
            except ValueError as error:
                # The line is longer than the limit.
                self._write(ipc.encode_error(RpcError(ipc.PARSE_ERROR, str(error))))
            else:
                self._handle(message)

    def _handle(self, message: Request | Response) -> None:
        if isinstance(message, Response):
            # A worker sends no requests, so this can only be an error without an id.
            logger.warning("the supervisor rejected a message: %s", message.error)
            return
        self.in_progress.start(self._answer(message))

    async def _answer(self, request: Request) -> None:
        try:
            line = ipc.encode_result(await self._run(request), request.id)
        except RpcError as error:
            line = ipc.encode_error(error)
        except ServerError as error:
            line = ipc.encode_error(RpcError(ipc.OPERATION_FAILED, str(error), request.id))
        except Exception as error:  # noqa: BLE001 - the boundary of the request: the supervisor would wait in vain
            exit_if_out_of_memory(error)
            problem = str(InternalError.logged(f"{request.method} failed", error))
            line = ipc.encode_error(RpcError(ipc.OPERATION_FAILED, problem, request.id))
        # A notification is never answered.
        if request.id is not None:
            self._write(line)

    async def _run(self, request: Request) -> Any:
        if handler := self._handlers.get(request.method):
            return await handler(request)
        raise RpcError(ipc.METHOD_NOT_FOUND, f"unknown method {request.method}", request.id)

    async def _reload(self, params: ReloadParams) -> ReloadResult:
        return await self._require_operations().reload(force=params.force)

    async def _drain(self, _: NoParams) -> NoResult:
        await self._require_operations().drain()
        return NoResult()

    async def _stats(self, _: NoParams) -> WorkerStats:
        return await self._require_operations().stats()

    async def _promote(self, params: PromoteParams) -> ReloadResult:
        return await self._require_operations().promote(params.candidate, force=params.force)

    async def _sample(self, params: SamplingParams) -> NoResult:
        self._require_candidate().sample(params)
        return NoResult()

    async def _set_canary(self, params: CanaryParams) -> NoResult:
        await self._require_candidate().set_canary(params)
        return NoResult()

    async def _drain_canary(self, _: NoParams) -> NoResult:
        await self._require_candidate().drain_canary()
        return NoResult()

    async def _canary_counts(self, _: NoParams) -> CanaryCounts:
        return self._require_candidate().canary_counts()

    def _require_candidate(self) -> CandidateOperations:
        candidate = self._require_operations().candidate
        if candidate is None:
            raise NotReadyError
        return candidate

    async def _drift(self, _: NoParams) -> DriftCounts:
        return await self._require_operations().drift()

    def _require_operations(self) -> ProcessOperations:
        if self._operations is None:
            raise NotReadyError
        return self._operations

    def _write(self, line: bytes) -> None:
        self._output.write(line)
        self._output.flush()


def _handler(
    method: Method[ipc.P, ipc.R], run: Callable[[ipc.P], Awaitable[ipc.R]]
) -> Callable[[Request], Awaitable[ipc.R]]:
    """Returns a function that runs a method with the parameters of a request."""

    async def handle(request: Request) -> ipc.R:
        return await run(method.params_of(request))

    return handle


if __name__ == "__main__":
    main()
