"""The engine's side of one front: its records become entries of the queue, and their outcomes go back as records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from polyhead_server.errors import ExpiredError, InternalError, OverloadedError, ServerError
from polyhead_server.inference.types import (
    Entry,
    EstimatedSize,
    Flow,
    ItemOutcome,
    OutcomeFuture,
    Result,
    TokenizedText,
)

from . import records
from .channel import Channel
from .records import NONE_NS, Failure, Flag, Kind, Record, RecordError
from .served_model import Host, ServedModel

logger = logging.getLogger(__name__)

# A front that has more of these breaks the protocol; its admission bounds them far below.
MAX_ENTRIES = 2**20


@dataclass(slots=True, eq=False)
class _Message:
    """A message of a front.

    Attributes:
        served: The model that has admitted it; None for a message that was refused as stale.
        flow: Its call.
        reserved: Sizes of the texts that are not in the queue yet.
        admitted: Number of texts that may be queued.
    """

    served: ServedModel | None
    flow: Flow
    reserved: list[EstimatedSize] = field(default_factory=list)
    admitted: int = 0


class RemoteAnswer:
    """Stands for the future of an entry: has what the scheduler needs of one, and sends the outcome to the front."""

    __slots__ = ("_connection", "_done", "_is_cancelled", "_number")

    def __init__(self, connection: FrontConnection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._done = self._is_cancelled = False

    def done(self) -> bool:
        """Whether it has an outcome or was cancelled."""
        return self._done

    def cancelled(self) -> bool:
        """Whether the front does not want the outcome any more."""
        return self._is_cancelled

    def cancel(self) -> None:
        """Marks the outcome as not wanted."""
        self._done = self._is_cancelled = True

    def set_result(self, outcome: ItemOutcome) -> None:
        """Sends the outcome."""
        self._done = True
        self._connection.send_outcome(self._number, outcome)


class FrontConnection:
    """One front as the engine process sees it. Event loop only.

    Attributes:
        process_id: Process of the front.
        ready_model: Number of the last model that the front has loaded; 0 for none.
        ready: Set whenever ``ready_model`` changes, and when the front ends.
        closed: Whether the front has ended.
    """

    def __init__(self, process_id: int, host: Host) -> None:
        """Starts without a channel; ``attach`` gives it one."""
        self.process_id = process_id
        self.ready_model = 0
        self.ready = asyncio.Event()
        self.closed = False
        self._host = host
        self._channel: Channel | None = None
        self._messages: dict[int, _Message] = {}
        self._entries: dict[int, tuple[ServedModel, Entry]] = {}
        # Calls that are streams; a unary call is one message.
        self._flows: dict[int, Flow] = {}
        self._waiting: dict[int, asyncio.Task[None]] = {}
        # Entries of the records that are being read, which enter the queue together.
        self._queued: list[Entry] = []
        self._queued_for: ServedModel | None = None

    def counts(self) -> tuple[int, int, int]:
        """Returns the numbers of entries without an outcome, of messages that are not tokenized, and of streams."""
        return len(self._entries), len(self._messages), len(self._flows)

    def attach(self, channel: Channel) -> None:
        """Takes the connection's channel."""
        self._channel = channel

    def announce(self, description: bytes, descriptors: Sequence[int]) -> None:
        """Sends a model to the front."""
        if self._channel:
            self._channel.send_message(description, list(descriptors))

    def serve(self, number: int) -> None:
        """Tells the front which model answers from now on."""
        self.send(records.number(Kind.SERVE, number))

    def on_records(self, received: Sequence[Record]) -> None:
        """Handles records of the front.

        Raises:
            RecordError: One is not valid.
        """
        for record in received:
            if record.kind == Kind.PUT:
                self._put(record)
                continue
            self._enqueue()
            match record.kind:
                case Kind.ADMIT:
                    self._admit(record)
                case Kind.TOKENIZED:
                    self._tokenized(record)
                case Kind.CANCEL:
                    self._cancel(records.read_number(record.body))
                case Kind.END_FLOW:
                    self._end_flow(records.read_number(record.body))
                case Kind.READY:
                    self.ready_model = records.read_number(record.body)
                    self.ready.set()
                case unknown:
                    raise RecordError(f"a record of kind {unknown}")
        self._enqueue()

    def close(self) -> None:
        """Drops everything of a front that has ended."""
        if self._channel:
            self._channel.close()
            self._channel = None
        self.closed = True
        self.ready.set()
        for task in self._waiting.values():
            task.cancel()
        for served, entry in self._entries.values():
            entry.future.cancel()
            served.core.drop(entry)
        self._entries.clear()
        for number in list(self._messages):
            self._end_message(number)

    def send(self, record: bytes) -> None:
        """Sends a record to the front, if it is still there."""
        if self._channel and not self._channel.closed:
            self._channel.send(record)

    def send_outcome(self, number: int, outcome: ItemOutcome) -> None:
        """Sends the outcome of an entry."""
        if self._entries.pop(number, None) is None:
            return
        match outcome:
            case Result(output, _, timings):
                self.send(records.result(number, output, timings))
            case ExpiredError():
                self._fail(number, Failure.EXPIRED)
            case InternalError(incident=incident):
                self._fail(number, Failure.INTERNAL, incident)
            case other:
                self._fail(number, Failure.INTERNAL, InternalError.logged("unexpected outcome", other).incident)

    def _admit(self, record: Record) -> None:
        request = records.read_admit(record.body)
        if request.message in self._messages or len(self._messages) >= MAX_ENTRIES or not request.sizes:
            raise RecordError(f"message {request.message} cannot be admitted")
        blocking = bool(record.flags & Flag.BLOCKING)
        flow = self._flow(request.flow, record.flags)
        served = self._host.current
        if served is None or served.number != request.model:
            if not blocking:
                self._messages[request.message] = _Message(None, flow)
            self.send(records.refused(Failure.STALE, records.Refused(request.message, 0, 0.0, "")))
            return
        admission = served.core.admission
        sizes = [EstimatedSize(size, 0) for size in request.sizes]
        count, rejection = admission.admit(flow, sizes, _seconds(request.deadline_ns), blocking=blocking)
        if count or not blocking:
            self._messages[request.message] = _Message(served, flow, sizes[:count][::-1], count)
            served.open()
        if rejection:
            self._refuse(request.message, count, rejection)
        elif blocking:
            has_capacity = admission.has_capacity(flow)
            flags = Flag.CAPACITY if has_capacity else Flag.NONE
            self.send(records.admitted(flags, records.Admitted(request.message, count)))
            if not has_capacity:
                self._wait_for_capacity(served, request.flow, flow)

    def _refuse(self, message: int, count: int, error: ServerError) -> None:
        if isinstance(error, OverloadedError):
            record = records.Refused(message, count, error.retry_after_s, str(error))
            self.send(records.refused(Failure.OVERLOADED, record))
        else:
            self.send(records.refused(Failure.EXPIRED, records.Refused(message, count, 0.0, "")))

    def _wait_for_capacity(self, served: ServedModel, number: int, flow: Flow) -> None:
        async def wait() -> None:
            await served.core.admission.wait_for_capacity(flow)
            self._waiting.pop(number, None)
            self.send(records.number(Kind.CAPACITY, number))

        if number not in self._waiting:
            self._waiting[number] = asyncio.get_running_loop().create_task(wait())

    def _put(self, record: Record) -> None:
        request = records.read_put(record.body)
        number = request.entry >> 32
        message = self._messages.get(number)
        if message is None:
            message = self._resubmitted(number, request, record.flags)
        served = message.served
        if request.item >= message.admitted:
            return
        if served is None or not served.accepts:
            self._fail(request.entry, Failure.STALE)
            return
        if request.entry in self._entries or len(self._entries) >= MAX_ENTRIES:
            raise RecordError(f"entry {request.entry} cannot be queued")
        if len(request.ids) > 4 * served.model.source.manifest.max_tokens:
            raise RecordError(f"{len(request.ids) // 4} token ids")
        entry = Entry(
            message.flow,
            TokenizedText((), request.seen),
            cast(list[int], records.token_ids(request.ids)),
            cast(OutcomeFuture, RemoteAnswer(self, request.entry)),
            _seconds(request.deadline_ns),
            request.arrived_ns,
            request.tokenized_ns,
            0,
            request.ids,
        )
        self._entries[request.entry] = served, entry
        if self._queued_for is not served:
            self._enqueue()
            self._queued_for = served
        self._queued.append(entry)

    def _resubmitted(self, number: int, request: records.Put, flags: int) -> _Message:
        """Takes a message that a former engine process has admitted."""
        served = self._host.current
        if served is not None and served.number != request.model:
            served = None
        message = self._messages[number] = _Message(served, self._flow(request.flow, flags), admitted=records.MAX_ITEMS)
        if served:
            served.open()
        return message

    def _enqueue(self) -> None:
        if self._queued and self._queued_for:
            queued, self._queued = self._queued, []
            core = self._queued_for.core
            core.put(core.look_up(queued))

    def _tokenized(self, record: Record) -> None:
        request = records.read_tokenized(record.body)
        if message := self._messages.get(request.message):
            self._release(message, request.texts)
            if record.flags & Flag.LAST:
                self._end_message(request.message)

    def _release(self, message: _Message, count: int) -> None:
        # The sizes are in reverse order.
        done = message.reserved[len(message.reserved) - min(count, len(message.reserved)) :]
        if done and message.served:
            del message.reserved[len(message.reserved) - len(done) :]
            message.served.core.admission.release(message.flow, done)

    def _end_message(self, number: int) -> None:
        message = self._messages.pop(number)
        self._release(message, len(message.reserved))
        if message.served:
            message.served.end()

    def _cancel(self, number: int) -> None:
        if found := self._entries.pop(number, None):
            served, entry = found
            entry.future.cancel()
            served.core.drop(entry)

    def _flow(self, number: int, flags: int) -> Flow:
        if flags & Flag.UNARY:
            return Flow(unary=True)
        if len(self._flows) >= MAX_ENTRIES:
            raise RecordError("too many streams")
        return self._flows.setdefault(number, Flow())

    def _end_flow(self, number: int) -> None:
        self._flows.pop(number, None)
        if task := self._waiting.pop(number, None):
            task.cancel()

    def _fail(self, number: int, failure: Failure, incident: str = "") -> None:
        self.send(records.failed(failure, records.Failed(number, incident)))


def _seconds(ns: int) -> float | None:
    return None if ns == NONE_NS else ns / 1e9
