"""The order of the steps: admission, tokenization, batching, engine, heads. Every item gets one outcome."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from . import heads
from .admission import Admission
from .batching import Batch, BatchLimits, BatchQueue, Entry
from .errors import ExpiredError, InternalError, InvalidRequestError, ServerError, TextTooLongError
from .items import BadItem, Item, Message, Outcome, Result, Timings
from .loading import Model, pad
from .settings import Settings

logger = logging.getLogger(__name__)

# A worker that does not end by then hangs in its engine; it is a daemon and keeps nobody from leaving.
_JOIN_S = 10.0


class Pipeline:
    """Answers items with one model: one queue for everything, and one worker thread for each core."""

    def __init__(self, model: Model, settings: Settings, observe: Callable[[Batch, float], None] | None = None) -> None:
        """Prepares the workers.

        Args:
            model: What answers.
            settings: Limits.
            observe: Told about every pass: its batch and the seconds it took. Called on the event loop.
        """
        self.model = model
        self._settings = settings
        self._observe = observe
        self._queue = BatchQueue(BatchLimits(settings.max_batch_tokens, settings.max_padding))
        self._admission = Admission(settings.compute_threads(), settings.max_queue_s)
        self._threads = [
            threading.Thread(target=self._work, name=f"compute-{number}", daemon=True)
            for number in range(settings.compute_threads())
        ]
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Starts the workers."""
        for thread in self._threads:
            thread.start()

    async def close(self) -> None:
        """Finishes what is in the queue and ends the workers."""
        self._queue.close()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, _JOIN_S)

    async def room(self) -> None:
        """Waits until the queue is short enough for more."""
        await self._admission.room(self._queue.waiting_tokens)

    async def submit(self, message: Message, deadline: float | None) -> list[asyncio.Future[Outcome]]:
        """Takes the items of a message in.

        Args:
            message: Items and what is wished for them.
            deadline: ``time.monotonic()`` second after which the answers are worthless.

        Returns:
            One future for each item, in order. A future holds the item's outcome and never an exception; cancelling it
            says that the answer is not wanted any more.
        """
        arrived_ns = time.monotonic_ns()
        futures: list[asyncio.Future[Outcome]] = [self._loop.create_future() for _ in message.items]
        good: list[tuple[Item, asyncio.Future[Outcome]]] = []
        for item, future in zip(message.items, futures, strict=True):
            if refusal := self._refusal(item, len(message.items), deadline):
                future.set_result(refusal)
            elif isinstance(item, Item):
                good.append((item, future))
        if good:
            await self._enqueue(good, message, deadline, arrived_ns)
        return futures

    def _refusal(self, item: Item | BadItem, count: int, deadline: float | None) -> ServerError | None:
        if isinstance(item, BadItem):
            return item.error
        limit = self._settings.max_items_per_message
        if count > limit:
            return InvalidRequestError("TOO_MANY_ITEMS", f"the message has {count} items; at most {limit} are allowed")
        try:
            self._admission.admit(self._queue.waiting_tokens, deadline)
        except ServerError as error:
            return error
        return None

    async def _enqueue(
        self,
        good: list[tuple[Item, asyncio.Future[Outcome]]],
        message: Message,
        deadline: float | None,
        arrived_ns: int,
    ) -> None:
        started_ns = time.monotonic_ns()
        try:
            tokenized = await self.model.tokenizer.encode_async([item.text for item, _ in good])
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception, and nobody may be left waiting
            failure = InternalError.logged("tokenization failed", error)
            for _, future in good:
                future.set_result(failure)
            return
        now_ns = time.monotonic_ns()
        entries = []
        for (_, future), tokens in zip(good, tokenized, strict=True):
            if tokens.cut_at is not None and not message.wishes.truncate:
                future.set_result(TextTooLongError(tokens.seen, self.model.source.manifest.max_tokens))
            else:
                entries.append(Entry(tokens, future, deadline, arrived_ns, now_ns, now_ns - started_ns))
        self._queue.put(entries)

    def _work(self) -> None:
        """A worker thread: one batch after the other until the queue is closed."""
        while (batch := self._queue.take()) is not None:
            started_ns = time.monotonic_ns()
            outcomes = self._compute(batch.entries, started_ns) if batch.entries else []
            seconds = (time.monotonic_ns() - started_ns) / 1e9
            self._loop.call_soon_threadsafe(self._deliver, batch, outcomes, seconds)

    def _compute(self, entries: list[Entry], started_ns: int) -> list[Outcome]:
        manifest = self.model.source.manifest
        try:
            input_ids, attention_mask = pad(
                [entry.tokens.ids for entry in entries], manifest.pad_token_id
            )  # (B, T) x 2
            rows = heads.answer(manifest.heads, self.model.engine.run(input_ids, attention_mask))
        except BaseException as error:  # noqa: BLE001 - the thread must live on, and nobody may be left waiting
            return [InternalError.logged(f"a pass over {len(entries)} texts failed", error)] * len(entries)
        finished_ns = time.monotonic_ns()
        return [
            Result(
                row,
                entry.tokens,
                Timings(
                    tokenization_ns=entry.tokenization_ns,
                    queue_ns=started_ns - entry.tokenized_ns,
                    compute_ns=finished_ns - started_ns,
                    total_ns=finished_ns - entry.arrived_ns,
                    batch_items=len(entries),
                    batch_tokens=input_ids.size,
                ),
            )
            if row is not None
            else InternalError.logged("the model answered with a number that is not finite")
            for entry, row in zip(entries, rows, strict=True)
        ]

    def _deliver(self, batch: Batch, outcomes: list[Outcome], compute_s: float) -> None:
        """Hands every entry of a batch its outcome, on the event loop."""
        for entry in batch.expired:
            _resolve(entry.future, ExpiredError())
        for entry, outcome in zip(batch.entries, outcomes, strict=True):
            _resolve(entry.future, outcome)
        if batch.entries:
            tokens = sum(entry.length for entry in batch.entries)
            self._admission.observe(tokens, compute_s, self._queue.waiting_tokens)
            if self._observe:
                self._observe(batch, compute_s)


def _resolve(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
