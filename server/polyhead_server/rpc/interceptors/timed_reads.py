"""Reads the messages of unary calls, each within a limited time."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc import aio

from polyhead_server.errors import IncompleteRequestError, RequestTimeoutError

_Context = aio.ServicerContext[Any, Any]


class TimedReads:
    """Reads messages, and gives up those that do not arrive within the time that all of them have.

    One timer serves all reads: as they have the same time, the read that began first expires first. ``asyncio.timeout``
    would start and cancel a timer for every call, which costs it several times as much. Event loop only.
    """

    def __init__(self, timeout_s: float) -> None:
        """Starts without reads.

        Args:
            timeout_s: Seconds in which each message must arrive.
        """
        self._timeout_s = timeout_s
        # The tasks that read, oldest first, with the ``loop.time()`` at which each read expires.
        self._expiries: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, context: _Context) -> Any:
        """Reads the message of a unary call.

        Raises:
            IncompleteRequestError: The client ended its side of the call before a whole message.
            RequestTimeoutError: The message did not arrive in time.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine of gRPC's runs in a task
        cancellations = task.cancelling()
        loop = asyncio.get_running_loop()
        self._expiries[task] = loop.time() + self._timeout_s
        if self._timer is None:
            self._start_timer(loop)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            # The timer has removed the task and cancelled it; the client may have cancelled the call as well.
            if task not in self._expiries and task.uncancel() <= cancellations:
                raise RequestTimeoutError(self._timeout_s) from None
            raise
        finally:
            self._expiries.pop(task, None)
        if message is aio.EOF:
            raise IncompleteRequestError
        return message

    def _start_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        first = next(iter(self._expiries.values()))
        self._timer = loop.call_at(first, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancels the reads whose time is over, and waits for the next one."""
        self._timer = None
        now = loop.time()
        for task in [task for task, expiry in self._expiries.items() if expiry <= now]:
            del self._expiries[task]
            task.cancel()
        if self._expiries:
            self._start_timer(loop)
