"""The two halves of a bidirectional stream: a reader that submits items and a writer that sends their answers.

::

    request messages -> StreamReader -> pipeline
                              |             |  outcomes, in any order
                              v             v
                           ResponseBuffer -> write_answers -> response messages
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from grpc import aio

from polyhead_server.errors import InvalidRequestError, ServerError
from polyhead_server.inference.loop_turns import LoopTurns
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import MAX_PART_ITEMS, Flow, Message, OutcomeFuture, RequestOptions
from polyhead_server.observability.metrics import Metrics

from .response_buffer import PendingAnswer, ResponseBuffer
from .serving_model import ServingModel, reject

# A response is sent once it reaches this size, well below the 4 MiB that gRPC clients accept by default.
_RESPONSE_BYTES = 2**20


class Submitter:
    """Submits the messages of one stream to the model that serves at that moment, as capacity comes."""

    def __init__(
        self, current: Callable[[RequestOptions], ServingModel], deadline: float | None, turns: LoopTurns
    ) -> None:
        """Creates the submitter of one stream.

        Args:
            current: Returns the model that answers a message with such options now; a reload or a canary may change it
                during the stream.
            deadline: ``time.monotonic()`` second at which the call expires; None for no deadline.
            turns: Turns on the event loop for the parts of large messages.
        """
        self._current = current
        self._deadline = deadline
        self._turns = turns
        self._model: ServingModel | None = None
        self._flow = Flow()

    async def submit_some(self, message: Message, arrived_ns: int) -> tuple[ServingModel, list[OutcomeFuture]]:
        """Waits for capacity and submits the first items of a message, at least one.

        Args:
            message: A part of a message.
            arrived_ns: ``time.monotonic_ns()`` of the message's arrival.

        Returns:
            The model that answers, and one future for each item that was submitted.
        """
        model = await self._wait_for_capacity(message.options)
        part = model.check(message)
        if part.error:
            return model, [_resolved(part.error) for _ in part.items]
        futures = await model.pipeline.submit(part, self._flow, self._deadline, blocking=True, arrived_ns=arrived_ns)
        return model, futures

    async def submit(
        self, message: Message, arrived_ns: int, deadline: float | None = None
    ) -> tuple[Model, list[OutcomeFuture]]:
        """Waits for capacity and submits all items of a message to one model, part by part.

        Args:
            message: The message.
            arrived_ns: ``time.monotonic_ns()`` of its arrival.
            deadline: Deadline of this message, if it is earlier than that of the stream.

        Returns:
            The model that answers, and one future for each item.
        """
        stream_deadline = self._deadline
        self._deadline = min((one for one in (deadline, stream_deadline) if one is not None), default=None)
        futures: list[OutcomeFuture] = []
        model: ServingModel | None = None
        try:
            left = message
            while left.items:
                current, some = await self.submit_some(next(left.parts()), arrived_ns)
                if model is not None and current is not model:
                    # A reload came in between: the answers of a message come from one model.
                    for future in (*futures, *some):
                        future.cancel()
                    futures, left, model = [], message, None
                    continue
                model = current
                futures += some
                left = dataclasses.replace(left, items=left.items[len(some) :])
                if left.items:
                    await self._turns.next()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        finally:
            self._deadline = stream_deadline
        return (model or self._current(message.options)).pipeline.model, futures

    async def _wait_for_capacity(self, options: RequestOptions) -> ServingModel:
        """Waits until the queue of the model that answers accepts another message; returns that model."""
        while True:
            if self._model is not (current := self._current(options)):
                # Each queue counts a flow's waiting tokens; items in the previous model's queue keep their own flow.
                self._model, self._flow = current, Flow()
            await current.pipeline.wait_for_capacity(self._flow)
            # A reload may have replaced the model during the wait.
            if current is self._current(options):
                return current


class StreamReader:
    """Reads the messages of one stream and submits their items."""

    def __init__(self, buffer: ResponseBuffer, submitter: Submitter, turns: LoopTurns) -> None:
        """Creates the reader of one stream.

        Args:
            buffer: Receives a pending answer for every item.
            submitter: Submits the items.
            turns: Turns on the event loop for the parts of large messages.
        """
        self._buffer = buffer
        self._submitter = submitter
        self._turns = turns

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
        """Submits the items of a message, part by part, as buffer and queue have space for them."""
        arrived_ns = time.monotonic_ns()
        message = _check_order(message, self._buffer.in_order)
        for number, part in enumerate(message.parts()):
            if number:
                await self._turns.next()
            left = part
            while left.items:
                await self._buffer.wait_for_space()
                model, futures = await self._submitter.submit_some(left, arrived_ns)
                encoder = model.encoder.for_options(left.options)
                for item, future in zip(left.items, futures, strict=False):
                    self._buffer.add(PendingAnswer(item.item_id, encoder, future))
                left = dataclasses.replace(left, items=left.items[len(futures) :])


async def write_answers(
    buffer: ResponseBuffer, context: aio.ServicerContext[Any, Any], metrics: Metrics, turns: LoopTurns
) -> None:
    """Writes answers as soon as the buffer has them, several in a message, until the buffer is closed and empty.

    Raises:
        Exception: The error that the buffer was closed with.
    """
    while ready := await buffer.ready():
        metrics.count_outcomes([pending.future.result() for pending in ready])
        chunk: list[bytes] = []
        size = 0
        for number, pending in enumerate(ready, 1):
            answer = pending.encoder.encode(pending.item_id, pending.future.result())
            chunk.append(answer)
            size += len(answer)
            if size >= _RESPONSE_BYTES or number == len(ready):
                await context.write(b"".join(chunk))
                chunk, size = [], 0
            elif not number % MAX_PART_ITEMS:
                await turns.next()


def _check_order(message: Message, in_order: bool) -> Message:
    if message.in_order in {None, in_order}:
        return message
    problem = "the order of the answers is fixed by the first message of the stream"
    return reject(message, InvalidRequestError("STREAM_ORDER_CHANGED", problem))


def _resolved(error: ServerError) -> OutcomeFuture:
    future: OutcomeFuture = asyncio.get_running_loop().create_future()
    future.set_result(error)
    return future
