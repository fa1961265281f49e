"""A candidate's process as the server handles it: start, requests, end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, cast

from polyhead_server.errors import CandidateError
from polyhead_server.json_dataclasses import from_json, to_json
from polyhead_server.threads import in_daemon_thread

logger = logging.getLogger(__name__)

R = TypeVar("R")

# Seconds in which it must answer a request; it may have no processor time at all.
RESPONSE_TIMEOUT_S = 10.0
# Seconds after the end of its input after which it is killed.
_END_TIMEOUT_S = 5.0


class CandidateProcess:
    """A child process that reads lines of JSON and answers each with one. Event loop only.

    Attributes:
        ended: Future that ends with the process and holds its exit code.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Takes a process that was just started."""
        self._process = process
        self._input = cast(BinaryIO, process.stdin)
        self._loop = asyncio.get_running_loop()
        self._responses: asyncio.Queue[bytes] = asyncio.Queue()
        # Whether an answer is on its way.
        self._is_asked = False
        self._lock = asyncio.Lock()
        self._stopping = False
        self.ended: asyncio.Future[int] = self._loop.create_future()
        threading.Thread(target=self._read_lines, name="candidate-reader", daemon=True).start()

    @classmethod
    async def start(cls, module: str, config: Any) -> CandidateProcess:
        """Starts a process.

        Args:
            module: Module that is run.
            config: Dataclass that is sent as the first line.

        Raises:
            CandidateError: The system cannot start another process.
        """
        # -P: without it, modules in the current directory would take precedence over the installed ones. Started by a
        # thread of its own and without Python code between fork and exec, whichever event loop this process has.
        command = [sys.executable, "-P", "-m", module]
        try:
            process = await in_daemon_thread(
                lambda: subprocess.Popen(  # noqa: S603 - the same interpreter
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
                ),
                "candidate-starter",
            )
        except OSError as error:
            raise CandidateError(f"its process cannot be started: {error.strerror}") from error
        candidate = cls(process)
        candidate._send(json.dumps(to_json(config), default=str).encode())
        return candidate

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def receive(self, kind: type[R], timeout_s: float) -> R:
        """Returns the next line that it sends.

        Raises:
            CandidateError: It has ended, or sends nothing in time.
        """
        line = await self._receive_line(timeout_s)
        # In a thread: the matrix of a head of many labels would hold up the event loop.
        found: R = await asyncio.to_thread(lambda: from_json(kind, json.loads(line)))
        return found

    async def request(self, kind: type[R]) -> R:
        """Sends a request and returns the answer.

        While an earlier request has no answer, because the process has no processor time, its answer is waited for
        instead. So at most one request is in the pipe: a full one would block the event loop.

        Raises:
            CandidateError: As ``receive``.
        """
        async with self._lock:
            while not self._responses.empty():
                # It came too late for its caller, and is old.
                self._responses.get_nowait()
            if not self._is_asked:
                self._is_asked = True
                self._send(b"{}")
            return await self.receive(kind, RESPONSE_TIMEOUT_S)

    async def stop(self) -> None:
        """Ends the process."""
        self._stopping = True
        self._close_input()
        try:
            await asyncio.wait_for(asyncio.shield(self.ended), _END_TIMEOUT_S)
        except TimeoutError:
            self.kill()
            await asyncio.shield(self.ended)

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()

    def on_end(self, call: Callable[[int], object]) -> None:
        """Calls with the exit code when the process has ended by itself."""

        def on_done(ended: asyncio.Future[int]) -> None:
            if not self._stopping and not ended.cancelled():
                call(ended.result())

        self.ended.add_done_callback(on_done)

    async def _receive_line(self, timeout_s: float) -> bytes:
        line = asyncio.ensure_future(self._responses.get())
        try:
            await asyncio.wait({cast(Any, line), self.ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if line.done() or not self._responses.empty():
                return await line
        finally:
            # Otherwise it would take the next line.
            line.cancel()
        if self.ended.done():
            raise CandidateError(f"its process has ended with code {self.ended.result()}; see the log")
        raise CandidateError(f"its process has not answered within {timeout_s:g} s: no compute is left for it")

    def _send(self, line: bytes) -> None:
        # A process that has ended has closed its end of the pipe. Two lines may wait there, and fit into its buffer.
        with contextlib.suppress(OSError, ValueError):
            self._input.write(line + b"\n")
            self._input.flush()

    def _close_input(self) -> None:
        # What it has not read is of no use to a process that has ended.
        with contextlib.suppress(OSError):
            self._input.close()

    def _read_lines(self) -> None:
        """Thread: passes on what the process sends, then its exit code."""
        # The loop is closed where the server has ended before.
        with contextlib.suppress(RuntimeError):
            with cast(BinaryIO, self._process.stdout) as output:
                for line in output:
                    self._loop.call_soon_threadsafe(self._on_line, line)
            code = self._process.wait()
            self._loop.call_soon_threadsafe(self._set_ended, code)

    def _on_line(self, line: bytes) -> None:
        self._is_asked = False
        self._responses.put_nowait(line)

    def _set_ended(self, code: int) -> None:
        self._close_input()
        if not self.ended.done():
            self.ended.set_result(code)
