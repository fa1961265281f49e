"""The order of the steps: admission, tokenization, batching, engine, heads. Every item gets one outcome."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from . import heads
from .admission import Admission
from .batching import Batch, BatchLimits, BatchQueue, Entry
from .errors import ExpiredError, InternalError, ServerError, TextTooLongError
from .items import BadItem, Item, Message, Numbers, Outcome, Result, Timings
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
        self._queue = BatchQueue(BatchLimits(model.max_batch_tokens, settings.max_padding))
        threads = settings.compute_threads(model.engine.runtime.device)
        self._admission = Admission(threads, settings.max_queue_s, lambda: self._queue.waiting_tokens)
        self._threads = [
            threading.Thread(target=self._work, name=f"compute-{number}", daemon=True) for number in range(threads)
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
        await self._admission.room()

    async def submit(
        self, message: Message, deadline: float | None, *, may_refuse: bool = True
    ) -> list[asyncio.Future[Outcome]]:
        """Takes the items of a message in.

        Args:
            message: Items and what is wished for them.
            deadline: ``time.monotonic()`` second after which the answers are worthless.
            may_refuse: False for streams, which wait for ``room`` instead of being refused.

        Returns:
            One future for each item, in order. A future holds the item's outcome and never an exception; cancelling it
            says that the answer is not wanted any more.
        """
        arrived_ns = time.monotonic_ns()
        futures: list[asyncio.Future[Outcome]] = [self._loop.create_future() for _ in message.items]
        good: list[tuple[Item, asyncio.Future[Outcome]]] = []
        reserved = 0
        for item, future in zip(message.items, futures, strict=True):
            if isinstance(item, BadItem):
                future.set_result(item.error)
                continue
            tokens = self._guess_tokens(item.text)
            try:
                self._admission.admit(deadline, tokens, may_refuse=may_refuse)
            except ServerError as error:
                future.set_result(error)
            else:
                reserved += tokens
                good.append((item, future))
        try:
            if good:
                await self._enqueue(good, message, deadline, arrived_ns)
        finally:
            self._admission.release(reserved)
        return futures

    def _guess_tokens(self, text: str) -> int:
        """About how many tokens a text has, before it is tokenized: English has 4 characters a token."""
        return min(len(text) // 4 + 2, self.model.source.manifest.max_tokens)

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
                future.add_done_callback(partial(self._drop_when_cancelled, entries[-1]))
        self._queue.put(entries)

    def _drop_when_cancelled(self, entry: Entry, future: asyncio.Future[Outcome]) -> None:
        if future.cancelled():
            self._queue.drop(entry)
            self._admission.wake()

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
            return self._results(entries, rows, started_ns, input_ids.size)
        except BaseException as error:  # noqa: BLE001 - the thread must live on, and nobody may be left waiting
            return [InternalError.logged(f"a pass over {len(entries)} texts failed", error)] * len(entries)

    def _results(
        self, entries: list[Entry], rows: list[Numbers | None], started_ns: int, batch_tokens: int
    ) -> list[Outcome]:
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
                    batch_tokens=batch_tokens,
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
            self._admission.learn(sum(entry.length for entry in batch.entries), compute_s)
        self._admission.wake()
        if self._observe:
            self._observe(batch, compute_s)


def _resolve(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
