"""The order of the steps: admission, tokenization, batching, engine, heads. Every item gets one outcome."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from . import heads
from .admission import Admission
from .batching import Batch, BatchLimits, BatchQueue, Call, Entry
from .errors import ExpiredError, InternalError, ServerError, TextTooLongError
from .items import BadItem, Item, Message, Numbers, Outcome, Result, Timings, Tokens, Truncation
from .loading import Model, pad
from .settings import Settings

logger = logging.getLogger(__name__)

# A worker that does not end by then hangs in its engine; it is a daemon and keeps nobody from leaving.
_JOIN_S = 10.0

Observe = Callable[[Batch, float], None]
Follow = Callable[[Model, int, Sequence["_Future"], bool], None]
_Future = asyncio.Future[Outcome]


class Pipeline:
    """Answers items with one model: one queue for everything, and one worker thread for each core."""

    def __init__(
        self, model: Model, settings: Settings, observe: Observe | None = None, follow: Follow | None = None
    ) -> None:
        """Prepares the workers.

        Args:
            model: What answers.
            settings: Limits.
            observe: Told about every pass: its batch and the seconds it took. Called on the event loop.
            follow: Told about every message that was taken in: what answers it, the ``time.monotonic_ns()`` of its
                arrival, the futures of its items, and whether it is a stream's. Called in the context of its call.
        """
        self.model = model
        self._max_windows = settings.max_windows
        self._observe = observe
        self._follow = follow
        self.queue = BatchQueue(BatchLimits(model.max_batch_tokens, settings.max_padding))
        self.threads = threads = settings.compute_threads(model.engine.runtime.device)
        self.admission = Admission(
            self.queue, threads, settings.max_queue_s, settings.max_queue_tokens, model.tokens_per_s
        )
        self._threads = [
            threading.Thread(target=self._work, name=f"compute-{number}", daemon=True) for number in range(threads)
        ]
        self._loop = asyncio.get_running_loop()
        # Messages whose items are on their way into the queue.
        self._entering = 0
        self._entered = asyncio.Event()
        self._entered.set()

    def start(self) -> None:
        """Starts the workers."""
        for thread in self._threads:
            thread.start()

    async def close(self) -> None:
        """Finishes what was submitted and ends the workers; nothing may be submitted any more."""
        await self._entered.wait()
        self.queue.close()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, _JOIN_S)
        self.model.tokenizer.close()

    async def submit(
        self,
        message: Message,
        call: Call,
        deadline: float | None,
        *,
        patient: bool = False,
        arrived_ns: int | None = None,
    ) -> list[_Future]:
        """Takes the items of a message in.

        Args:
            message: Items and what is wished for them.
            call: Whose message it is.
            deadline: ``time.monotonic()`` second after which the answers are worthless.
            patient: True for streams, which wait for room instead of being refused.
            arrived_ns: ``time.monotonic_ns()`` of the message's arrival, where it waited since; None for now.

        Returns:
            One future for each item, in order. A future holds the item's outcome and never an exception; cancelling it
            says that the answer is not wanted any more.
        """
        arrived_ns = arrived_ns or time.monotonic_ns()
        futures: list[_Future] = [self._loop.create_future() for _ in message.items]
        good: list[tuple[Item, _Future]] = []
        for item, future in zip(message.items, futures, strict=True):
            if isinstance(item, BadItem):
                future.set_result(item.error)
            else:
                good.append((item, future))
        max_windows = self._max_windows if message.wishes.truncation is Truncation.WINDOW else 1
        sizes = [self._guess_tokens(item.text, max_windows) for item, _ in good]
        admitted = self.admission.admit(call, sizes, deadline, patient=patient)
        if admitted < len(good):
            refusal = self.admission.refusal(call, sizes[admitted], deadline, patient=patient)
            for _, future in good[admitted:]:
                future.set_result(refusal)
        self._entering += 1
        self._entered.clear()
        try:
            if admitted:
                new = partial(Entry, call, deadline=deadline, arrived_ns=arrived_ns)
                await self._enqueue(good[:admitted], message.wishes.truncation, max_windows, new)
        finally:
            self.admission.release(sum(sizes[:admitted]))
            self._entering -= 1
            if not self._entering:
                self._entered.set()
        if self._follow:
            self._follow(self.model, arrived_ns, futures, patient)
        return futures

    def _guess_tokens(self, text: str, max_windows: int) -> int:
        """About how many tokens a text has, before it is tokenized: English has 4 characters a token."""
        return min(len(text) // 4 + 2, self.model.source.manifest.max_tokens * max_windows)

    async def _enqueue(
        self,
        good: Sequence[tuple[Item, _Future]],
        truncation: Truncation,
        max_windows: int,
        new: Callable[..., Entry],
    ) -> None:
        started_ns = time.monotonic_ns()
        try:
            tokenized = await self.model.tokenizer.encode_async([item.text for item, _ in good], max_windows)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception, and nobody may be left waiting
            failure = InternalError.logged("tokenization failed", error)
            for _, future in good:
                future.set_result(failure)
            return
        now_ns = time.monotonic_ns()
        entries: list[Entry] = []
        for (_, future), tokens in zip(good, tokenized, strict=True):
            if tokens.cut_at is not None and truncation is Truncation.ERROR:
                future.set_result(TextTooLongError(tokens.seen, self.model.source.manifest.max_tokens))
                continue
            for ids, part in zip(tokens.windows, self._parts(future, tokens), strict=True):
                entry = new(
                    tokens=tokens, ids=ids, future=part, tokenized_ns=now_ns, tokenization_ns=now_ns - started_ns
                )
                part.add_done_callback(partial(self._drop_when_cancelled, entry))
                entries.append(entry)
        self.queue.put(entries)

    def _parts(self, whole: _Future, tokens: Tokens) -> list[_Future]:
        """A future for each window of a text, which together fulfil that of the whole."""
        if len(tokens.windows) == 1:
            return [whole]
        parts: list[_Future] = [self._loop.create_future() for _ in tokens.windows]
        gathered = asyncio.gather(*parts)
        gathered.add_done_callback(lambda all_: None if all_.cancelled() else self._join(whole, tokens, all_.result()))
        whole.add_done_callback(lambda _: gathered.cancel())
        return parts

    def _join(self, whole: _Future, tokens: Tokens, outcomes: Sequence[Outcome]) -> None:
        results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
        if len(results) < len(outcomes):
            _resolve(whole, next(outcome for outcome in outcomes if isinstance(outcome, ServerError)))
            return
        manifest = self.model.source.manifest
        numbers = heads.pool(
            manifest.heads,
            [result.numbers for result in results],
            [len(window) for window in tokens.windows],
            normalized=manifest.embedding.normalized,
        )
        last = max((result.timings for result in results), key=lambda timings: timings.total_ns)
        _resolve(whole, Result(numbers, tokens, last))

    def _drop_when_cancelled(self, entry: Entry, future: _Future) -> None:
        if future.cancelled():
            self.queue.drop(entry)
            self.admission.wake()

    def _work(self) -> None:
        """A worker thread: one batch after the other until the queue is closed."""
        while (batch := self.queue.take()) is not None:
            started_ns = time.monotonic_ns()
            outcomes = self._compute(batch.entries, started_ns) if batch.entries else []
            seconds = (time.monotonic_ns() - started_ns) / 1e9
            self._loop.call_soon_threadsafe(self._deliver, batch, outcomes, seconds)

    def _compute(self, entries: list[Entry], started_ns: int) -> list[Outcome]:
        manifest = self.model.source.manifest
        try:
            input_ids, attention_mask = pad([entry.ids for entry in entries], manifest.pad_token_id)  # (B, T) x 2
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
                    finished_ns=finished_ns,
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
            self.admission.learn(batch.tokens, compute_s)
        self.admission.wake()
        if self._observe:
            self._observe(batch, compute_s)


def _resolve(future: _Future, outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
