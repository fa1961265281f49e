"""The two halves of a bidirectional stream: a reader that submits items and a writer that sends their answers.

::

    request messages -> StreamReader -> pipeline
                              |             |  outcomes, in any order
                              v             v
                           ResponseBuffer -> write_answers -> response messages
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from grpc import aio
from polyhead.v1 import item_pb2

from polyhead_server.errors import InvalidRequestError
from polyhead_server.inference.types import Flow, Message, OutcomeFuture
from polyhead_server.observability.metrics import Metrics

from .response_buffer import PendingAnswer, ResponseBuffer
from .serving_model import ServingModel, reject

# A response is sent once it reaches this size, well below the 4 MiB that gRPC clients accept by default.
_RESPONSE_BYTES = 2**20


class Submitter:
    """Submits the messages of one stream to the model that serves at that moment, as capacity comes."""

    def __init__(self, current: Callable[[], ServingModel], deadline: float | None) -> None:
        """Creates the submitter of one stream.

        Args:
            current: Returns the model that serves now; a reload may change it during the stream.
            deadline: ``time.monotonic()`` second at which the call expires; None for no deadline.
        """
        self._current = current
        self._deadline = deadline
        self._model: ServingModel | None = None
        self._flow = Flow()

    async def submit(
        self, message: Message, arrived_ns: int, deadline: float | None = None
    ) -> tuple[ServingModel, Message, list[OutcomeFuture]]:
        """Waits for capacity and submits a message; returns the model, the checked message and its items' futures.

        Args:
            message: The items.
            arrived_ns: ``time.monotonic_ns()`` of the message's arrival.
            deadline: Deadline of this message, if it is earlier than that of the stream.
        """
        model = await self._wait_for_capacity()
        accepted = model.check(message)
        limits = [one for one in (deadline, self._deadline) if one is not None]
        futures = await model.pipeline.submit(
            accepted, self._flow, min(limits, default=None), blocking=True, arrived_ns=arrived_ns
        )
        return model, accepted, futures

    async def _wait_for_capacity(self) -> ServingModel:
        """Waits until the queue of the serving model accepts another message; returns that model."""
        while True:
            if self._model is not (current := self._current()):
                # Each queue counts a flow's waiting tokens; items in the previous model's queue keep their own flow.
                self._model, self._flow = current, Flow()
            await current.pipeline.admission.wait_for_capacity(self._flow)
            # A reload may have replaced the model during the wait.
            if current is self._current():
                return current


class StreamReader:
    """Reads the messages of one stream and submits their items."""

    def __init__(self, buffer: ResponseBuffer, submitter: Submitter) -> None:
        """Creates the reader of one stream.

        Args:
            buffer: Receives a pending answer for every item.
            submitter: Submits the items.
        """
        self._buffer = buffer
        self._submitter = submitter

    async def run(self, messages: AsyncIterator[Message]) -> None:
        """Submits items until the client half-closes the stream; then closes the buffer, with the error if any."""
        try:
            first = True
            async for message in messages:
                if first and message.in_order is not None:
                    self._buffer.in_order = message.in_order
                first = False
                await self._submit(message)
            self._buffer.close()
        except Exception as error:  # noqa: BLE001 - the writer raises it again, inside the RPC
            self._buffer.close(error)

    async def _submit(self, message: Message) -> None:
        arrived_ns = time.monotonic_ns()
        await self._buffer.wait_for_space()
        model, accepted, futures = await self._submitter.submit(
            _check_order(message, self._buffer.in_order), arrived_ns
        )
        for item, future in zip(accepted.items, futures, strict=True):
            self._buffer.add(PendingAnswer(item.item_id, accepted.options, model.encoder, future))


async def write_answers(
    buffer: ResponseBuffer, response_type: Callable[..., Any], context: aio.ServicerContext[Any, Any], metrics: Metrics
) -> None:
    """Writes answers as soon as the buffer has them, several in a message, until the buffer is closed and empty.

    Raises:
        Exception: The error that the buffer was closed with.
    """
    while ready := await buffer.ready():
        metrics.count_outcomes(pending.future.result() for pending in ready)
        answers = (
            pending.encoder.encode(pending.item_id, pending.future.result(), pending.options) for pending in ready
        )
        for chunk in _chunks(answers):
            await context.write(response_type(answers=chunk))


def _check_order(message: Message, in_order: bool) -> Message:
    if message.in_order in {None, in_order}:
        return message
    problem = "the order of the answers is fixed by the first message of the stream"
    return reject(message, InvalidRequestError("STREAM_ORDER_CHANGED", problem))


def _chunks(answers: Iterator[item_pb2.Answer]) -> Iterator[list[item_pb2.Answer]]:
    """Groups answers into lists of about ``_RESPONSE_BYTES``."""
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
