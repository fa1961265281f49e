"""The client for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, suppress
from typing import Any, Self, TypeAlias

import grpc
import grpc.aio
from polyhead.v1 import inference_service_pb2 as service_pb2
from polyhead.v1 import item_pb2

from polyhead_client.core.retry import Retries
from polyhead_client.core.stream_state import StreamState, Text
from polyhead_client.transport.pool import Connections

from . import conversion
from ._base import Calls, StreamMethod, UnaryMethod, closed_meanwhile
from .batch import DEFAULT_DEADLINE_S, Attempts, BatchCall
from .conversion import Encoding, StreamRequest, Task, TruncationPolicy
from .errors import PolyheadError, UnavailableError, map_grpc_errors
from .model_info import ModelInfo
from .types import Answer, Fingerprints

# A plain iterable is read on the event loop: where its next text may keep one waiting, make it an async one.
Texts: TypeAlias = Iterable[Text] | AsyncIterable[Text]


class AsyncClient(Calls[Texts, AsyncGenerator[Answer, None]]):
    """Connections to a server, or to several that serve the same model, for one event loop.

    Use it as a context manager, or ``close`` it::

        async with AsyncClient("127.0.0.1:50051") as client:
            async for answer in client.stream(lines):
                print(answer.item_id, answer.unwrap().sentiment)

    To leave the loop early, wrap the answers in ``contextlib.aclosing``: that cancels the call at once, not only when
    the iterator is collected as garbage.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; calls that are running end with UnavailableError."""
        self._shut()
        for end in list(self._streams):
            await end()
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def analyze(
        self,
        texts: Iterable[Text],
        *,
        tasks: Iterable[Task] = (),
        truncation: TruncationPolicy = "truncate",
        include_timings: bool = False,
        encoding: Encoding = "float32",
        dimensions: int | None = None,
        expected_fingerprints: Fingerprints | ModelInfo | None = None,
        deadline_s: float | None = DEFAULT_DEADLINE_S,
    ) -> list[Answer]:
        """Answers a batch of texts, in order. Arguments, result and errors as for ``Client.analyze``."""
        retries = self._retries(deadline_s)
        analysis = BatchCall(
            texts,
            retries,
            self._limits,
            tasks=tasks,
            truncation=truncation,
            include_timings=include_timings,
            encoding=encoding,
            dimensions=dimensions,
            expected_fingerprints=expected_fingerprints,
        )
        self._require_open()
        while (wait_s := analysis.wait_s()) is not None:
            await self._wait(wait_s)
            for request in analysis.requests():
                try:
                    response = await self._ask("Analyze", request, retries)
                except PolyheadError as error:
                    analysis.fail(error)
                else:
                    analysis.accept(response)
        return analysis.answers()

    async def info(self, *, deadline_s: float | None = DEFAULT_DEADLINE_S) -> ModelInfo:
        """Describes the model behind the server. Arguments and errors as for ``Client.info``."""
        self._require_open()
        response = await self._ask("GetModelInfo", service_pb2.GetModelInfoRequest(), self._retries(deadline_s))
        return conversion.model_info_of(response)

    def _event(self) -> asyncio.Event:
        return asyncio.Event()

    def _channel(
        self, target: str, options: list[tuple[str, Any]], credentials: grpc.ChannelCredentials | None
    ) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(target, options)
        return grpc.aio.secure_channel(target, credentials, options)

    async def _ask(self, method: UnaryMethod, request: Any, retries: Retries) -> Any:
        """The response to a unary call, after as many attempts as it takes."""
        attempts = Attempts(retries)
        while True:
            hedge_s = self._hedging.delay_s()
            began = time.monotonic()
            try:
                if hedge_s is None:
                    response = await self._attempt(method, request, attempts)
                else:
                    response = await self._race(method, request, attempts, hedge_s)
            except PolyheadError as error:
                await self._wait(attempts.failed(error))
            else:
                attempts.succeeded()
                self._hedging.observe(time.monotonic() - began)
                return response

    async def _wait(self, seconds: float) -> None:
        """Waits, but no longer than until the client is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        self._require_still_open()

    async def _attempt(self, method: UnaryMethod, request: Any, attempts: Attempts) -> Any:
        self._require_still_open()
        with self._connections.lease(attempts.tried) as lease, _translated():
            attempts.tried.add(lease.number)
            return await getattr(lease.stub, method)(request, **self._options(attempts.deadline))

    async def _race(self, method: UnaryMethod, request: Any, attempts: Attempts, hedge_s: float) -> Any:
        """The first response of two calls, the second of which begins after ``hedge_s``, if it may."""
        calls = [asyncio.create_task(self._attempt(method, request, attempts))]
        try:
            ended, _ = await asyncio.wait(calls, timeout=hedge_s)
            if not ended and self._hedging.spend():
                calls.append(asyncio.create_task(self._attempt(method, request, attempts)))
            for call in asyncio.as_completed(calls):
                try:
                    return await call
                except PolyheadError as error:
                    failure = error
            raise failure
        finally:
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    def _stream(
        self, method: StreamMethod, template: StreamRequest, flow: StreamState, texts: Texts
    ) -> AsyncGenerator[Answer, None]:
        def begin(stub: Any, requests: AsyncIterator[StreamRequest]) -> Any:
            self._require_still_open()
            return getattr(stub, method)(requests, **self._options(flow.deadline))

        return _Stream(flow, template, self._connections, begin, self._running).run(texts)


class _Stream:
    """One streaming call, over as many gRPC calls as it takes.

    ::

        texts --reader task--> flow --gRPC's task--> server --receiver task--> flow --caller's task--> answers
    """

    def __init__(
        self,
        flow: StreamState,
        template: StreamRequest,
        connections: Connections[Any],
        begin: Callable[[Any, AsyncIterator[StreamRequest]], Any],
        running: Callable[[Callable[[], Coroutine[Any, Any, None]]], AbstractContextManager[None]],
    ) -> None:
        self._flow = flow
        self._template = template
        self._connections = connections
        self._begin = begin
        self._running = running
        self._broken: set[int] = set()  # the connection of the last call
        self._changed = asyncio.Condition()

    async def run(self, texts: Texts) -> AsyncGenerator[Answer, None]:
        with self._running(self._client_closed):
            tasks = [asyncio.create_task(self._read(texts)), asyncio.create_task(self._receive())]
            try:
                while answers := await self._collect():
                    for answer in answers:
                        yield answer
                if self._flow.error is not None:
                    raise self._flow.error
            finally:
                for task in tasks:
                    task.cancel()
                async with self._changed:
                    self._flow.close()
                    self._changed.notify_all()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, texts: Texts) -> None:
        try:
            async with aclosing(_each(texts)) as each:
                async for text in each:
                    async with self._changed:
                        await self._changed.wait_for(self._flow.may_offer)
                        if self._flow.closed:
                            return
                        self._flow.offer(text)
                        self._changed.notify_all()
            async with self._changed:
                self._flow.end_input()
                self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  the edge of a task: the caller raises it
            await self._fail(error)

    async def _receive(self) -> None:
        try:
            while not self._flow.closed:
                try:
                    with self._connections.lease(self._broken) as lease, _translated():
                        self._broken = {lease.number}
                        await self._follow(lease.stub)
                except PolyheadError as error:
                    await self._lose(error)
        except BaseException as error:  # noqa: BLE001  the edge of a task: the caller raises it
            await self._fail(error)

    async def _follow(self, stub: Any) -> None:
        """One gRPC call, to its end."""
        async with self._changed:
            number = self._flow.begin_call()
            self._changed.notify_all()
        if self._flow.closed:
            return
        call = self._begin(stub, self._requests(number))
        try:
            async for response in call:
                answers = conversion.answers_of(response)
                async with self._changed:
                    self._flow.accept(answers)
                    self._changed.notify_all()
            async with self._changed:
                self._flow.end_answers()
                self._changed.notify_all()
        finally:
            call.cancel()

    async def _requests(self, call: int) -> AsyncIterator[StreamRequest]:
        while items := await self._take(call):
            yield conversion.with_items(self._template, items)

    async def _take(self, call: int) -> list[item_pb2.Item]:
        async with self._changed:
            while not self._flow.may_take(call):
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._flow.wait_s()):
                        await self._changed.wait()
            return self._flow.take(call)

    async def _collect(self) -> list[Answer]:
        async with self._changed:
            await self._changed.wait_for(self._flow.may_collect)
            answers = self._flow.collect()
            self._changed.notify_all()
            return answers

    async def _lose(self, error: PolyheadError) -> None:
        """Waits until the next call may begin and has something to do, if there is to be one."""
        async with self._changed:
            delay_s = self._flow.lose(error)
            self._changed.notify_all()
        if delay_s is None:
            return
        await asyncio.sleep(delay_s)  # whoever closes this cancels the task
        async with self._changed:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._flow.deadline.left_s()):
                    await self._changed.wait_for(self._flow.may_begin)

    async def _client_closed(self) -> None:
        await self._fail(closed_meanwhile())

    async def _fail(self, error: BaseException) -> None:
        async with self._changed:
            self._flow.fail(error)
            self._changed.notify_all()


@contextmanager
def _translated() -> Iterator[None]:
    """As ``map_grpc_errors``; and a call that ends with CANCELLED, as when its channel is closed, is no cancelled task."""
    try:
        with map_grpc_errors():
            yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise UnavailableError("CANCELLED", "cancelled by the server, or because the client was closed") from error


async def _each(texts: Texts) -> AsyncGenerator[Text, None]:
    if isinstance(texts, AsyncGenerator):
        # Its own clean-up must not wait for the garbage collector when the stream is left early.
        async with aclosing(texts):
            async for text in texts:
                yield text
    elif isinstance(texts, AsyncIterable):
        async for text in texts:
            yield text
    else:
        for text in texts:
            yield text
