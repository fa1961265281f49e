"""One worker process as its supervisor handles it: start, requests, end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any, Self, TypeVar, cast

from polyhead_server.process_reports import ModelIdentity

from . import ipc
from .ipc import Method, Request, Response, Role, RpcError, WorkerConfig

logger = logging.getLogger(__name__)

P = TypeVar("P")
R = TypeVar("R")


def process_name(config: WorkerConfig, number: int) -> str:
    """Returns the name of a process in the log, such as ``worker 0``."""
    return "the engine" if config.role is Role.ENGINE else f"{config.role} {number}"


class WorkerFailedError(Exception):
    """A worker did not carry out a request; the message states why."""


class WorkerHangsError(WorkerFailedError):
    """A worker did not answer a request in time. It may do so later."""


class WorkerEndedError(WorkerFailedError):
    """A worker ended before it answered a request."""


class WorkerProcess:
    """A process that was started and has not been waited for.

    Attributes:
        number: Its slot among the workers; a successor takes the number of its predecessor.
        config: The configuration that it was started with.
        identity: Identity of its model, once it serves.
        serving_since: ``time.monotonic()`` time since which it serves; None before.
        stop_requested: Whether it was sent SIGTERM or SIGKILL.
        exit_code: Task that ends with the process and holds its exit code.
    """

    def __init__(self, number: int, config: WorkerConfig, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.config = config
        self.identity: ModelIdentity | None = None
        self.serving_since: float | None = None
        self.stop_requested = False
        self.exit_code = asyncio.create_task(process.wait())
        self._process = process
        self._serving = asyncio.Event()
        self._request_ids = itertools.count()
        self._responses: dict[int, asyncio.Future[Response]] = {}
        self._reader = asyncio.create_task(self._read_messages())

    @classmethod
    async def start(cls, number: int, config: WorkerConfig) -> Self:
        """Starts a worker.

        Args:
            number: Its slot among the workers.
            config: Its configuration, which is sent as the first message.

        Raises:
            OSError: The system cannot start another process.
        """
        # -P: without it, modules in the current directory would take precedence over the installed ones.
        command = [sys.executable, "-P", "-m", "polyhead_server.workers.main"]
        if config.role is not Role.WORKER:
            # For those who look at the list of processes.
            command.append(config.role)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=pipe,
            stdout=pipe,
            limit=ipc.MAX_LINE_BYTES,
            # A terminal signals its whole process group. Only the supervisor handles that, and then stops the workers.
            start_new_session=True,
        )
        worker = cls(number, config, process)
        worker._send(ipc.encode_notification(ipc.CONFIGURE, config))
        return worker

    @property
    def name(self) -> str:
        """Its name in the log, such as ``worker 0``."""
        return process_name(self.config, self.number)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.exit_code.done()

    @property
    def serving_s(self) -> float:
        """Seconds for which it has been serving."""
        return 0.0 if self.serving_since is None else time.monotonic() - self.serving_since

    async def wait_until_serving(self, timeout_s: float | None = None, *others: asyncio.Task[Any]) -> bool:
        """Waits until it serves, it ends, the time is over, or one of ``others`` is done; returns whether it serves."""
        serving = asyncio.create_task(self._serving.wait())
        waited: set[asyncio.Task[Any]] = {serving, self.exit_code, *others}
        await asyncio.wait(waited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        return self._serving.is_set() and not self.ended

    async def request(self, method: Method[P, R], params: P, timeout_s: float) -> R:
        """Sends a request to the worker and returns the result.

        Raises:
            WorkerEndedError: The worker ended.
            WorkerHangsError: The time is over.
            WorkerFailedError: The operation failed.
        """
        request_id = next(self._request_ids)
        response = self._responses[request_id] = asyncio.get_running_loop().create_future()
        self._send(ipc.encode_request(method, params, request_id))
        if self._reader.done():
            self._fail_requests()
        try:
            return method.result_of(await asyncio.wait_for(response, timeout_s))
        except TimeoutError:
            raise WorkerHangsError(f"it did not answer within {timeout_s:g} s") from None
        except RpcError as error:
            raise WorkerFailedError(error.message) from error
        finally:
            del self._responses[request_id]

    def terminate(self) -> None:
        """Sends SIGTERM, which lets it drain; sent only once, because a second signal would cut off its work."""
        if not self.stop_requested:
            self.stop_requested = True
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.stop_requested = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _send(self, line: bytes) -> None:
        stdin = cast(asyncio.StreamWriter, self._process.stdin)
        # A process that has ended has closed its end of the pipe.
        if not stdin.is_closing():
            stdin.write(line)

    async def _read_messages(self) -> None:
        reader = cast(asyncio.StreamReader, self._process.stdout)
        try:
            while True:
                try:
                    if not (line := await reader.readline()):
                        return
                    self._handle(ipc.decode(line))
                except RpcError as error:
                    self._reject(error)
                except ValueError as error:
                    # The line is longer than the limit.
                    self._reject(RpcError(ipc.PARSE_ERROR, str(error)))
        finally:
            self._fail_requests()

    def _handle(self, message: Request | Response) -> None:
        if isinstance(message, Request):
            self._handle_request(message)
        elif message.id is None:
            logger.warning("%s, process %d, rejected a message: %s", self.name, self.pid, message.error)
        elif (response := self._responses.get(message.id)) and not response.done():
            response.set_result(message)

    def _handle_request(self, request: Request) -> None:
        if request.method != ipc.SERVING.name:
            raise RpcError(ipc.METHOD_NOT_FOUND, f"unknown method {request.method}", request.id)
        self.identity, self.serving_since = ipc.SERVING.params_of(request), time.monotonic()
        self._serving.set()

    def _reject(self, error: RpcError) -> None:
        logger.warning("%s, process %d, sent an invalid message: %s", self.name, self.pid, error)
        # A notification, whose errors have no id, is never answered; a line that cannot be read is.
        if error.request_id is not None or error.code in {ipc.PARSE_ERROR, ipc.INVALID_REQUEST}:
            self._send(ipc.encode_error(error))

    def _fail_requests(self) -> None:
        for response in self._responses.values():
            if not response.done():
                response.set_exception(WorkerEndedError("it ended"))


async def request_all(
    workers: Sequence[WorkerProcess], method: Method[P, R], params: P, timeout_s: float
) -> tuple[list[R], list[str]]:
    """Sends a request to workers at once; leaves out those that end meanwhile, or soon.

    Returns:
        The results, and why workers gave none.
    """
    answers = await asyncio.gather(
        *(worker.request(method, params, timeout_s) for worker in workers), return_exceptions=True
    )
    results: list[R] = []
    failures: list[str] = []
    for worker, answer in zip(workers, answers, strict=True):
        if not isinstance(answer, BaseException):
            results.append(answer)
        elif not (isinstance(answer, WorkerEndedError) or worker.stop_requested):
            failures.append(f"{method.name} failed in {worker.name}: {answer}")
    return results, failures
