"""Compute threads: each takes a batch from the scheduler, runs the model on it and hands the outcomes back."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from polyhead_server.engines import Engine
from polyhead_server.engines.collate import pad
from polyhead_server.errors import InternalError

from . import postprocessing
from .compute_slots import ComputeSlots
from .model import Model, self_test
from .scheduler import BatchScheduler
from .types import Batch, Entry, ItemOutcome, ModelOutput, Result, Timings

logger = logging.getLogger(__name__)

# After so many failed batches in a row the engine is probed.
MAX_FAILED_BATCHES = 20
# After so many batches in a row that had the machine to themselves, the next one is expected to be exclusive as well.
# Where it is not, both are slower; texts that arrive at random make a run of that length only where they are rare.
MIN_EXCLUSIVE_BATCHES = 8


@dataclass(slots=True)
class BatchOutcome:
    """A batch after its computation.

    Attributes:
        batch: The batch.
        outcomes: One outcome per entry, in order.
        started_ns: ``time.monotonic_ns()`` at which it began.
        compute_s: Duration of the computation.
        failed: Whether every entry failed inside the server.
        slot_s: Time that its thread waited for a slot before, while other models computed.
    """

    batch: Batch
    outcomes: list[ItemOutcome]
    started_ns: int
    compute_s: float
    failed: bool
    slot_s: float = 0.0


class Executor:
    """Runs the scheduler's batches on compute threads, one batch per thread at a time.

    Threads: the event loop calls the public methods; ``join`` blocks and is called from a helper thread. The compute
    threads run ``_worker_loop`` and everything below it. ``_lock`` guards the five fields that they share: each of them
    is read and written only under the lock, a few times per batch. All other fields are set by the constructor and do
    not change. ``on_batches_done`` is called on the event loop; ``on_exception`` in the compute thread.
    """

    def __init__(
        self,
        model: Model,
        scheduler: BatchScheduler,
        threads: int,
        batch_timeout_s: float,
        *,
        on_batches_done: Callable[[Sequence[BatchOutcome]], None],
        on_exception: Callable[[BaseException], None],
        slots: ComputeSlots | None = None,
    ) -> None:
        """Prepares the threads without starting them.

        Args:
            model: Model to run.
            scheduler: Source of the batches.
            threads: Number of compute threads.
            batch_timeout_s: Seconds after which a running batch counts as hung.
            on_batches_done: Receives every batch with its outcomes, on the event loop that creates the executor. A busy
                loop gets all batches that have finished meanwhile in one call, which costs little more than one batch.
            on_exception: Receives every unexpected exception that no batch-mate explains, in the thread that caught it
                and before it becomes an outcome. May end the process, for example when memory is exhausted.
            slots: Those that the models of the process share; None for its only model.
        """
        self._model = model
        self._slots = slots
        self._scheduler = scheduler
        self._batch_timeout_s = batch_timeout_s
        self._on_batches_done = on_batches_done
        self._on_exception = on_exception
        self._loop = asyncio.get_running_loop()
        self._threads = [
            threading.Thread(target=self._worker_loop, name=f"compute-{number}", daemon=True)
            for number in range(threads)
        ]
        self._lock = threading.Lock()
        # Start of the running batch of each thread, by thread id.
        self._running: dict[int, int] = {}
        # Batches that the event loop has not taken yet; while there are any, a call of ``_deliver`` is on its way.
        self._finished: list[BatchOutcome] = []
        # Batches in a row that ran while no other ran or waited.
        self._exclusive_batches = 0
        # Batches in a row that failed.
        self._failed_batches = 0
        self._failure_reason: str | None = None

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def is_alive(self) -> bool:
        """Returns whether a thread still runs."""
        return any(thread.is_alive() for thread in self._threads)

    def join_any(self, timeout_s: float) -> None:
        """Waits until one of the running threads ends, at most ``timeout_s``. Blocks."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout_s)
                return

    def join(self, timeout_s: float) -> bool:
        """Waits for each thread, at most ``timeout_s`` per thread; returns whether all have ended. Blocks."""
        for thread in self._threads:
            thread.join(timeout_s)
        return not self.is_alive()

    def failure_reason(self) -> str | None:
        """Why no further batch can be expected to succeed; None while the executor is healthy."""
        now_ns = time.monotonic_ns()
        with self._lock:
            running_s = max(((now_ns - started_ns) / 1e9 for started_ns in self._running.values()), default=0.0)
            if running_s > self._batch_timeout_s:
                return f"a batch has been running for {running_s:.0f} s"
            return self._failure_reason

    def _worker_loop(self) -> None:
        """Thread boundary: computes batches until the scheduler is closed. On an exception the executor has failed."""
        try:
            if self._slots:
                self._share_slots(self._slots)
                return
            while (batch := self._scheduler.take()) is not None:
                self._process(batch)
        except BaseException as error:
            self._on_exception(error)
            logger.exception("a compute thread ended")
            self._fail(f"a compute thread ended: {type(error).__name__}")

    def _share_slots(self, slots: ComputeSlots) -> None:
        """Computes batches, each in a slot, until the scheduler is closed."""
        while self._scheduler.wait_for_work():
            waits_since = time.monotonic()
            slots.acquire()
            try:
                with self._lock:
                    idle = len(self._threads) - len(self._running)
                # Threads that get no slot now leave their share of the entries to this one.
                batch = self._scheduler.poll(min(idle, 1 + slots.free))
                if batch.entries or batch.expired:
                    self._process(batch, time.monotonic() - waits_since)
            finally:
                slots.release()

    def _process(self, batch: Batch, slot_s: float = 0.0) -> None:
        thread_id, started_ns = threading.get_ident(), time.monotonic_ns()
        engine = self._begin(thread_id, started_ns, computes=bool(batch.entries))
        outcomes = self._run(batch.entries, started_ns, engine) if batch.entries else []
        compute_s = (time.monotonic_ns() - started_ns) / 1e9
        failed = bool(outcomes) and all(isinstance(outcome, InternalError) for outcome in outcomes)
        self._hand_over(BatchOutcome(batch, outcomes, started_ns, compute_s, failed, slot_s))
        if self._count_failure(failed=failed):
            self._probe_engine()
        # Not before: a probe that hangs must be found as well.
        with self._lock:
            del self._running[thread_id]

    def _hand_over(self, done: BatchOutcome) -> None:
        with self._lock:
            self._finished.append(done)
            is_first = len(self._finished) == 1
        if is_first:
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            finished, self._finished = self._finished, []
        self._on_batches_done(finished)

    def _begin(self, thread_id: int, started_ns: int, *, computes: bool) -> Engine:
        """Registers a batch that starts now and returns its engine.

        That is the engine on several cores where the last batches came one at a time.
        """
        model = self._model
        with self._lock:
            self._running[thread_id] = started_ns
            if computes:
                exclusive = len(self._running) == 1 and not self._scheduler.accounting.waiting_items
                if self._slots:
                    exclusive = exclusive and self._slots.in_use == 1
                self._exclusive_batches = self._exclusive_batches + 1 if exclusive else 0
            if model.intra_op_engine and self._exclusive_batches > MIN_EXCLUSIVE_BATCHES:
                return model.intra_op_engine
        return model.engine

    def _count_failure(self, *, failed: bool) -> bool:
        """Counts failed batches in a row; returns whether the engine must be probed now."""
        with self._lock:
            self._failed_batches = self._failed_batches + 1 if failed else 0
            if self._failed_batches < MAX_FAILED_BATCHES:
                return False
            self._failed_batches = 0
            return True

    def _probe_engine(self) -> None:
        """Runs the golden texts, which tells a broken engine from a run of texts that it cannot compute."""
        try:
            self_test(self._model.source, self._model.tokenizer, self._model.engine)
        except BaseException as error:
            self._on_exception(error)
            logger.exception("the engine fails its self-test")
            name = type(error).__name__
            self._fail(f"{MAX_FAILED_BATCHES} batches in a row failed, and then the golden texts: {name}")

    def _fail(self, reason: str) -> None:
        with self._lock:
            self._failure_reason = reason

    def _run(self, entries: list[Entry], started_ns: int, engine: Engine) -> list[ItemOutcome]:
        """Computes entries in one forward pass; where that fails, each again by itself on one core."""
        manifest = self._model.source.manifest
        try:
            input_ids, attention_mask = pad([entry.ids for entry in entries], manifest.pad_token_id)  # (B, T) x 2
            rows = postprocessing.postprocess(manifest.heads, engine.run(input_ids, attention_mask))
            return _results(entries, rows, started_ns, input_ids.size)
        except BaseException as error:  # noqa: BLE001 - the thread must live on, and every future must be resolved
            with self._lock:
                self._exclusive_batches = 0
            if len(entries) == 1 and engine is self._model.engine:
                self._on_exception(error)
                return [InternalError.logged("a batch failed", error)]
            # One bad text, too little memory for the whole batch or a failure of the engine on several cores must not
            # fail the other texts.
            logger.warning("a batch of %d texts failed, retrying one by one: %s", len(entries), type(error).__name__)
            return [self._run([entry], started_ns, self._model.engine)[0] for entry in entries]


def _results(
    entries: list[Entry], rows: list[ModelOutput | None], started_ns: int, batch_tokens: int
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
        else InternalError.logged("the model's output is not finite")
        for entry, row in zip(entries, rows, strict=True)
    ]
