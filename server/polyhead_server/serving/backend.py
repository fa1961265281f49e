"""What the dialects and the HTTP API need of the server: one model, its name, and answers for texts."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from polyhead_server.errors import ServerError
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import ItemOutcome, Message, OutcomeFuture
from polyhead_server.observability.metrics import Metrics
from polyhead_server.settings import Settings

_T = TypeVar("_T")


class Submitter(Protocol):
    """Submits the messages of one stream."""

    async def submit(
        self, message: Message, arrived_ns: int, deadline: float | None = None
    ) -> tuple[Model, list[OutcomeFuture]]:
        """Waits for capacity, submits a message, and returns the model that answers it, and a future for each text."""


class Service(Protocol):
    """The inference service, as transports with an encoding of their own use it."""

    metrics: Metrics
    held_bytes: Any

    def tracked(self, context: Any = None) -> AbstractContextManager[None]:
        """Counts a call as running."""

    def require_model(self) -> Model:
        """Returns the serving model or raises ``NotReadyError``."""

    def served_name(self) -> str:
        """Returns the model's name in requests; raises ``NotReadyError`` if that is not known yet."""

    def model_ids(self) -> list[str]:
        """Returns the id of the served model, and that of its candidate during a canary; raises ``NotReadyError``."""

    def max_text_bytes(self) -> int:
        """Returns how many bytes of a text to decode."""

    def submitter(self, deadline: float | None) -> Submitter:
        """Returns what submits the messages of a stream to this model."""

    async def answer(self, message: Message, deadline: float | None) -> tuple[Model, Sequence[ItemOutcome]]:
        """Answers the items of one message; raises if none was accepted."""

    def end_reason(self) -> ServerError:
        """Why a stream whose reading half was cancelled ends."""

    def session(
        self,
        read: Callable[[Any], Awaitable[None]],
        deadline: float | None,
        on_end: Callable[[], None],
        *,
        has_age: bool = True,
    ) -> AbstractAsyncContextManager[asyncio.Task[None]]:
        """Runs the reading half of a stream in a task that a drain cancels, and the age of the stream if it has one."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters of this process since its start.

    Attributes:
        texts: Texts that were answered, also with the output of an equal one.
        batches: Forward passes.
        errors: Texts that were answered with an error.
        batch_s: Seconds of forward passes, summed over their texts' batches.
        queue_s: Seconds that texts waited in the queue, summed.
    """

    texts: int
    batches: int
    errors: int
    batch_s: float
    queue_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Submission:
    """A request of a stream on its way.

    Attributes:
        model: The model that answers it.
        futures: One for each text.
        metrics: Count the outcomes of the model's texts.
    """

    model: Model
    futures: list[OutcomeFuture]
    metrics: Metrics

    def cancel(self) -> None:
        """Withdraws the texts that wait in the queue."""
        for future in self.futures:
            future.cancel()


class Backend:
    """One model of a server process behind the dialects.

    Attributes:
        service: The inference service of the model.
        settings: The model's.
    """

    def __init__(self, service: Service, settings: Settings, ready: Callable[[], bool]) -> None:
        """Creates the backend.

        Args:
            service: The inference service.
            settings: The model's.
            ready: Whether the server should receive calls.
        """
        self.service = service
        self.settings = settings
        self._ready = ready
        self._views: dict[Any, weakref.WeakKeyDictionary[Model, Any]] = {}

    @property
    def ready(self) -> bool:
        """Whether the server should receive calls."""
        return self._ready()

    @property
    def max_items(self) -> int:
        """Maximum number of texts in a request."""
        return self.settings.max_items_per_message

    def max_characters(self) -> int:
        """Returns the maximum length of a text in characters.

        Raises:
            NotReadyError: The model is still loading.
        """
        return self.model().source.manifest.max_tokens * self.settings.max_characters_per_token

    def model(self) -> Model:
        """Returns the serving model.

        Raises:
            NotReadyError: It is still loading.
        """
        return self.service.require_model()

    def served_name(self) -> str:
        """Returns the model's name in requests: that of NAME=DIR or ``--served-name``, or that of the bundle.

        Raises:
            NotReadyError: It is that of the bundle, which is still loading.
        """
        return self.service.served_name()

    def view(self, make: Callable[[Backend, Model], _T], model: Model | None = None) -> _T:
        """Returns what ``make`` derives from the serving model, made once for each model.

        Args:
            make: Derives something from a model, such as its tensors in a dialect; must not refer to the model.
            model: The model; None for the one that serves now.
        """
        model = model or self.model()
        if (views := self._views.get(make)) is None:
            views = self._views[make] = weakref.WeakKeyDictionary()
        # During a canary, callers of two models come in turn.
        if (view := views.get(model)) is None:
            view = views[model] = make(self, model)
        return view

    def statistics(self) -> Statistics:
        """Returns the counters of this process."""
        metrics = self.service.metrics
        reused = metrics.value("polyhead_shared_items_total") + metrics.value("polyhead_answer_cache_hits_total")
        return Statistics(
            texts=int(metrics.value("polyhead_items_total") + reused),
            batches=int(metrics.value("polyhead_batch_duration_seconds_count")),
            errors=sum(metrics.item_errors().values()),
            batch_s=metrics.value("polyhead_batch_duration_seconds_sum"),
            queue_s=metrics.value("polyhead_queue_seconds_sum"),
        )

    async def submit(self, submitter: Submitter, message: Message, deadline: float | None) -> Submission:
        """Submits the texts of one request of a stream, once the queue has capacity.

        Args:
            submitter: That of the stream.
            message: The texts.
            deadline: ``time.monotonic()`` second after which the answers are useless; None for that of the stream.
        """
        model, futures = await submitter.submit(message, time.monotonic_ns(), deadline)
        return Submission(model, futures, self.service.metrics)


def first_error(outcomes: Iterable[ItemOutcome]) -> tuple[int, ServerError] | None:
    """Returns the first error among outcomes and its position; None if there is none."""
    return next(((index, one) for index, one in enumerate(outcomes) if isinstance(one, ServerError)), None)


def of_text(index: int, error: ServerError) -> ServerError:
    """Returns a copy of an error with the position of its text in its message; several texts may share an error."""
    copy = type(error).__new__(type(error))
    copy.__dict__.update(error.__dict__)
    copy.args = (f"text {index}: {error}",)
    return copy


def deadline_after(*limits_s: float | None) -> float | None:
    """Returns the ``time.monotonic()`` second after the shortest of these limits; None without a limit."""
    known = [seconds for seconds in limits_s if seconds is not None]
    return time.monotonic() + min(known) if known else None
