"""The half of the pipeline in front of the queue: accepts items, tokenizes them, and resolves one future per item.

::

    submit -> admission -> tokenization -> entries, one per window of a text -> queue -> futures

``Pipeline`` has the queue in its own process; a front sends the entries to the engine process instead. Everything here
runs on the event loop alone.
"""

from __future__ import annotations

import abc
import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from polyhead_server.errors import InternalError, ServerError, TextTooLongError
from polyhead_server.settings import Settings

from .equal_texts import key_of
from .loop_turns import LoopTurns
from .model import Model
from .reused_answers import resolve
from .tokenization import Placement
from .types import (
    Entry,
    EstimatedSize,
    Flow,
    InvalidItem,
    Item,
    ItemOutcome,
    Message,
    OutcomeFuture,
    QueueState,
    TokenizedText,
    Truncation,
)
from .windows import combine_outcomes, window_futures

OnMessage = Callable[[Model, int, Sequence[OutcomeFuture], bool], None]
Observer = Callable[[Model, Message, Sequence[OutcomeFuture]], None]


@dataclass(slots=True, eq=False)
class Submission:
    """The texts of a message on their way into the queue: those that are admitted, once that is decided.

    Each text has its prompt before it, of ``prefix`` code points.

    Attributes:
        texts: The texts.
        sizes: Their estimated sizes.
        blocking: Whether the message belongs to a stream, which waits instead of being rejected.
        futures: One for each admitted text.
        number: Number by which a front and the engine process refer to it; 0 without fronts.
    """

    texts: list[str]
    sizes: list[EstimatedSize]
    placement: Placement
    truncation: Truncation
    max_windows: int
    prefix: int
    flow: Flow
    deadline: float | None
    arrived_ns: int
    blocking: bool
    futures: list[OutcomeFuture] = field(default_factory=list)
    number: int = 0


class Intake(abc.ABC):
    """Accepts items for one model. The event loop that creates it calls every method and owns every field.

    Attributes:
        model: Model that answers.
        threads: Number of compute threads of this process.
        observers: Each receives every message that was taken in: the model, the message, and the futures of its first
            items, in order. Must not raise.
    """

    threads: int
    observers: Sequence[Observer]

    def __init__(
        self,
        model: Model,
        settings: Settings,
        on_message: OnMessage | None = None,
        *,
        on_exception: Callable[[BaseException], None] | None = None,
    ) -> None:
        """Creates an intake; see ``Pipeline`` for the arguments."""
        self.model = model
        self.observers = ()
        self._max_windows = settings.max_windows
        self._on_message = on_message
        self._on_exception = on_exception or _ignore
        self._loop = asyncio.get_running_loop()
        self._turns = LoopTurns()
        # Messages whose items are on their way into the queue.
        self._submitting = 0
        self._none_submitting = asyncio.Event()
        self._none_submitting.set()

    @abc.abstractmethod
    def start(self) -> None:
        """Begins to answer."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Finishes what was submitted and frees the model. Nothing may be submitted any more."""

    @abc.abstractmethod
    def failure_reason(self) -> str | None:
        """Why no item will be answered any more; None while the pipeline is healthy."""

    @abc.abstractmethod
    def queue_state(self) -> QueueState:
        """Returns what waits in the queue of this process."""

    @abc.abstractmethod
    async def wait_for_capacity(self, flow: Flow) -> None:
        """Waits until the queue has capacity for an item of a stream."""

    async def wait_until_replaced(self) -> None:
        """Waits until another model answers, after an outcome that was a ``ModelReplacedError``."""
        raise RuntimeError("the queue of one process answers all that it has admitted")

    @abc.abstractmethod
    async def _reserve(self, submission: Submission) -> tuple[int, ServerError | None]:
        """Decides how many of the texts are admitted, see ``Admission.admit``, and reserves their tokens."""

    @abc.abstractmethod
    def _release(self, submission: Submission, part: slice) -> None:
        """Ends the reservation of a part of the admitted texts: they are in the queue now, or gone."""

    @abc.abstractmethod
    def _observe_tokenization(self, characters: int, seconds: float) -> None:
        """Updates the tokenization rate, see ``Admission.observe_tokenization``."""

    @abc.abstractmethod
    def _put(self, submission: Submission, entries: list[Entry]) -> Sequence[Entry]:
        """Puts entries into the queue; returns those that wait for their outcome."""

    @abc.abstractmethod
    def _drop(self, entry: Entry) -> None:
        """Removes an entry from the queue whose answer is not wanted any more."""

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
        futures: list[OutcomeFuture] = []
        self._submitting += 1
        self._none_submitting.clear()
        try:
            submission = self._submission(message, flow, deadline, arrived_ns, blocking=blocking)
            admitted, rejection = await self._reserve(submission)
            futures = self._make_futures(message, submission, admitted, rejection)
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
        for observe in self.observers:
            observe(self.model, message, futures)
        return futures

    def _submission(
        self, message: Message, flow: Flow, deadline: float | None, arrived_ns: int, *, blocking: bool
    ) -> Submission:
        prompt, truncation = message.options.prompt, message.options.truncation
        prefix = self.model.source.manifest.prompts[prompt] if prompt else ""
        texts = [prefix + item.text for item in message.items if isinstance(item, Item)]
        max_windows = self._max_windows if truncation is Truncation.WINDOW else 1
        placement = self.model.tokenizer.placement(texts)
        sizes = self._estimate(texts, placement, max_windows)
        return Submission(
            texts, sizes, placement, truncation, max_windows, len(prefix), flow, deadline, arrived_ns, blocking
        )

    def _make_futures(
        self, message: Message, submission: Submission, admitted: int, rejection: ServerError | None
    ) -> list[OutcomeFuture]:
        """Makes the futures of the submitted items, resolves those of invalid and rejected ones, drops the others."""
        futures: list[OutcomeFuture] = []
        wanted = submission.futures
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
        del submission.texts[admitted:], submission.sizes[admitted:]
        return futures

    def _estimate(self, texts: Sequence[str], placement: Placement, max_windows: int) -> list[EstimatedSize]:
        """Estimates the sizes of texts before they are tokenized: English has 4 characters a token."""
        limit = self.model.source.manifest.max_tokens * max_windows
        offloaded = self.model.tokenizer.offloaded_characters(texts, placement)
        return [
            EstimatedSize(min(len(text) // 4 + 2, limit), characters)
            for text, characters in zip(texts, offloaded, strict=True)
        ]

    async def _enqueue(self, submission: Submission) -> None:
        """Tokenizes admitted texts chunk by chunk and puts them into the queue; releases every reservation."""
        done = 0
        try:
            for chunk in self.model.tokenizer.chunks(submission.texts):
                if done:
                    await self._turns.next()
                await self._enqueue_chunk(submission, chunk)
                self._release(submission, chunk)
                done = chunk.stop
        finally:
            if done < len(submission.sizes):
                self._release(submission, slice(done, len(submission.sizes)))

    async def _enqueue_chunk(self, submission: Submission, chunk: slice) -> None:
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
                resolve(future, failure)
            return
        now_ns = time.monotonic_ns()
        if tokenized.characters:
            self._observe_tokenization(tokenized.characters, tokenized.seconds)
        entries = self._entries(submission, chunk, tokenized.texts, now_ns, now_ns - started_ns)
        for entry in self._put(submission, entries):
            entry.future.add_done_callback(partial(self._drop_if_cancelled, entry))

    def _entries(
        self,
        submission: Submission,
        chunk: slice,
        tokenized: Sequence[TokenizedText],
        tokenized_ns: int,
        tokenization_ns: int,
    ) -> list[Entry]:
        """Makes the entries of tokenized texts, one per window; resolves the future of a text that is refused."""
        flow, deadline, arrived_ns = submission.flow, submission.deadline, submission.arrived_ns
        entries: list[Entry] = []
        for item, (future, tokens) in enumerate(zip(submission.futures[chunk], tokenized, strict=True), chunk.start):
            if tokens.cut_at is not None and submission.truncation is Truncation.ERROR:
                resolve(future, TextTooLongError(tokens.seen, self.model.source.manifest.max_tokens))
                continue
            for ids, part in zip(tokens.windows, self._window_futures(future, tokens), strict=True):
                key = key_of(ids)
                entry = Entry(flow, tokens, ids, part, deadline, arrived_ns, tokenized_ns, tokenization_ns, key, item)
                entries.append(entry)
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
            self._drop(entry)


def _ignore(_: BaseException) -> None:
    pass
