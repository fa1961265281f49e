"""The half of the pipeline behind tokenization, for one model: queue, admission, compute threads and answer cache.

::

    put -> scheduler -> executor -> engine, postprocessing -> outcome of each entry
     |      (lock)       (compute threads)                     (event loop)
     +-> answer cache, if there is one and it knows the token ids -> outcome
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from polyhead_server.errors import ExpiredError, InternalError
from polyhead_server.settings import Settings

from .admission import Admission
from .answer_cache import AnswerCache, ObserveLookups
from .compute_slots import ComputeSlots
from .executor import BatchOutcome, Executor
from .model import Model
from .reused_answers import answer_from_cache, resolve, resolve_shared
from .scheduler import BatchLimits, BatchScheduler
from .types import Entry, ItemOutcome, QueueState, Result

logger = logging.getLogger(__name__)

# A compute thread that does not end by then hangs in its engine; as a daemon it does not keep the process alive.
JOIN_TIMEOUT_S = 10.0
# Interval at which ``close`` checks whether the rest can still be answered.
CLOSE_CHECK_INTERVAL_S = 1.0

ObserveBatches = Callable[[Sequence[BatchOutcome]], None]
ObserveOutcomes = Callable[[Sequence[Entry], Sequence[ItemOutcome]], None]


class EngineCore:
    """Computes the entries of all calls with one model: one queue, and one compute thread per core.

    Threads: the event loop that creates the object calls every method and owns every field. The compute threads reach
    nothing here: ``Executor`` calls ``_resolve_batches`` on the event loop.

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
        observe_batches: ObserveBatches | None = None,
        *,
        on_exception: Callable[[BaseException], None],
        observe_lookups: ObserveLookups | None = None,
        observe_outcomes: ObserveOutcomes | None = None,
        slots: ComputeSlots | None = None,
    ) -> None:
        """Prepares the compute threads without starting them; see ``Pipeline`` for the arguments."""
        self.model = model
        self._observe_batches = observe_batches
        self._observe_outcomes = observe_outcomes
        self._on_exception = on_exception
        self._loop = asyncio.get_running_loop()
        self._waking = False
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
            on_batches_done=self._resolve_batches,
            on_exception=on_exception,
            slots=slots,
        )
        cache_bytes = settings.answer_cache_mb * 2**20
        self.answer_cache = AnswerCache(cache_bytes, observe_lookups) if cache_bytes else None

    def start(self) -> None:
        """Starts the compute threads."""
        self.executor.start()

    async def close(self) -> None:
        """Finishes what was put into the queue, ends the threads and frees the model. Nothing may be put any more."""
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
        """Why nothing will be computed any more; None while the engine is healthy."""
        return self.executor.failure_reason()

    def queue_state(self) -> QueueState:
        """Returns what waits."""
        accounting, cache = self.scheduler.accounting, self.answer_cache
        return QueueState(
            accounting.waiting_items,
            accounting.waiting_tokens,
            accounting.pending_tokens,
            self.admission.expected_wait_s(),
            cache.used_bytes if cache is not None else 0,
        )

    def look_up(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Resolves the entries whose output is in the answer cache; returns the others."""
        return entries if self.answer_cache is None else answer_from_cache(entries, self.answer_cache)

    def put(self, entries: Sequence[Entry]) -> None:
        """Puts entries into the queue.

        Compute threads are woken once for everything that comes in the same iteration of the event loop. A thread that
        is woken earlier would only wait for the interpreter, take one text where several come, and cost the event loop
        a switch of threads for each.
        """
        if self.scheduler.put(entries) and not self._waking:
            self._waking = True
            self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._waking = False
        self.scheduler.wake()

    def drop(self, entry: Entry) -> None:
        """Removes an entry from the queue whose answer is not wanted any more."""
        self.scheduler.drop(entry)
        self.admission.wake()

    def _resolve_batches(self, finished: Sequence[BatchOutcome]) -> None:
        """Resolves the entries of finished batches and updates the rates."""
        self.scheduler.finish([entry for done in finished for entry in done.batch.entries])
        for done in finished:
            try:
                self._resolve(done)
            except Exception as error:  # noqa: BLE001 - the other batches, and the rest of this one, have waiters too
                self._fail(done, error)
        self.admission.wake()
        succeeded = [done for done in finished if done.batch.entries and not done.failed]
        for done in succeeded:
            # Texts behind a batch waited for its slot as well.
            self.admission.observe_batch(done.batch.tokens, done.slot_s + done.compute_s, backlog=done.batch.backlog)
        if succeeded and self._observe_batches:
            self._observe_batches(succeeded)
        if self._observe_outcomes:
            for done in succeeded:
                self._observe_outcomes(done.batch.entries, done.outcomes)

    def _resolve(self, done: BatchOutcome) -> None:
        cache = self.answer_cache
        for entry in done.batch.expired:
            resolve(entry.future, ExpiredError())
        for entry, outcome in zip(done.batch.entries, done.outcomes, strict=True):
            resolve(entry.future, outcome)
            if entry.shared:
                resolve_shared(entry.shared, outcome)
            if cache is not None and entry.key is not None and isinstance(outcome, Result):
                cache.put(entry.key, outcome.output)

    def _fail(self, done: BatchOutcome, error: Exception) -> None:
        """Resolves what is left of a batch whose outcomes could not all be delivered."""
        self._on_exception(error)
        failure = InternalError.logged("the outcomes of a batch could not be delivered", error)
        for entry in (*done.batch.expired, *done.batch.entries):
            for one in (entry, *(entry.shared or ())):
                try:
                    resolve(one.future, failure)
                except Exception:
                    logger.exception("the outcome of a text could not be delivered")
