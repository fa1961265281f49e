"""The RPCs: messages in, answers out. Everything in between is the pipeline's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import aio
from polyhead.v1 import inference_service_pb2, item_pb2

from polyhead_server.errors import (
    DrainingError,
    FingerprintMismatchError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
)
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import ALL_TASKS, Flow, InvalidItem, Message, Task
from polyhead_server.observability.metrics import Metrics
from polyhead_server.settings import Settings

from .model_info import describe
from .request_decoder import RequestDecoder
from .response_buffer import Pending, Window
from .response_encoder import ResponseEncoder

NAME = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name

# A response is written when it has this many bytes, well below the 4 MiB that clients accept unless told otherwise.
_RESPONSE_BYTES = 2**20

_STREAMS: dict[str, frozenset[Task]] = {
    "StreamAnalyze": ALL_TASKS,
    "StreamEmbed": frozenset({Task.EMBEDDING}),
    "StreamClassify": frozenset({Task.CLASSIFICATION}),
    "StreamSentiment": frozenset({Task.SENTIMENT}),
}


@dataclass(frozen=True)
class Served:
    """A model that answers, and what writes its answers."""

    pipeline: Pipeline
    writer: ResponseEncoder


class InferenceService:
    """``polyhead.v1.InferenceService`` over one pipeline, which comes when the model is ready and may be replaced."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.max_items = settings.max_items_per_message
        self._settings = settings
        self._metrics = metrics
        self._served: Served | None = None
        self._readers: set[asyncio.Task[None]] = set()
        self._draining = False
        self._since = time.monotonic()
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def max_text_bytes(self) -> int:
        """Bytes of a text that are looked at: a code point has at most 4, and one more says that there are more."""
        if not self.pipeline:
            return 0
        return 4 * (self.pipeline.model.source.manifest.max_tokens * self._settings.max_characters_per_token + 1)

    @property
    def pipeline(self) -> Pipeline | None:
        """What answers now; None before the model is ready."""
        return self._served.pipeline if self._served else None

    def serve(self, pipeline: Pipeline) -> None:
        """Answers messages with this pipeline from now on; those that came before keep theirs."""
        model = pipeline.model
        self._served = Served(pipeline, ResponseEncoder(model.source.manifest, model.fingerprints))

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
        with self._call() as served:
            message = _checked(message, served.writer)
            futures = await served.pipeline.submit(message, Flow(unary=True), _deadline(context))
            # Whoever is cancelled here cancels the futures, which takes their items out of the queue.
            outcomes = [await futures[0]] if len(futures) == 1 else await asyncio.gather(*futures)
            self._metrics.answered(outcomes)
            refusals = [outcome for outcome in outcomes if isinstance(outcome, OverloadedError)]
            if refusals and len(refusals) == len(outcomes):
                # Nothing was taken in, so gRPC's own way to say so holds: it tells clients when to try again.
                raise refusals[0]
            pairs = zip(message.items, outcomes, strict=True)
            return inference_service_pb2.AnalyzeResponse(
                answers=[served.writer.answer(item.item_id, outcome, message.options) for item, outcome in pairs]
            )

    async def stream(
        self, response_type: Callable[..., Any], messages: AsyncIterator[Message], context: _Context
    ) -> None:
        """A bidirectional stream: one task reads and submits, this one writes whatever is ready."""
        with self._call():
            window = Window(self._settings.stream_window)
            reader = asyncio.create_task(self._read(messages, window, _deadline(context)))
            # A task that is cancelled before its first step never runs, and would leave the window open.
            reader.add_done_callback(lambda task: window.close(DrainingError()) if task.cancelled() else None)
            self._readers.add(reader)
            try:
                while pendings := await window.ready():
                    self._metrics.answered(one.future.result() for one in pendings)
                    answers = (one.writer.answer(one.item_id, one.future.result(), one.options) for one in pendings)
                    for chunk in _chunks(answers):
                        await context.write(response_type(answers=chunk))
            finally:
                self._readers.discard(reader)
                reader.cancel()
                window.cancel()

    async def get_model_info(self, _: Any, __: _Context) -> Any:
        """Describes the model."""
        with self._call() as served:
            return inference_service_pb2.GetModelInfoResponse(
                model=describe(served.pipeline.model, served.writer, self._settings)
            )

    def stats(self) -> dict[str, Any]:
        """What the server is doing now, by the names of ``polyhead.v1.WorkerStats``; seconds for durations."""
        pipeline, value = self._require_served().pipeline, self._metrics.value
        return {
            "process_id": os.getpid(),
            "model_id": pipeline.model.source.model_id,
            "serving": not self._draining,
            "up_time": time.monotonic() - self._since,
            "calls": self._calls,
            "queued_items": pipeline.scheduler.accounting.waiting_items,
            "queued_tokens": pipeline.scheduler.accounting.waiting_tokens,
            "expected_wait": pipeline.admission.expected_wait_s(),
            "items_total": int(value("polyhead_items_total")),
            "tokens_total": int(value("polyhead_tokens_total")),
            "padding_total": int(value("polyhead_padding_tokens_total")),
            "passes_total": int(value("polyhead_batch_duration_seconds_count")),
            "compute_total": value("polyhead_batch_duration_seconds_sum"),
            "refused_total": self._metrics.refusals(),
            "compute_threads": pipeline.threads,
        }

    @contextlib.contextmanager
    def _call(self) -> Iterator[Served]:
        """A call of ours, for as long as it lasts."""
        if self._draining:
            raise DrainingError
        served = self._require_served()
        self._count_call(1)
        try:
            yield served
        finally:
            self._count_call(-1)

    def _count_call(self, change: int) -> None:
        self._calls += change
        self._metrics.calls(self._calls)
        if self._calls:
            self._idle.clear()
        else:
            self._idle.set()

    def _require_served(self) -> Served:
        if self._served is None:
            raise NotReadyError
        return self._served

    async def _room(self, served: Served | None, call: Flow) -> tuple[Served, Flow]:
        """Waits until the pipeline has room for a stream's message; returns the one that has, and the stream there."""
        while True:
            if served is not (now := self._require_served()):
                # A queue counts what waits of a call: the old one goes on with its own count.
                served, call = now, Flow()
            await served.pipeline.admission.wait_for_capacity(call)
            # Another may have taken over meanwhile.
            if served is self._served:
                return served, call

    async def _read(self, messages: AsyncIterator[Message], window: Window, deadline: float | None) -> None:
        """Submits the stream's items until the client has no more, or the server drains."""
        first, served, call = True, None, Flow()
        try:
            async for message in messages:
                if first and message.in_order is not None:
                    window.in_order = message.in_order
                first, arrived_ns = False, time.monotonic_ns()
                await window.room()
                served, call = await self._room(served, call)
                accepted = _checked(_require_order(message, window.in_order), served.writer)
                futures = await served.pipeline.submit(accepted, call, deadline, blocking=True, arrived_ns=arrived_ns)
                for item, future in zip(accepted.items, futures, strict=True):
                    window.add(Pending(item.item_id, accepted.options, served.writer, future))
            window.close()
        except Exception as error:  # noqa: BLE001 - raised again by the writer, which is the RPC
            window.close(error)


_Context = aio.ServicerContext[Any, Any]


def handler(service: InferenceService) -> grpc.GenericRpcHandler:
    """All RPCs of the service, with deserializers that answer what they cannot read instead of ending the call."""
    pb2, max_items = inference_service_pb2, service.max_items
    handlers: dict[str, Any] = {
        "Analyze": grpc.unary_unary_rpc_method_handler(
            service.analyze,
            RequestDecoder(pb2.AnalyzeRequest, max_items, max_text_bytes=service.max_text_bytes),
            pb2.AnalyzeResponse.SerializeToString,
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
            RequestDecoder(getattr(pb2, f"{name}Request"), max_items, tasks, service.max_text_bytes),
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
    return _refused(message, InvalidRequestError("STREAM_ORDER_CHANGED", problem))


def _checked(message: Message, writer: ResponseEncoder) -> Message:
    """The message, refused where this model is not what it asks for."""
    options = message.options
    if options.dimensions > writer.dimensions:
        problem = f"the embedding has {writer.dimensions} dimensions, not {options.dimensions}"
        return _refused(message, InvalidRequestError("TOO_MANY_DIMENSIONS", problem))
    if options.expected_space or options.expected_heads:
        actual = writer.fingerprints
        heads = {head.head: head.fingerprint for head in actual.heads}
        expected = [("embedding_space", options.expected_space, actual.embedding_space)]
        expected += [(name, fingerprint, heads.get(name, "")) for name, fingerprint in options.expected_heads]
        for what, wanted, got in expected:
            if wanted not in {"", got}:
                return _refused(message, FingerprintMismatchError(what, wanted, got))
    return message


def _refused(message: Message, error: InvalidRequestError) -> Message:
    """A message whose items are all answered with an error."""
    return Message(tuple(InvalidItem(item.item_id, error) for item in message.items), message.options)


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
