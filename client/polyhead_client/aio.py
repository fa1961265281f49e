"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeAlias

import grpc.aio
from polyhead.v1 import inference_service_pb2 as service_pb2
from polyhead.v1 import inference_service_pb2_grpc as service_grpc
from polyhead.v1 import item_pb2

from . import conversion
from .calls import DEFAULT_DEADLINE_S, DEFAULT_TARGET, Analysis, StreamCalls, StreamMethod
from .channel import OPTIONS
from .conversion import Encoding, StreamRequest, Task, TruncationPolicy
from .errors import UnavailableError, translated
from .flow import Flow, Text
from .model_info import ModelInfo
from .results import Answer

# A plain iterable is read on the event loop: where its next text may keep one waiting, make it an async one.
Texts: TypeAlias = Iterable[Text] | AsyncIterable[Text]


class AsyncClient(StreamCalls[Texts, AsyncIterator[Answer]]):
    """A connection to a server, for one event loop.

    Use it as a context manager, or ``close`` it::

        async with AsyncClient("127.0.0.1:50051") as client:
            async for answer in client.stream(lines):
                print(answer.item_id, answer.unwrap().sentiment)

    To leave the loop early, wrap the answers in ``contextlib.aclosing``: that cancels the call at once, not only when
    the iterator is collected as garbage.
    """

    def __init__(self, target: str = DEFAULT_TARGET, *, wait_for_ready: bool = False) -> None:
        """Connects when it is first used. Arguments as for ``Client``."""
        self._wait_for_ready = wait_for_ready
        self._channel = grpc.aio.insecure_channel(target, OPTIONS)
        self._stub = service_grpc.InferenceServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls that are running end with UnavailableError."""
        self._closed = True
        await self._channel.close()

    async def analyze(
        self,
        texts: Iterable[Text],
        *,
        tasks: Iterable[Task] = (),
        truncation: TruncationPolicy = "truncate",
        include_timings: bool = False,
        encoding: Encoding = "float32",
        dimensions: int | None = None,
        deadline_s: float | None = DEFAULT_DEADLINE_S,
    ) -> list[Answer]:
        """Answers a batch of texts, in order. Arguments, result and errors as for ``Client.analyze``."""
        self._require_open()
        analysis = Analysis(
            texts,
            tasks=tasks,
            truncation=truncation,
            include_timings=include_timings,
            encoding=encoding,
            dimensions=dimensions,
            deadline_s=deadline_s,
        )
        for request in analysis.requests():
            with _translated():
                response = await self._stub.Analyze(
                    request, timeout=analysis.left_s(), wait_for_ready=self._wait_for_ready
                )
            analysis.accept(response)
        return analysis.answers()

    async def info(self, *, deadline_s: float | None = DEFAULT_DEADLINE_S) -> ModelInfo:
        """Describes the model behind the server. Arguments and errors as for ``Client.info``."""
        self._require_open()
        with _translated():
            response = await self._stub.GetModelInfo(
                service_pb2.GetModelInfoRequest(), timeout=deadline_s, wait_for_ready=self._wait_for_ready
            )
        return conversion.model_info_of(response)

    def _stream(
        self, method: StreamMethod, template: StreamRequest, flow: Flow, texts: Texts, deadline_s: float | None
    ) -> AsyncIterator[Answer]:
        rpc = getattr(self._stub, method)

        def start(requests: AsyncIterator[StreamRequest]) -> Any:
            self._require_open()
            return rpc(requests, timeout=deadline_s, wait_for_ready=self._wait_for_ready)

        return _Stream(flow, template).run(start, texts)


class _Stream:
    """One streaming call.

    ::

        texts --reader task--> flow --gRPC's task--> server --receiver task--> flow --caller's task--> answers
    """

    def __init__(self, flow: Flow, template: StreamRequest) -> None:
        self._flow = flow
        self._template = template
        self._changed = asyncio.Condition()

    async def run(self, start: Callable[[AsyncIterator[StreamRequest]], Any], texts: Texts) -> AsyncIterator[Answer]:
        with _translated():
            call = start(self._requests())
        tasks = [asyncio.create_task(self._read(texts)), asyncio.create_task(self._receive(call))]
        try:
            while answers := await self._collect():
                for answer in answers:
                    yield answer
            if self._flow.error is not None:
                raise self._flow.error
        finally:
            call.cancel()
            for task in tasks:
                task.cancel()
            await self._close()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, texts: Texts) -> None:
        try:
            async for text in _each(texts):
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

    async def _requests(self) -> AsyncIterator[StreamRequest]:
        while items := await self._take():
            yield conversion.with_items(self._template, items)

    async def _receive(self, call: Any) -> None:
        try:
            with _translated():
                async for response in call:
                    answers = conversion.answers_of(response)
                    async with self._changed:
                        self._flow.accept(answers)
                        self._changed.notify_all()
            async with self._changed:
                self._flow.end_answers()
                self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  the edge of a task: the caller raises it
            await self._fail(error)

    async def _take(self) -> list[item_pb2.Item]:
        async with self._changed:
            await self._changed.wait_for(self._flow.may_take)
            return self._flow.take()

    async def _collect(self) -> list[Answer]:
        async with self._changed:
            await self._changed.wait_for(self._flow.may_collect)
            answers = self._flow.collect()
            self._changed.notify_all()
            return answers

    async def _close(self) -> None:
        async with self._changed:
            self._flow.close()
            self._changed.notify_all()

    async def _fail(self, error: BaseException) -> None:
        async with self._changed:
            self._flow.fail(error)
            self._changed.notify_all()


@contextmanager
def _translated() -> Iterator[None]:
    """As ``translated``; and a call that ends because its channel is closed does not look like a cancelled task."""
    try:
        with translated():
            yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise UnavailableError("CANCELLED", "the client was closed during the call") from error


async def _each(texts: Texts) -> AsyncIterator[Text]:
    if isinstance(texts, AsyncIterable):
        async for text in texts:
            yield text
    else:
        for text in texts:
            yield text
