"""A front's side of the engine: keeps what the engine has not answered, and gives it to the next engine process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from polyhead_server.errors import (
    InternalError,
    ModelReplacedError,
    OverloadedError,
    ServerError,
)
from polyhead_server.inference.intake import Submission
from polyhead_server.inference.model import Model
from polyhead_server.inference.reused_answers import resolve
from polyhead_server.inference.types import Entry, Flow, Result, Timings
from polyhead_server.settings import Settings

from . import records
from .engine_link import EngineLink
from .failures import error_of
from .model_files import same_model
from .pending import Message, Stream, Target
from .records import NONE_NS, Flag, Kind, Record, RecordError

logger = logging.getLogger(__name__)

# Engine processes that may end while they have a text. One more might end for the same reason; the supervisor gives up
# after a few more.
MAX_LOSSES = 3
# Seconds after which a call is worth another attempt that came while there was no engine.
_NO_ENGINE_RETRY_S = 1.0
# Later deadlines, which clients may choose, count as none: a record holds nanoseconds in 64 bits.
_MAX_DEADLINE_S = 2**62 / 1e9


class EngineClient:
    """The connection of a front to the engine process, whichever serves at the moment. Event loop only.

    Attributes:
        link: The connection itself, which its ``run`` keeps.
    """

    def __init__(self, path: Path, settings: Settings, on_target: Callable[[Target], None]) -> None:
        """Does not connect yet.

        Args:
            path: Socket of the engine process.
            settings: The server's.
            on_target: Called for each model that answers from now on, before messages for its predecessor are given up.
        """
        self.link = EngineLink(
            path, settings, on_records=self._on_records, on_model=self._on_model, on_lost=self._on_lost
        )
        self._settings = settings
        self._on_target = on_target
        self._target: Target | None = None
        self._is_retired = False
        self._next_number = 1
        self._messages: dict[int, Message] = {}
        self._held_tokens = 0
        self._streams: weakref.WeakKeyDictionary[Flow, Stream] = weakref.WeakKeyDictionary()
        self._streams_by_number: dict[int, Stream] = {}
        self._loop = asyncio.get_running_loop()

    def retire(self, *, lost: bool) -> None:
        """Lets streams that wait for capacity go on with another model, which the caller has put in its place.

        What the engine has begun is answered, unless it ends before: another one is not waited for any more.

        Args:
            lost: Give up what it has not answered at once; the other model answers.
        """
        self._is_retired = True
        if self._target:
            if lost:
                self._on_lost("it was given up")
            self._replace(self._target)

    async def reserve(self, target: Target, submission: Submission) -> tuple[int, ServerError | None]:
        """Asks the engine to admit a message. A unary one goes on before the engine has decided.

        Returns:
            As ``Admission.admit``. The futures of a unary message that the engine refuses later are resolved then.
        """
        sizes = [size.tokens for size in submission.sizes]
        if not sizes:
            return 0, None
        tokens = sum(sizes)
        # With an engine, its admission is what bounds them; twice as many only come together if it has stopped reading.
        limit = self._settings.max_queue_tokens * (1 if target.number is None else 2)
        if self._held_tokens and not submission.blocking and self._held_tokens + tokens > limit:
            return 0, OverloadedError.full(self._held_tokens + tokens, limit, 2 * _NO_ENGINE_RETRY_S)
        submission.number = self._new_number()
        flow = submission.number if submission.flow.unary else self._stream(submission.flow).number
        message = self._messages[submission.number] = Message(target, submission, flow, tokens, sizes)
        self._held_tokens += tokens
        target.messages += 1
        target.idle.clear()
        if submission.blocking:
            message.admission = asyncio.get_running_loop().create_future()
        try:
            self._send_admit(message)
        except BaseException:
            self._end(message)
            raise
        if message.admission is None:
            return len(sizes), None
        try:
            count, error = await message.admission
        except asyncio.CancelledError:
            self._send_tokenized(message, 0, last=True)
            self._end(message)
            raise
        message.admission = None
        if not count:
            self._end(message)
        return count, error

    def put(self, submission: Submission, entries: Sequence[Entry]) -> None:
        """Sends entries of a message that was admitted."""
        message = self._messages[submission.number]
        for entry in entries:
            if self._is_retired and message.target.number is None:
                resolve(entry.future, ModelReplacedError())
            if entry.future.done():
                continue
            entry.number = submission.number << 32 | message.count
            message.entries[entry.number] = entry
            message.count += 1
            self._send_put(message, entry)

    def tokenized(self, submission: Submission, count: int) -> None:
        """Ends the reservations of so many texts, which are in the queue now, or gone."""
        message = self._messages[submission.number]
        message.tokenized += count
        message.is_last = message.tokenized >= len(submission.sizes)
        self._send_tokenized(message, count, last=message.is_last)
        self._end_if_answered(message)

    def cancel(self, entry: Entry) -> None:
        """Withdraws an entry."""
        message = self._messages.get(entry.number >> 32)
        if message and message.entries.pop(entry.number, None):
            self._send(message.target, records.number(Kind.CANCEL, entry.number))
            self._end_if_answered(message)

    async def wait_for_capacity(self, target: Target, flow: Flow) -> None:
        """Waits until the engine has capacity for more of a stream, or another model answers."""
        if target.is_stale:
            await target.replaced.wait()
        elif not target.replaced.is_set():
            await self._stream(flow).capacity.wait()

    def _stream(self, flow: Flow) -> Stream:
        stream = self._streams.get(flow)
        if stream is None:
            stream = self._streams[flow] = Stream(self._new_number(), asyncio.Event())
            stream.capacity.set()
            self._streams_by_number[stream.number] = stream
            weakref.finalize(flow, self._end_stream_soon, stream.number).atexit = False
        return stream

    def _end_stream_soon(self, number: int) -> None:
        # The last reference may be the tokenization thread's, and the loop may be closed by then.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end_stream, number)

    def _end_stream(self, number: int) -> None:
        del self._streams_by_number[number]
        self.link.send(records.number(Kind.END_FLOW, number))

    def _new_number(self) -> int:
        number, self._next_number = self._next_number, self._next_number + 1
        return number

    def _send(self, target: Target, record: bytes) -> None:
        if target.number is not None:
            self.link.send(record)

    def _send_admit(self, message: Message) -> None:
        target, submission = message.target, message.submission
        if target.number is not None:
            deadline = _ns(submission.deadline)
            request = records.Admit(submission.number, message.flow, deadline, target.number, message.sizes)
            self.link.send(records.admit(message.flags, request))
            message.is_sent = True

    def _send_put(self, message: Message, entry: Entry) -> None:
        if (number := message.target.number) is not None:
            record = records.Put(
                entry.number,
                message.flow,
                _ns(entry.deadline),
                entry.arrived_ns,
                entry.tokenized_ns,
                number,
                entry.item,
                entry.tokens.seen if entry.is_first_window else 0,
                entry.key or b"",
            )
            self._send(message.target, records.put(message.flags, record))

    def _send_tokenized(self, message: Message, count: int, *, last: bool) -> None:
        record = records.Tokenized(message.submission.number, count)
        self._send(message.target, records.tokenized(Flag.LAST if last else Flag.NONE, record))

    def _end_if_answered(self, message: Message) -> None:
        if message.is_last and not message.entries:
            self._end(message)

    def _end(self, message: Message) -> None:
        if self._messages.pop(message.submission.number, None):
            self._held_tokens -= message.tokens
            message.target.messages -= 1
            if not message.target.messages:
                message.target.idle.set()

    def _on_lost(self, reason: str) -> None:
        logger.warning("the engine is lost, %d messages wait for the next: %s", len(self._messages), reason)
        for message in self._messages.values():
            message.target.number = None
            message.losses += message.is_sent
        if self._target:
            self._target.number = None
        if any(message.losses >= MAX_LOSSES for message in self._messages.values()):
            # One of these texts may be what ends it.
            error = InternalError.logged(f"the engine has ended {MAX_LOSSES} times before it answered a text")
            self._give_up(lambda message: message.losses >= MAX_LOSSES, error)
        if self._is_retired:
            self._give_up(lambda message: message.target.number is None, ModelReplacedError())

    def _on_model(self, number: int, model: Model) -> None:
        old = self._target
        if old and old.number is None and same_model(old.model, model):
            # Another engine process with the same model.
            model.tokenizer.close()
            old.number = number
            self._resubmit(old)
            return
        self._target = Target(model, number)
        self._on_target(self._target)
        if old:
            self._replace(old)

    def _on_records(self, received: Sequence[Record]) -> None:
        for record in received:
            match record.kind:
                case Kind.RESULT:
                    self._resolve(records.read_numbers(record.body))
                case Kind.ADMITTED:
                    self._admitted(records.read_admitted(record.body), has_capacity=bool(record.flags & Flag.CAPACITY))
                case Kind.REFUSED:
                    self._refused(record)
                case Kind.FAILED:
                    self._failed(record)
                case Kind.CAPACITY:
                    self._set_capacity(records.read_number(record.body))
                case Kind.SERVE:
                    self.link.serve(records.read_number(record.body))
                case unknown:
                    raise RecordError(f"a record of kind {unknown}")

    def _resolve(self, numbers: records.Numbers) -> None:
        message = self._messages.get(numbers.entry >> 32)
        entry = message.entries.pop(numbers.entry, None) if message else None
        if message is None or entry is None:
            # It was cancelled.
            return
        target = message.target
        output = records.split_output(numbers.values, target.output_sizes, target.heads)
        timings = Timings(
            entry.tokenization_ns,
            numbers.queue_ns,
            numbers.compute_ns,
            max(numbers.finished_ns - entry.arrived_ns, 0),
            numbers.batch_items,
            numbers.batch_tokens,
            numbers.finished_ns,
        )
        resolve(entry.future, Result(output, entry.tokens, timings))
        self._end_if_answered(message)

    def _admitted(self, answer: records.Admitted, *, has_capacity: bool) -> None:
        message = self._messages.get(answer.message)
        if message is None or message.admission is None or message.admission.done():
            return
        if not has_capacity:
            self._stream(message.submission.flow).capacity.clear()
        message.admission.set_result((min(answer.texts, len(message.sizes)), None))

    def _refused(self, record: Record) -> None:
        answer = records.read_refused(record.body)
        message = self._messages.get(answer.message)
        if message is None:
            return
        error = error_of(record.flags, text=answer.text, retry_after_s=answer.retry_after_s)
        if isinstance(error, ModelReplacedError):
            message.target.is_stale = True
        if message.admission:
            if not message.admission.done():
                stale = isinstance(error, ModelReplacedError)
                message.admission.set_result((answer.texts, None if stale else error))
            return
        for future in message.submission.futures[answer.texts :]:
            resolve(future, error)
        for number in [number for number, entry in message.entries.items() if entry.item >= answer.texts]:
            del message.entries[number]
        self._end_if_answered(message)

    def _failed(self, record: Record) -> None:
        answer = records.read_failed(record.body)
        message = self._messages.get(answer.entry >> 32)
        if message and (entry := message.entries.pop(answer.entry, None)):
            resolve(entry.future, error_of(record.flags, text=answer.incident))
            self._end_if_answered(message)

    def _set_capacity(self, number: int) -> None:
        if stream := self._streams_by_number.get(number):
            stream.capacity.set()

    def _resubmit(self, target: Target) -> None:
        """Sends what the engine process before has not answered."""
        logger.info("the engine is back; sending %d messages", len(self._messages))
        self._give_up(
            lambda message: message.target is not target and message.target.number is None, ModelReplacedError()
        )
        if target.is_stale:
            # It was to be replaced by a model that is not there any more.
            waited, target.replaced, target.is_stale = target.replaced, asyncio.Event(), False
            waited.set()
        for message in list(self._messages.values()):
            if message.target is not target:
                continue
            if message.admission or not message.is_sent:
                self._send_admit(message)
            for entry in message.entries.values():
                self._send_put(message, entry)
            if message.tokenized:
                self._send_tokenized(message, message.tokenized, last=message.is_last)
        for stream in self._streams_by_number.values():
            stream.capacity.set()

    def _replace(self, old: Target) -> None:
        """Gives up what only a model that does not answer any more could compute."""
        old.is_stale = True
        self._give_up(lambda message: message.target.number is None, ModelReplacedError())
        old.replaced.set()
        for stream in self._streams_by_number.values():
            stream.capacity.set()

    def _give_up(self, applies: Callable[[Message], bool], error: ServerError) -> None:
        for message in [one for one in self._messages.values() if applies(one)]:
            if message.admission and not message.admission.done():
                stale = isinstance(error, ModelReplacedError)
                message.admission.set_result((0, None if stale else error))
            for future in message.submission.futures:
                resolve(future, error)
            for entry in message.entries.values():
                resolve(entry.future, error)
            message.entries.clear()
            self._end_if_answered(message)


def _ns(seconds: float | None) -> int:
    return NONE_NS if seconds is None or seconds > _MAX_DEADLINE_S else int(seconds * 1e9)
