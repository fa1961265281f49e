"""One streaming call, over as many gRPC calls as it takes, for both clients.

::

    texts --reader--> state --gRPC--> server --receiver--> state --caller--> answers

The reader and the receiver are threads or tasks of the runtime. A condition guards the state, and everything that
changes it notifies the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from polyhead_client.core.stream_state import StreamState
from polyhead_client.transport.pool import ConnectionPool
from polyhead_client.transport.runtime import Runtime, Worker

from . import conversion
from .conversion import StreamRequest
from .errors import PolyheadError
from .types import Answer


class Stream:
    """A streaming call: ``start`` it, take ``next_answers`` until there are none, and ``stop`` it in any case."""

    def __init__(
        self,
        runtime: Runtime,
        state: StreamState,
        template: StreamRequest,
        pool: ConnectionPool[Any],
        *,
        start_call: Callable[[Any, Any], Any],
        explain: Callable[[PolyheadError, bool], Awaitable[PolyheadError]],
    ) -> None:
        """Prepares the call.

        Args:
            runtime: Threads or asyncio.
            state: Items and answers of the call, empty.
            template: Request message without items.
            pool: Connections to use.
            start_call: Starts a gRPC call, given a stub and the request iterator.
            explain: Returns the error to raise for that of a gRPC call, and whether the server has responded.
        """
        self._runtime = runtime
        self._state = state
        self._template = template
        self._pool = pool
        self._start_call = start_call
        self._explain = explain
        self._responded = False
        self._avoid: set[int] = set()  # the connection of the last gRPC call
        self._call: Any = None
        self._changed = runtime.condition()
        self._workers: list[Worker] = []
        self._stopped = False

    def start(self, texts: Any) -> None:
        """Starts to read ``texts`` and to receive answers."""
        self._workers.append(self._runtime.spawn("polyhead-reader", self._read, texts))
        self._workers.append(self._runtime.spawn("polyhead-receiver", self._receive))

    async def next_answers(self) -> list[Answer]:
        """Waits for answers and returns all that are ready; empty at the end of the call.

        Raises:
            BaseException: The error that ended the call early: a PolyheadError, or whatever the input raised.
        """
        async with self._changed:
            await self._changed.wait_until(self._state.can_collect)
            answers = self._state.collect()
            self._changed.notify_all()
        error = self._state.error
        if not answers and error is not None:
            if isinstance(error, PolyheadError):
                raise await self._explain(error, self._responded) from error.__cause__
            raise error
        return answers

    async def stop(self) -> None:
        """Ends the call, early or not, and cancels what is still running; does nothing the second time."""
        if self._stopped:
            return
        self._stopped = True
        for worker in self._workers:
            worker.cancel()
        async with self._changed:
            self._state.close()
            self._changed.notify_all()
        if self._call is not None:
            self._call.cancel()
        await self._runtime.join(self._workers)

    async def fail(self, error: BaseException) -> None:
        """Ends the call with ``error``, unless it has ended already."""
        async with self._changed:
            self._state.fail(error)
            self._changed.notify_all()

    async def _read(self, texts: Any) -> None:
        try:
            async with aclosing(self._runtime.texts(texts)) as source:
                async for text in source:
                    async with self._changed:
                        if not self._state.can_offer():
                            await self._changed.wait_until(self._state.can_offer)
                        if self._state.closed:
                            return
                        self._state.offer(text)
                        self._changed.notify_all()
            async with self._changed:
                self._state.end_input()
                self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  boundary of a thread or task: the caller raises it
            await self.fail(error)

    async def _receive(self) -> None:
        try:
            while not self._state.closed:
                try:
                    with self._pool.acquire(self._avoid) as lease, self._runtime.map_errors():
                        self._avoid = {lease.index}
                        await self._run_call(lease.stub)
                except PolyheadError as error:
                    await self._wait_for_next_call(error)
        except BaseException as error:  # noqa: BLE001  boundary of a thread or task: the caller raises it
            await self.fail(error)

    async def _run_call(self, stub: Any) -> None:
        """Makes one gRPC call and receives its answers."""
        async with self._changed:
            number = self._state.begin_call()
            self._changed.notify_all()
        if self._state.closed:
            return

        async def next_request() -> StreamRequest | None:
            items = await self._take(number)
            return conversion.with_items(self._template, items) if items else None

        self._call = self._start_call(stub, self._runtime.request_iterator(next_request))
        try:
            # If the state was closed in the meantime, ``stop`` may have seen no call to cancel.
            if not self._state.closed:
                await self._receive_answers()
        finally:
            self._call.cancel()

    async def _receive_answers(self) -> None:
        async for response in self._runtime.responses(self._call):
            self._responded = True
            answers = conversion.answers_of(response, self._template)
            async with self._changed:
                self._state.on_answers(answers)
                self._changed.notify_all()
        async with self._changed:
            self._state.on_stream_end()
            self._changed.notify_all()

    async def _take(self, call: int) -> list[Any]:
        """Waits for the items of the next message; empty when this gRPC call has nothing more to send."""
        async with self._changed:
            while not self._state.can_take(call):
                await self._changed.wait_once(self._state.wait_s())
            return self._state.take(call)

    async def _wait_for_next_call(self, error: PolyheadError) -> None:
        """Waits until the next gRPC call may begin and has work to do, unless ``error`` is final."""
        async with self._changed:
            delay_s = self._state.on_stream_error(error)
            self._changed.notify_all()
            if delay_s is not None:
                await self._changed.wait_until(lambda: self._state.closed, delay_s)
                await self._changed.wait_until(self._state.can_start_call, self._state.deadline.left_s())
