"""Takes texts from the event loop and writes the chosen ones from a thread, without ever delaying an answer."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import polyhead_bundle as bundle

from polyhead_server.errors import StartupError
from polyhead_server.inference import head_answers
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import Item, Message, OutcomeFuture, Result, Task
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.settings import Settings

from . import rows
from .redaction import Redactor, read_patterns
from .row_files import RowFiles
from .rows import Example
from .selection import Selection, Shares

logger = logging.getLogger(__name__)

# Texts that wait for the thread, and the memory of their characters; beyond either they are dropped.
_MAX_WAITING_TEXTS = 512
_MAX_WAITING_CHARACTERS = 4 * 2**20
# Longer texts are not collected: redacting one could take long, and models read far less.
MAX_TEXT_CHARACTERS = 32_768
# Seconds between a failed write, such as on a full disk, and the next attempt.
_RETRY_S = 60.0
_CLOSE_TIMEOUT_S = 2.0

# Why texts are not collected, in the metrics.
QUEUE_FULL, TEXT_TOO_LONG, REDACTION_FAILED, WRITE_FAILED = DROP_REASONS = (
    "queue_full",
    "text_too_long",
    "redaction_failed",
    "write_failed",
)

# A drawn text with its model, and what has drawn it.
_Waiting = tuple["TextSampler", Model, Example]


class CollectionMetrics(Protocol):
    """Counts what the collector does; any thread may call it."""

    def count_collected(self, reason: str) -> None:
        """Counts a text that was written, for one of its reasons."""

    def count_uncollected(self, reason: str) -> None:
        """Counts a text that was not written, by the reason of ``DROP_REASONS``."""

    def set_collection_stopped(self, stopped: bool) -> None:
        """Reports whether texts cannot be written."""


class Collector:
    """The sample of the texts of one process. The event loop calls every method; ``_run`` is the thread's."""

    def __init__(
        self,
        files: RowFiles,
        redactor: Redactor | None,
        share: float,
        metrics: CollectionMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the thread.

        Args:
            files: Where the rows go.
            redactor: Redacts their texts; None to write them as they are.
            share: Share of all texts to collect, 0 to 1.
            metrics: Counts.
            clock: Returns seconds.
        """
        self._files = files
        self._redactor = redactor
        self._share = share
        self._metrics = metrics
        self._clock = clock
        self._samplers: weakref.WeakKeyDictionary[Model, TextSampler] = weakref.WeakKeyDictionary()
        # Read and written by the thread alone.
        self._retry_at: float | None = None
        # Guards the fields below.
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._waiting_characters = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._thread.start()

    @classmethod
    def from_settings(cls, settings: Settings, metrics: CollectionMetrics) -> Collector | None:
        """Returns the collector of ``--collect``; None without it.

        Raises:
            StartupError: The folder cannot be written to, or the file of patterns is invalid.
        """
        if not settings.collect:
            return None
        redactor = check(settings)
        folder, max_bytes = Path(settings.collect), settings.collect_mb * 2**20
        files = RowFiles(folder, max_bytes, processes=max(settings.workers, settings.fronts))
        logger.warning(
            "collecting %g %% of the texts in %s%s",
            100 * settings.collect_share,
            folder,
            ", redacted" if redactor else ", as clients send them: personal data included",
        )
        return cls(files, redactor, settings.collect_share, metrics)

    def observe(self, model: Model, message: Message, futures: Sequence[OutcomeFuture]) -> None:
        """Receives a message and the futures of its first items; see ``Intake.observers``."""
        self.sampler(model).draw(model, message, futures)

    def sampler(self, model: Model) -> TextSampler:
        """Returns what samples the texts that a model answers, one for each model."""
        sampler = self._samplers.get(model)
        if sampler is None:
            heads = model.source.manifest.heads
            shares = Shares.divide(self._share, heads, has_novelty=model.novelty is not None)
            sampler = self._samplers[model] = TextSampler(heads, shares, self._put)
        return sampler

    async def close(self) -> None:
        """Writes what waits, for a limited time."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        await asyncio.to_thread(self._thread.join, _CLOSE_TIMEOUT_S)

    def _put(self, sampler: TextSampler, model: Model, example: Example) -> None:
        if len(example.text) > MAX_TEXT_CHARACTERS:
            self._metrics.count_uncollected(TEXT_TOO_LONG)
            return
        with self._changed:
            size = self._waiting_characters + len(example.text)
            if len(self._waiting) < _MAX_WAITING_TEXTS and size <= _MAX_WAITING_CHARACTERS:
                self._waiting.append((sampler, model, example))
                self._waiting_characters = size
                self._changed.notify_all()
                return
        self._metrics.count_uncollected(QUEUE_FULL)

    def _run(self) -> None:
        """Thread boundary: collects texts until the collector is closed. After an unexpected error, it drops them."""
        try:
            self._attempt(self._files.repair)
            while (taken := self._take()) is not None:
                self._collect(*taken)
        except BaseException as error:
            exit_if_out_of_memory(error)
            self._metrics.set_collection_stopped(True)
            logger.exception("no more texts are collected")
            # From now on in place of the loop that collected them.
            while self._take() is not None:
                self._metrics.count_uncollected(WRITE_FAILED)
        finally:
            self._files.close()
            if self._redactor:
                self._redactor.close()

    def _take(self) -> _Waiting | None:
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            if not self._waiting:
                return None
            taken = self._waiting.popleft()
            self._waiting_characters -= len(taken[-1].text)
            return taken

    def _collect(self, sampler: TextSampler, model: Model, example: Example) -> None:
        choice = sampler.selection.choose(
            example.text,
            rows.confidences(model, example, sampler.shares.confidences),
            rows.novelty(model, example),
            is_drawn=example.is_drawn,
            is_candidate=example.is_candidate,
        )
        if choice is None:
            return
        if self._retry_at is not None and self._clock() < self._retry_at:
            self._metrics.count_uncollected(WRITE_FAILED)
            return
        redacted = self._redactor.redact(example.text) if self._redactor else (example.text, 0)
        if redacted is None:
            self._metrics.count_uncollected(REDACTION_FAILED)
            return
        row = rows.encode(model, example, choice, redacted)
        if not self._files.fits(row):
            self._metrics.count_uncollected(TEXT_TOO_LONG)
        elif self._attempt(functools.partial(self._files.append, row)):
            for reason in choice.reasons:
                self._metrics.count_collected(reason)
        else:
            self._metrics.count_uncollected(WRITE_FAILED)

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Works on the files; returns False, and stops collecting for a while, where that fails."""
        try:
            work()
        except OSError as error:
            if self._retry_at is None:
                logger.error("texts cannot be collected: %s; tried again every %g s", error, _RETRY_S)  # noqa: TRY400
                self._metrics.set_collection_stopped(True)
            self._files.close()
            self._retry_at = self._clock() + _RETRY_S
            return False
        if self._retry_at is not None:
            logger.info("texts are collected again")
            self._metrics.set_collection_stopped(False)
            self._retry_at = None
        return True


class TextSampler:
    """Draws from the texts that one model answers. Does not keep the model, which may be replaced and freed.

    Attributes:
        shares: The share of each reason.
        selection: Chooses among the drawn texts; the collector's thread alone uses it.
    """

    def __init__(
        self, heads: Sequence[bundle.Head], shares: Shares, put: Callable[[TextSampler, Model, Example], None]
    ) -> None:
        """Creates a sampler.

        Args:
            heads: The model's heads.
            shares: The share of each reason.
            put: Takes a drawn text once the model has answered it.
        """
        self.shares = shares
        # Not for secrets.
        self._draw = random.Random().random  # noqa: S311
        self.selection = Selection(shares, random.Random().random)  # noqa: S311
        self._put = put
        self._tasks: frozenset[Task] = frozenset(head_answers.TASKS[head.kind] for head in heads)

    def draw(self, model: Model, message: Message, futures: Sequence[OutcomeFuture]) -> None:
        """Draws from the texts of a message, if it asks for the answer of a head.

        Args:
            model: The model.
            message: The message.
            futures: One for each item that was submitted, in order.
        """
        if self._tasks.isdisjoint(message.options.tasks):
            return
        draw, shares, prompt = self._draw, self.shares, message.options.prompt
        for item, future in zip(message.items, futures, strict=False):
            is_drawn, is_candidate = draw() < shares.random, draw() < shares.candidates
            if (is_drawn or is_candidate) and isinstance(item, Item):
                on_done = functools.partial(
                    self._on_done, model, item.text, prompt, is_drawn=is_drawn, is_candidate=is_candidate
                )
                future.add_done_callback(on_done)

    def _on_done(
        self, model: Model, text: str, prompt: str, future: OutcomeFuture, *, is_drawn: bool, is_candidate: bool
    ) -> None:
        if future.cancelled() or not isinstance(outcome := future.result(), Result):
            return
        output = outcome.output
        # Copies, as a row of an array keeps the whole batch in memory.
        numbers = tuple([values.copy() for values in output.probabilities])
        self._put(self, model, Example(text, prompt, numbers, output.embedding.copy(), is_drawn, is_candidate))


def check(settings: Settings) -> Redactor | None:
    """Checks what ``--collect`` requires, and creates its folder; returns what redacts texts, None for nothing.

    Raises:
        StartupError: The folder cannot be written to, or the file of patterns is invalid.
    """
    folder = Path(settings.collect)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / f".probe-{random.randrange(2**32):08x}"  # noqa: S311
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        # A full disk stops the collection alone.
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise StartupError(f"--collect {folder}: cannot be written to: {error}") from error
    return Redactor(read_patterns(Path(settings.collect_redact))) if settings.collect_redact else None
