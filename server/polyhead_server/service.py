"""The RPCs: messages in, answers out. Everything in between is the pipeline's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import metadata
from typing import Any

import grpc
from grpc import aio
from polyhead.v1 import inference_service_pb2, item_pb2, model_pb2
from polyhead_export import bundle

from .errors import DrainingError, InvalidRequestError, NotReadyError
from .items import ALL_TASKS, BadItem, Message, Task
from .pipeline import Pipeline
from .settings import Settings
from .window import Pending, Window
from .wire_in import Reader
from .wire_out import Writer

NAME = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name

# A response is written when it has this many bytes, well below the 4 MiB that clients accept unless told otherwise.
_RESPONSE_BYTES = 2**20

_STREAMS: dict[str, frozenset[Task]] = {
    "StreamAnalyze": ALL_TASKS,
    "StreamEmbed": frozenset({Task.EMBEDDING}),
    "StreamClassify": frozenset({Task.CLASSIFICATION}),
    "StreamSentiment": frozenset({Task.SENTIMENT}),
}


class InferenceService:
    """``polyhead.v1.InferenceService`` over one pipeline, which comes when the model is ready."""

    def __init__(self, settings: Settings) -> None:
        self.max_items = settings.max_items_per_message
        self._settings = settings
        self._pipeline: Pipeline | None = None
        self._writer: Writer | None = None
        self._readers: set[asyncio.Task[None]] = set()
        self._draining = False
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def serve(self, pipeline: Pipeline) -> None:
        """Answers with this pipeline from now on."""
        model = pipeline.model
        self._pipeline, self._writer = pipeline, Writer(model.source.manifest, model.fingerprints)

    def drain(self) -> None:
        """Takes nothing in any more: streams end with UNAVAILABLE after their last accepted item was answered."""
        self._draining = True
        for reader in self._readers:
            reader.cancel()

    async def idle(self, timeout_s: float) -> bool:
        """Waits until no call of ours is running, at most so long; returns whether that came true."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def analyze(self, message: Message, context: _Context) -> Any:
        """The unary call: every item of one message."""
        with self._call() as (pipeline, writer):
            message = _require_dimensions(message, writer.dimensions)
            futures = await pipeline.submit(message, _deadline(context))
            # Cancelling gather cancels the futures, which takes their items out of the queue.
            pairs = zip(message.items, await asyncio.gather(*futures), strict=True)
            return inference_service_pb2.AnalyzeResponse(
                answers=[writer.answer(item.item_id, outcome, message.wishes) for item, outcome in pairs]
            )

    async def stream(
        self, response_type: Callable[..., Any], messages: AsyncIterator[Message], context: _Context
    ) -> None:
        """A bidirectional stream: one task reads and submits, this one writes whatever is ready."""
        with self._call() as (pipeline, writer):
            window = Window(self._settings.stream_window)
            reader = asyncio.create_task(self._read(pipeline, writer, messages, window, _deadline(context)))
            # A task that is cancelled before its first step never runs, and would leave the window open.
            reader.add_done_callback(lambda task: window.close(DrainingError()) if task.cancelled() else None)
            self._readers.add(reader)
            try:
                while pendings := await window.ready():
                    answers = (writer.answer(one.item_id, one.future.result(), one.wishes) for one in pendings)
                    for chunk in _chunks(answers):
                        await context.write(response_type(answers=chunk))
            finally:
                self._readers.discard(reader)
                reader.cancel()
                window.cancel()

    async def get_model_info(self, _: Any, __: _Context) -> Any:
        """Describes the model."""
        with self._call() as (pipeline, writer):
            return inference_service_pb2.GetModelInfoResponse(model=describe(pipeline, writer, self._settings))

    @contextlib.contextmanager
    def _call(self) -> Iterator[tuple[Pipeline, Writer]]:
        """A call of ours, for as long as it lasts."""
        if self._draining:
            raise DrainingError
        if self._pipeline is None or self._writer is None:
            raise NotReadyError
        self._calls += 1
        self._idle.clear()
        try:
            yield self._pipeline, self._writer
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def _read(
        self,
        pipeline: Pipeline,
        writer: Writer,
        messages: AsyncIterator[Message],
        window: Window,
        deadline: float | None,
    ) -> None:
        """Submits the stream's items until the client has no more, or the server drains."""
        first = True
        try:
            async for message in messages:
                if first and message.in_order is not None:
                    window.in_order = message.in_order
                first = False
                accepted = _require_dimensions(_require_order(message, window.in_order), writer.dimensions)
                await window.room()
                await pipeline.room()
                futures = await pipeline.submit(accepted, deadline, may_refuse=False)
                for item, future in zip(accepted.items, futures, strict=True):
                    window.add(Pending(item.item_id, accepted.wishes, future))
            window.close()
        except Exception as error:  # noqa: BLE001 - raised again by the writer, which is the RPC
            window.close(error)


_Context = aio.ServicerContext[Any, Any]


def handler(service: InferenceService) -> grpc.GenericRpcHandler:
    """All RPCs of the service, with deserializers that answer what they cannot read instead of ending the call."""
    pb2, max_items = inference_service_pb2, service.max_items
    handlers: dict[str, Any] = {
        "Analyze": grpc.unary_unary_rpc_method_handler(
            service.analyze, Reader(pb2.AnalyzeRequest, max_items), pb2.AnalyzeResponse.SerializeToString
        ),
        "GetModelInfo": grpc.unary_unary_rpc_method_handler(
            service.get_model_info,
            # It has no fields, and a deserializer that raises would show its own text to the client.
            lambda _: None,
            pb2.GetModelInfoResponse.SerializeToString,
        ),
    }
    for name, tasks in _STREAMS.items():
        response_type = getattr(pb2, f"{name}Response")
        handlers[name] = grpc.stream_stream_rpc_method_handler(
            _stream_method(service, response_type),
            Reader(getattr(pb2, f"{name}Request"), max_items, tasks),
            response_type.SerializeToString,
        )
    return grpc.method_handlers_generic_handler(NAME, handlers)


def _stream_method(service: InferenceService, response_type: Callable[..., Any]) -> Callable[..., Any]:
    async def method(messages: AsyncIterator[Message], context: _Context) -> None:
        await service.stream(response_type, messages, context)

    return method


def _deadline(context: _Context) -> float | None:
    left_s = context.time_remaining()
    return None if left_s is None else time.monotonic() + left_s


def _require_order(message: Message, in_order: bool) -> Message:
    if message.in_order in {None, in_order}:
        return message
    problem = "the order of the answers is fixed by the first message of the stream"
    return _refused(message, InvalidRequestError("ORDER_CHANGED", problem))


def _require_dimensions(message: Message, dimensions: int) -> Message:
    if message.wishes.dimensions <= dimensions:
        return message
    problem = f"the embedding has {dimensions} dimensions, not {message.wishes.dimensions}"
    return _refused(message, InvalidRequestError("TOO_MANY_DIMENSIONS", problem))


def _refused(message: Message, error: InvalidRequestError) -> Message:
    """A message whose items are all answered with an error."""
    return Message(tuple(BadItem(item.item_id, error) for item in message.items), message.wishes)


def _chunks(answers: Iterator[item_pb2.Answer]) -> Iterator[list[item_pb2.Answer]]:
    """Answers grouped into responses of about ``_RESPONSE_BYTES``."""
    chunk: list[item_pb2.Answer] = []
    size = 0
    for answer in answers:
        chunk.append(answer)
        size += answer.ByteSize()
        if size >= _RESPONSE_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def describe(pipeline: Pipeline, writer: Writer, settings: Settings) -> model_pb2.ModelInfo:
    """What ``GetModelInfo`` answers."""
    model = pipeline.model
    manifest, runtime = model.source.manifest, model.engine.runtime
    return model_pb2.ModelInfo(
        model_id=model.source.model_id,
        heads=[
            model_pb2.HeadInfo(
                name=head.name,
                kind=model_pb2.HeadKind.Value(f"HEAD_KIND_{head.kind.upper()}"),
                labels=head.labels,
                temperature=head.temperature,
                threshold=head.threshold,
            )
            for head in manifest.heads
        ],
        embedding=model_pb2.EmbeddingInfo(
            dimensions=manifest.embedding.dimensions,
            pooling=manifest.embedding.pooling,
            normalized=manifest.embedding.normalized,
        ),
        limits=model_pb2.Limits(
            max_tokens=manifest.max_tokens,
            max_characters=manifest.max_tokens * settings.max_characters_per_token,
            max_items_per_message=settings.max_items_per_message,
            max_message_bytes=settings.max_message_bytes,
        ),
        fingerprints=writer.fingerprints,
        runtime=model_pb2.RuntimeInfo(
            engine=runtime.engine,
            device=runtime.device,
            variant=runtime.variant,
            fallback_reasons=model.fallback_reasons,
        ),
        bundle_format_version=bundle.FORMAT_VERSION,
        server_version=metadata.version("polyhead"),
    )
