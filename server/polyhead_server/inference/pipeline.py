"""The order of the steps: admission, tokenization, batching, engine, heads. Every item gets one outcome."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from polyhead_server.engines import Engine
from polyhead_server.errors import ExpiredError, InternalError, ServerError, TextTooLongError
from polyhead_server.settings import Settings

from . import postprocessing
from .admission import Admission, Size
from .model import Model, pad, self_test
from .scheduler import Batch, BatchLimits, BatchScheduler, Entry, Flow
from .types import InvalidItem, Item, ItemOutcome, Message, ModelOutput, Result, Timings, TokenizedText, Truncation

logger = logging.getLogger(__name__)

# A worker that does not end by then hangs in its engine; it is a daemon and keeps nobody from leaving.
_JOIN_S = 10.0
# How soon it is noticed that the rest will not be answered.
_LOOK_S = 1.0
# After so many failed passes in a row the engine is examined.
_FAILURES = 20
# After so many passes in a row that nothing else ran or waited beside, the next one is taken to be alone as well. Where
# it is not, both are slower; texts that come at random make a row of that length only where they come seldom.
_ALONE = 8

Observe = Callable[[Batch, float], None]
Follow = Callable[[Model, int, Sequence["_Future"], bool], None]
_Future = asyncio.Future[ItemOutcome]


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
        self.queue = BatchScheduler(BatchLimits(model.max_batch_tokens, settings.max_padding, model.overhead_tokens))
        self.threads = threads = settings.compute_threads(model.engine.runtime.device)
        self.admission = Admission(
            self.queue, threads, settings.max_queue_s, settings.max_queue_tokens, model.tokens_per_s
        )
        self._threads = [
            threading.Thread(target=self._work, name=f"compute-{number}", daemon=True) for number in range(threads)
        ]
        self._loop = asyncio.get_running_loop()
        self._batch_timeout_s = settings.batch_timeout_s
        # When the pass that each thread computes began.
        self._running: dict[int, int] = {}
        # Passes in a row that were alone when they began.
        self._alone = 0
        self._failures = 0
        self._broken: str | None = None
        # Messages whose items are on their way into the queue.
        self._entering = 0
        self._entered = asyncio.Event()
        self._entered.set()

    def start(self) -> None:
        """Starts the workers."""
        for thread in self._threads:
            thread.start()

    async def close(self) -> None:
        """Finishes what was submitted, ends the workers, frees the model; nothing may be submitted any more."""
        await self._entered.wait()
        self.queue.close()
        # What was accepted is answered, however long that takes.
        while self.queue.waiting and not self.trouble() and (alive := self._alive()):
            await asyncio.to_thread(alive[0].join, _LOOK_S)
        for thread in self._threads:
            await asyncio.to_thread(thread.join, _JOIN_S)
        if self._alive():
            logger.error("a compute thread has not ended; the memory of its model is not given back")
            self.model.tokenizer.close()
        else:
            await asyncio.to_thread(self.model.close)

    def _alive(self) -> list[threading.Thread]:
        return [thread for thread in self._threads if thread.is_alive()]

    async def submit(
        self,
        message: Message,
        call: Flow,
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
            if isinstance(item, InvalidItem):
                future.set_result(item.error)
            else:
                good.append((item, future))
        max_windows = self._max_windows if message.options.truncation is Truncation.WINDOW else 1
        sizes = self._sizes([item.text for item, _ in good], max_windows)
        admitted, refusal = self.admission.admit(call, sizes, deadline, patient=patient)
        if refusal:
            for _, future in good[admitted:]:
                future.set_result(refusal)
        self._entering += 1
        self._entered.clear()
        try:
            if admitted:
                new = partial(Entry, call, deadline=deadline, arrived_ns=arrived_ns)
                await self._enqueue(good[:admitted], sizes, message.options.truncation, max_windows, new)
        except BaseException:
            # Cancelled, above all. Some may be in the queue already, and nobody is given their futures.
            for future in futures:
                future.cancel()
            raise
        finally:
            self._entering -= 1
            if not self._entering:
                self._entered.set()
        if self._follow:
            self._follow(self.model, arrived_ns, futures, patient)
        return futures

    def _sizes(self, texts: list[str], max_windows: int) -> list[Size]:
        """About how large texts are, before they are tokenized: English has 4 characters a token."""
        tokenizer, most = self.model.tokenizer, self.model.source.manifest.max_tokens * max_windows
        lengths = [min(len(text) // 4 + 2, most) for text in texts]
        return [Size(*pair) for pair in zip(lengths, tokenizer.apart(texts), strict=True)]

    async def _enqueue(
        self,
        good: Sequence[tuple[Item, _Future]],
        sizes: Sequence[Size],
        truncation: Truncation,
        max_windows: int,
        new: Callable[..., Entry],
    ) -> None:
        """Tokenizes admitted items, turn by turn, and puts them into the queue."""
        left = len(good)
        try:
            for turn in self.model.tokenizer.turns([item.text for item, _ in good]):
                await self._enqueue_turn(good[turn], truncation, max_windows, new)
                self.admission.release(sizes[turn])
                left = len(good) - turn.stop
        finally:
            self.admission.release(sizes[len(good) - left : len(good)])

    async def _enqueue_turn(
        self,
        good: Sequence[tuple[Item, _Future]],
        truncation: Truncation,
        max_windows: int,
        new: Callable[..., Entry],
    ) -> None:
        started_ns = time.monotonic_ns()
        texts = [item.text for item, _ in good]
        try:
            tokenized = await self.model.tokenizer.encode_async(texts, max_windows)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception, and nobody may be left waiting
            failure = InternalError.logged("tokenization failed", error)
            for _, future in good:
                future.set_result(failure)
            return
        now_ns = time.monotonic_ns()
        if apart := sum(self.model.tokenizer.apart(texts)):
            self.admission.tokenized(apart, (now_ns - started_ns) / 1e9)
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

    def _parts(self, whole: _Future, tokens: TokenizedText) -> list[_Future]:
        """A future for each window of a text, which together fulfil that of the whole."""
        if len(tokens.windows) == 1:
            return [whole]
        parts: list[_Future] = [self._loop.create_future() for _ in tokens.windows]
        unfinished = set(parts)

        def finish(part: _Future) -> None:
            unfinished.discard(part)
            if not unfinished and not whole.done():
                whole.set_result(self._joined(tokens, [part.result() for part in parts]))

        for part in parts:
            part.add_done_callback(finish)
        # Where the whole is not wanted any more, or had its answer, this cancels what is left.
        whole.add_done_callback(lambda _: [part.cancel() for part in parts])
        return parts

    def _joined(self, tokens: TokenizedText, outcomes: Sequence[ItemOutcome]) -> ItemOutcome:
        results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
        if len(results) < len(outcomes):
            return next(outcome for outcome in outcomes if isinstance(outcome, ServerError))
        manifest = self.model.source.manifest
        try:
            numbers = postprocessing.pool_windows(
                manifest.heads,
                [result.numbers for result in results],
                [len(window) for window in tokens.windows],
                normalized=manifest.embedding.normalized,
            )
        except Exception as error:  # noqa: BLE001 - the edge of a callback: somebody waits for the outcome
            return InternalError.logged("pooling failed", error)
        last = max((result.timings for result in results), key=lambda timings: timings.total_ns)
        return Result(numbers, tokens, last)

    def _drop_when_cancelled(self, entry: Entry, future: _Future) -> None:
        if future.cancelled():
            self.queue.drop(entry)
            self.admission.wake()

    def trouble(self) -> str | None:
        """Why this pipeline will not answer any more, whatever it is asked; None where nothing says so."""
        running_s = max(
            ((time.monotonic_ns() - began_ns) / 1e9 for began_ns in list(self._running.values())), default=0.0
        )
        if running_s > self._batch_timeout_s:
            return f"a pass has been running for {running_s:.0f} s"
        return self._broken

    def _work(self) -> None:
        """A worker thread; one that ends before its time leaves nobody waiting for it unknown."""
        try:
            self._work_on()
        except BaseException as error:
            logger.exception("a compute thread ended")
            self._broken = f"a compute thread ended: {type(error).__name__}"

    def _work_on(self) -> None:
        """One batch after the other until the queue is closed."""
        me = threading.get_ident()
        while (batch := self.queue.take()) is not None:
            self._running[me] = started_ns = time.monotonic_ns()
            outcomes = self._compute(batch.entries, started_ns, self._engine()) if batch.entries else []
            seconds = (time.monotonic_ns() - started_ns) / 1e9
            failed = bool(outcomes) and all(isinstance(outcome, InternalError) for outcome in outcomes)
            self._loop.call_soon_threadsafe(self._deliver, batch, outcomes, seconds, failed)
            self._failures = self._failures + 1 if failed else 0
            if self._failures >= _FAILURES:
                self._examine()
            self._running.pop(me, None)

    def _examine(self) -> None:
        """After so many failures in a row: is it the engine, or the texts?"""
        self._failures = 0
        try:
            self_test(self.model.source, self.model.tokenizer, self.model.engine)
        except BaseException as error:
            logger.exception("the engine fails")
            self._broken = f"{_FAILURES} passes in a row failed, and then the golden texts: {type(error).__name__}"

    def _compute(self, entries: list[Entry], started_ns: int, engine: Engine) -> list[ItemOutcome]:
        manifest = self.model.source.manifest
        try:
            input_ids, attention_mask = pad([entry.ids for entry in entries], manifest.pad_token_id)  # (B, T) x 2
            rows = postprocessing.postprocess(manifest.heads, engine.run(input_ids, attention_mask))
            return self._results(entries, rows, started_ns, input_ids.size)
        except BaseException as error:  # noqa: BLE001 - the thread must live on, and nobody may be left waiting
            self._alone, again = 0, self.model.engine
            if len(entries) == 1 and engine is again:
                return [InternalError.logged("a pass failed", error)]
            # One of them, too little memory for all at once, or the engine on all cores must not fail the others.
            logger.warning(
                "a pass over %d texts failed, each is computed again: %s", len(entries), type(error).__name__
            )
            return [self._compute([entry], started_ns, again)[0] for entry in entries]

    def _engine(self) -> Engine:
        """What computes the pass that begins: all cores, where passes have come one at a time for a while."""
        self._alone = 0 if len(self._running) > 1 or self.queue.waiting else self._alone + 1
        if self.model.lone_engine and self._alone > _ALONE:
            return self.model.lone_engine
        return self.model.engine

    def _results(
        self, entries: list[Entry], rows: list[ModelOutput | None], started_ns: int, batch_tokens: int
    ) -> list[ItemOutcome]:
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

    def _deliver(self, batch: Batch, outcomes: list[ItemOutcome], compute_s: float, failed: bool) -> None:
        """Hands every entry of a batch its outcome, on the event loop."""
        for entry in batch.expired:
            _resolve(entry.future, ExpiredError())
        for entry, outcome in zip(batch.entries, outcomes, strict=True):
            _resolve(entry.future, outcome)
        self.admission.wake()
        if batch.entries and not failed:
            self.admission.learn(batch.tokens, compute_s, backlog=batch.backlog)
            if self._observe:
                self._observe(batch, compute_s)


def _resolve(future: _Future, outcome: ItemOutcome) -> None:
    if not future.done():
        future.set_result(outcome)
