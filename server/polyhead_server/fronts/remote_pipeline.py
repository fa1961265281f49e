"""The pipeline of a front: tokenizes here, and leaves queue and model to the engine process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from polyhead_server.errors import ServerError
from polyhead_server.inference.admission import Admission
from polyhead_server.inference.intake import Intake, OnMessage, Submission
from polyhead_server.inference.token_accounting import TokenAccounting
from polyhead_server.inference.types import Entry, Flow, QueueState
from polyhead_server.settings import Settings

from .engine_client import EngineClient
from .pending import Target


class RemotePipeline(Intake):
    """Answers items with the model of the engine process. Event loop only.

    Admission has two parts. This process rejects what would wait too long for its tokenization thread; the engine
    process decides on the queue that all fronts share.

    Attributes:
        target: The model in the engine process.
    """

    threads = 0

    def __init__(
        self,
        client: EngineClient,
        target: Target,
        settings: Settings,
        on_message: OnMessage | None = None,
        *,
        on_exception: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Creates a pipeline.

        Args:
            client: The connection to the engine process.
            target: The model there.
            settings: Limits.
            on_message: See ``Pipeline``.
            on_exception: See ``Pipeline``.
        """
        super().__init__(target.model, settings, on_message, on_exception=on_exception)
        self._client = client
        self.target = target
        self._tokenization = Admission(
            TokenAccounting(), 1, settings.max_queue_s, settings.max_queue_tokens, tokens_per_s=0
        )

    def start(self) -> None:
        """Does nothing: the engine process computes."""

    async def close(self) -> None:
        """Waits until everything that was submitted is answered. Nothing may be submitted any more."""
        await self._none_submitting.wait()
        await self.target.idle.wait()
        await asyncio.to_thread(self.model.close)

    def failure_reason(self) -> str | None:
        """Why no item will be answered any more; an engine process that has ended is replaced by another."""
        return self._client.link.failure

    def queue_state(self) -> QueueState:
        """Returns zeros: the queue is the engine's."""
        return QueueState()

    async def wait_for_capacity(self, flow: Flow) -> None:
        """See ``Intake.wait_for_capacity``; returns as well once another model answers."""
        await self._tokenization.wait_for_capacity(flow)
        await self._client.wait_for_capacity(self.target, flow)

    async def wait_until_replaced(self) -> None:
        """See ``Intake.wait_until_replaced``."""
        await self.target.replaced.wait()

    async def _reserve(self, submission: Submission) -> tuple[int, ServerError | None]:
        admitted, rejection = self._tokenization.admit(
            submission.flow, submission.sizes, submission.deadline, blocking=submission.blocking
        )
        sizes = submission.sizes[:admitted]
        if not admitted:
            return 0, rejection
        del submission.sizes[admitted:]
        count = 0
        try:
            count, error = await self._client.reserve(self.target, submission)
        finally:
            self._tokenization.release(submission.flow, sizes[count:])
        return count, error or rejection

    def _release(self, submission: Submission, part: slice) -> None:
        sizes = submission.sizes[part]
        self._tokenization.release(submission.flow, sizes)
        self._client.tokenized(submission, len(sizes))

    def _observe_tokenization(self, characters: int, seconds: float) -> None:
        self._tokenization.observe_tokenization(characters, seconds)

    def _put(self, submission: Submission, entries: list[Entry]) -> Sequence[Entry]:
        self._client.put(submission, entries)
        return entries

    def _drop(self, entry: Entry) -> None:
        self._client.cancel(entry)
