"""The inference pipeline: accepts items, passes them through every step, and resolves one future per item.

::

    submit -> admission -> tokenization -> scheduler -> executor -> engine, postprocessing -> future
    (event loop)                |          (lock)       (compute threads)                     (event loop)
                                +-> answer cache, if there is one and it knows the token ids -> future

This module and ``windows`` run on the event loop alone. The scheduler stands between the two domains under its own
lock, and ``executor`` is what runs on the compute threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from polyhead_server.errors import ExpiredError, InternalError, TextTooLongError
from polyhead_server.settings import Settings

from .admission import Admission
from .answer_cache import AnswerCache, ObserveLookups
from .equal_texts import key_of
from .executor import BatchOutcome, Executor
from .loop_turns import LoopTurns
from .model import Model
from .reused_answers import answer_from_cache, resolve, resolve_shared
from .scheduler import BatchLimits, BatchScheduler
from .tokenization import Placement
from .types import (
    Batch,
    Entry,
    EstimatedSize,
    Flow,
    InvalidItem,
    Item,
    ItemOutcome,
    Message,
    OutcomeFuture,
    Result,
    TokenizedText,
    Truncation,
)
from .windows import combine_outcomes, window_futures

logger = logging.getLogger(__name__)

# A compute thread that does not end by then hangs in its engine; as a daemon it does not keep the process alive.
JOIN_TIMEOUT_S = 10.0
# Interval at which ``close`` checks whether the rest can still be answered.
CLOSE_CHECK_INTERVAL_S = 1.0

ObserveBatch = Callable[[Batch, float], None]
OnMessage = Callable[[Model, int, Sequence[OutcomeFuture], bool], None]


@dataclass(slots=True)
class _Submission:
    """The admitted part of a message on its way into the queue; the three sequences have one element per text.

    Each text has its prompt before it, of ``prefix`` code points.
    """

    texts: list[str]
    futures: list[OutcomeFuture]
    sizes: list[EstimatedSize]
    placement: Placement
    truncation: Truncation
    max_windows: int
    prefix: int
    flow: Flow
    deadline: float | None
    arrived_ns: int


class Pipeline:
    """Answers items with one model: one queue for all calls, and one compute thread per core.

    Threads: the event loop that creates the pipeline calls every method and owns every field. The compute threads reach
    nothing here: ``Executor`` calls ``_resolve_batch`` on the event loop.

    Attributes:
        model: Model that answers.
        scheduler: Queue of tokenized texts.
        threads: Number of compute threads.
        admission: Admission control in front of the queue.
        executor: The compute threads.
        answer_cache: Outputs that were computed before; None for no cache.
    """

    def __init__(
        self,
        model: Model,
        settings: Settings,
        observe_batch: ObserveBatch | None = None,
        on_message: OnMessage | None = None,
        *,
        on_exception: Callable[[BaseException], None] | None = None,
        observe_lookups: ObserveLookups | None = None,
    ) -> None:
        """Prepares the compute threads without starting them.

        Args:
            model: Model that answers.
            settings: Limits.
            observe_batch: Receives every successful batch and its duration in seconds.
            on_message: Receives every message that was taken in: the model, the ``time.monotonic_ns()`` of its arrival,
                the futures of its items, and whether it came over a stream. Called in the context of its call.
            on_exception: Receives every unexpected exception before it becomes an outcome, in the thread that caught
                it: the event loop or a compute thread. May end the process, for example when memory is exhausted.
            observe_lookups: Receives the numbers of hits and misses of look-ups in the answer cache.
        """
        self.model = model
        self._max_windows = settings.max_windows
        self._observe_batch = observe_batch
        self._on_message = on_message
        self._on_exception = on_exception or _ignore
        self.scheduler = BatchScheduler(
            BatchLimits(model.max_batch_tokens, settings.max_padding, model.overhead_tokens)
        )
        self.threads = settings.compute_threads(model.engine.runtime.device)
        self.admission = Admission(
            self.scheduler.accounting,
            self.threads,
            settings.max_queue_s,
            settings.max_queue_tokens,
            model.tokens_per_s,
        )
        self.executor = Executor(
            model,
            self.scheduler,
            self.threads,
            settings.batch_timeout_s,
            on_batch_done=self._resolve_batch,
            on_exception=self._on_exception,
        )
        cache_bytes = settings.answer_cache_mb * 2**20
        self.answer_cache = AnswerCache(cache_bytes, observe_lookups) if cache_bytes else None
        self._loop = asyncio.get_running_loop()
        self._turns = LoopTurns()
        # Messages whose items are on their way into the queue.
        self._submitting = 0
        self._none_submitting = asyncio.Event()
        self._none_submitting.set()

    def start(self) -> None:
        """Starts the compute threads."""
        self.executor.start()

    async def close(self) -> None:
        """Finishes what was submitted, ends the threads and frees the model. Nothing may be submitted any more."""
        await self._none_submitting.wait()
        self.answer_cache = None
        self.scheduler.close()
        # Everything that was admitted is answered, however long that takes.
        while self.scheduler.accounting.waiting_items and self.executor.is_alive() and not self.failure_reason():
            await asyncio.to_thread(self.executor.join_any, CLOSE_CHECK_INTERVAL_S)
        if await asyncio.to_thread(self.executor.join, JOIN_TIMEOUT_S):
            await asyncio.to_thread(self.model.close)
        else:
            logger.error("a compute thread has not ended; the memory of its model is not freed")
            self.model.tokenizer.close()

    def failure_reason(self) -> str | None:
        """Why this pipeline will not answer any more; None while it is healthy."""
        return self.executor.failure_reason()

    async def submit(
        self,
        message: Message,
        flow: Flow,
        deadline: float | None,
        *,
        blocking: bool = False,
        arrived_ns: int | None = None,
    ) -> list[OutcomeFuture]:
        """Submits the items of a message.

        Args:
            message: Items and the options for them, with a prompt of this model or none; not a message that is rejected
                as a whole.
            flow: The call that the message belongs to.
            deadline: ``time.monotonic()`` second after which the answers are useless.
            blocking: True for streams. Only as many items are submitted as the queue has capacity for.
            arrived_ns: ``time.monotonic_ns()`` of the message's arrival, where it waited since; None for now.

        Returns:
            One future per submitted item, in order; those of a stream may be fewer than its items, and none. A future
            holds the item's outcome and never an exception; cancelling it means that the answer is not wanted any more.
        """
        arrived_ns = arrived_ns or time.monotonic_ns()
        futures, submission = self._admit(message, flow, deadline, arrived_ns, blocking=blocking)
        self._submitting += 1
        self._none_submitting.clear()
        try:
            if submission.texts:
                await self._enqueue(submission)
        except BaseException:
            # Above all a cancellation. Some items may be in the queue already, and the caller never gets their futures.
            for future in futures:
                future.cancel()
            raise
        finally:
            self._submitting -= 1
            if not self._submitting:
                self._none_submitting.set()
        if self._on_message:
            self._on_message(self.model, arrived_ns, futures, blocking)
        return futures

    def _admit(
        self, message: Message, flow: Flow, deadline: float | None, arrived_ns: int, *, blocking: bool
    ) -> tuple[list[OutcomeFuture], _Submission]:
        """Makes the futures of the submitted items and resolves those of invalid and rejected ones.

        Returns:
            The futures, and the admitted items.
        """
        prompt, truncation = message.options.prompt, message.options.truncation
        prefix = self.model.source.manifest.prompts[prompt] if prompt else ""
        texts = [prefix + item.text for item in message.items if isinstance(item, Item)]
        max_windows = self._max_windows if truncation is Truncation.WINDOW else 1
        placement = self.model.tokenizer.placement(texts)
        sizes = self._estimate(texts, placement, max_windows)
        admitted, rejection = self.admission.admit(flow, sizes, deadline, blocking=blocking)
        futures: list[OutcomeFuture] = []
        wanted: list[OutcomeFuture] = []
        for item in message.items:
            future: OutcomeFuture = self._loop.create_future()
            if isinstance(item, InvalidItem):
                future.set_result(item.error)
            elif len(wanted) < admitted:
                wanted.append(future)
            elif rejection:
                future.set_result(rejection)
            else:
                break
            futures.append(future)
        submission = _Submission(
            texts[:admitted],
            wanted,
            sizes[:admitted],
            placement,
            truncation,
            max_windows,
            len(prefix),
            flow,
            deadline,
            arrived_ns,
        )
        return futures, submission

    def _estimate(self, texts: Sequence[str], placement: Placement, max_windows: int) -> list[EstimatedSize]:
        """Estimates the sizes of texts before they are tokenized: English has 4 characters a token."""
        limit = self.model.source.manifest.max_tokens * max_windows
        offloaded = self.model.tokenizer.offloaded_characters(texts, placement)
        return [
            EstimatedSize(min(len(text) // 4 + 2, limit), characters)
            for text, characters in zip(texts, offloaded, strict=True)
        ]

    async def _enqueue(self, submission: _Submission) -> None:
        """Tokenizes admitted texts chunk by chunk and puts them into the queue; releases every reservation."""
        sizes, done = submission.sizes, 0
        try:
            for chunk in self.model.tokenizer.chunks(submission.texts):
                if done:
                    await self._turns.next()
                await self._enqueue_chunk(submission, chunk)
                self.admission.release(submission.flow, sizes[chunk])
                done = chunk.stop
        finally:
            if done < len(sizes):
                self.admission.release(submission.flow, sizes[done:])

    async def _enqueue_chunk(self, submission: _Submission, chunk: slice) -> None:
        started_ns = time.monotonic_ns()
        texts, futures = submission.texts[chunk], submission.futures[chunk]
        try:
            tokenized = await self.model.tokenizer.encode_async(
                texts, submission.placement, submission.flow, submission.max_windows, submission.prefix
            )
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - a Rust panic is no Exception, and every future must be resolved
            failure = self._internal_error("tokenization failed", error)
            for future in futures:
                future.set_result(failure)
            return
        now_ns = time.monotonic_ns()
        if tokenized.characters:
            self.admission.observe_tokenization(tokenized.characters, tokenized.seconds)
        self.scheduler.put(self._entries(submission, futures, tokenized.texts, now_ns, now_ns - started_ns))

    def _entries(
        self,
        submission: _Submission,
        futures: Sequence[OutcomeFuture],
        tokenized: Sequence[TokenizedText],
        tokenized_ns: int,
        tokenization_ns: int,
    ) -> list[Entry]:
        """Makes the entries of tokenized texts, one per window; resolves the future of a text that is refused.

        Those whose output is in the answer cache are resolved as well.
        """
        flow, deadline, arrived_ns = submission.flow, submission.deadline, submission.arrived_ns
        entries: list[Entry] = []
        for future, tokens in zip(futures, tokenized, strict=True):
            if tokens.cut_at is not None and submission.truncation is Truncation.ERROR:
                future.set_result(TextTooLongError(tokens.seen, self.model.source.manifest.max_tokens))
                continue
            for ids, part in zip(tokens.windows, self._window_futures(future, tokens), strict=True):
                key = key_of(ids)
                entry = Entry(flow, tokens, ids, part, deadline, arrived_ns, tokenized_ns, tokenization_ns, key)
                entries.append(entry)
        if self.answer_cache is not None:
            entries = answer_from_cache(entries, self.answer_cache)
        for entry in entries:
            entry.future.add_done_callback(partial(self._drop_if_cancelled, entry))
        return entries

    def _window_futures(self, future: OutcomeFuture, tokens: TokenizedText) -> list[OutcomeFuture]:
        if len(tokens.windows) == 1:
            return [future]
        return window_futures(future, len(tokens.windows), partial(self._combine, tokens))

    def _combine(self, tokens: TokenizedText, outcomes: list[ItemOutcome]) -> ItemOutcome:
        try:
            return combine_outcomes(self.model.source.manifest, tokens, outcomes)
        except Exception as error:  # noqa: BLE001 - boundary of a callback: the text's future must be resolved
            return self._internal_error("pooling failed", error)

    def _internal_error(self, what: str, error: BaseException) -> InternalError:
        self._on_exception(error)
        return InternalError.logged(what, error)

    def _drop_if_cancelled(self, entry: Entry, future: OutcomeFuture) -> None:
        if future.cancelled():
            self.scheduler.drop(entry)
            self.admission.wake()

    def _resolve_batch(self, done: BatchOutcome) -> None:
        """Resolves the futures of a finished batch and updates the rates."""
        batch, cache = done.batch, self.answer_cache
        for entry in batch.expired:
            resolve(entry.future, ExpiredError())
        self.scheduler.finish(batch.entries)
        for entry, outcome in zip(batch.entries, done.outcomes, strict=True):
            resolve(entry.future, outcome)
            if entry.shared:
                resolve_shared(entry.shared, outcome)
            if cache is not None and entry.key is not None and isinstance(outcome, Result):
                cache.put(entry.key, outcome.output)
        self.admission.wake()
        if batch.entries and not done.failed:
            self.admission.observe_batch(batch.tokens, done.compute_s, backlog=batch.backlog)
            if self._observe_batch:
                self._observe_batch(batch, done.compute_s)


def _ignore(_: BaseException) -> None:
    pass
