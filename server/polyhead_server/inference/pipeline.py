"""The inference pipeline of one process: accepts items, passes them through every step, and resolves their futures.

::

    submit -> admission -> tokenization -> scheduler -> executor -> engine, postprocessing -> future
    (event loop)                |          (lock)       (compute threads)                     (event loop)
                                +-> answer cache, if there is one and it knows the token ids -> future

``Intake`` is the part up to tokenization, ``EngineCore`` the rest; with ``--fronts`` they run in different processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from polyhead_server.errors import ServerError
from polyhead_server.settings import Settings

from .admission import Admission
from .answer_cache import AnswerCache, ObserveLookups
from .compute_slots import ComputeSlots
from .engine_core import EngineCore, ObserveBatches, ObserveOutcomes
from .executor import Executor
from .intake import Intake, OnMessage, Submission
from .model import Model
from .scheduler import BatchScheduler
from .types import Entry, Flow, QueueState


class Pipeline(Intake):
    """Answers items with one model: one queue for all calls, and one compute thread per core.

    Attributes:
        scheduler: Queue of tokenized texts.
        admission: Admission control in front of the queue.
        executor: The compute threads.
    """

    def __init__(
        self,
        model: Model,
        settings: Settings,
        observe_batches: ObserveBatches | None = None,
        on_message: OnMessage | None = None,
        *,
        on_exception: Callable[[BaseException], None] | None = None,
        observe_lookups: ObserveLookups | None = None,
        observe_outcomes: ObserveOutcomes | None = None,
        slots: ComputeSlots | None = None,
    ) -> None:
        """Prepares the compute threads without starting them.

        Args:
            model: Model that answers.
            settings: Limits.
            observe_batches: Receives every successful batch, several at once where they finished together.
            on_message: Receives every message that was taken in: the model, the ``time.monotonic_ns()`` of its arrival,
                the futures of its items, and whether it came over a stream. Called in the context of its call.
            on_exception: Receives every unexpected exception before it becomes an outcome, in the thread that caught
                it: the event loop or a compute thread. May end the process, for example when memory is exhausted.
            observe_lookups: Receives the numbers of hits and misses of look-ups in the answer cache.
            observe_outcomes: Receives the entries and the outcomes of every successful batch, after they were resolved.
            slots: Those that the models of the process share; None for its only model.
        """
        super().__init__(model, settings, on_message, on_exception=on_exception)
        self._core = EngineCore(
            model,
            settings,
            observe_batches,
            on_exception=self._on_exception,
            observe_lookups=observe_lookups,
            observe_outcomes=observe_outcomes,
            slots=slots,
        )
        self.scheduler: BatchScheduler = self._core.scheduler
        self.admission: Admission = self._core.admission
        self.executor: Executor = self._core.executor
        self.threads = self._core.threads

    @property
    def answer_cache(self) -> AnswerCache | None:
        """Outputs that were computed before; None for no cache."""
        return self._core.answer_cache

    def start(self) -> None:
        """Starts the compute threads."""
        self._core.start()

    async def close(self) -> None:
        """Finishes what was submitted, ends the threads and frees the model. Nothing may be submitted any more."""
        await self._none_submitting.wait()
        await self._core.close()

    def failure_reason(self) -> str | None:
        """Why this pipeline will not answer any more; None while it is healthy."""
        return self._core.failure_reason()

    def queue_state(self) -> QueueState:
        """See ``Intake.queue_state``."""
        return self._core.queue_state()

    async def wait_for_capacity(self, flow: Flow) -> None:
        """See ``Intake.wait_for_capacity``."""
        await self.admission.wait_for_capacity(flow)

    async def _reserve(self, submission: Submission) -> tuple[int, ServerError | None]:
        return self.admission.admit(
            submission.flow, submission.sizes, submission.deadline, blocking=submission.blocking
        )

    def _release(self, submission: Submission, part: slice) -> None:
        self.admission.release(submission.flow, submission.sizes[part])

    def _observe_tokenization(self, characters: int, seconds: float) -> None:
        self.admission.observe_tokenization(characters, seconds)

    def _put(self, submission: Submission, entries: list[Entry]) -> Sequence[Entry]:
        del submission
        left = self._core.look_up(entries)
        self._core.put(left)
        return left

    def _drop(self, entry: Entry) -> None:
        self._core.drop(entry)
