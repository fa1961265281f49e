"""``polyhead.v1.InferenceService``: decoded messages in, encoded answers out; the pipeline computes them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, cast

from grpc import aio
from polyhead.v1 import inference_service_pb2

from polyhead_server.candidate.routing import ROUTING_KEY
from polyhead_server.errors import (
    DrainingError,
    ModelReplacedError,
    NotReadyError,
    OverloadedError,
    ServerError,
    StreamAgeError,
)
from polyhead_server.inference.intake import Intake, Observer
from polyhead_server.inference.loop_turns import LoopTurns
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import (
    MAX_PART_ITEMS,
    Flow,
    InvalidItem,
    Item,
    ItemOutcome,
    Message,
    RequestOptions,
)
from polyhead_server.observability.metrics import Metrics
from polyhead_server.process_reports import WorkerStats
from polyhead_server.settings import Settings

from . import model_info, worker_stats
from .active_calls import ActiveCalls, when_done
from .held_bytes import HeldBytes
from .response_buffer import ResponseBuffer
from .serving_model import Canary, ServingModel
from .stream import StreamReader, Submitter, write_answers

_Context = aio.ServicerContext[Any, Any]
_NO_BLOCK: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class InferenceService:
    """The service's RPCs over the pipeline of one model, which arrives when it is ready and which a reload may replace.

    Attributes:
        metrics: Counts requests, items and errors.
        max_items: Maximum number of items in a message.
        held_bytes: Counts the responses that clients have not read yet.
        observers: Observers of the serving pipeline, see ``Intake.observers``; also of those that replace it.
        canary_observers: Observers of the pipeline of a canary.
        canary: The model that answers a share of the calls instead; None for no canary.
        model_names: Returns the names of all models of the server, the default first.
    """

    def __init__(self, settings: Settings, metrics: Metrics, beside: InferenceService | None = None) -> None:
        """Creates the service of one model.

        Args:
            settings: The model's.
            metrics: The model's.
            beside: The service of another model of the same process, with which it shares the count of calls in
                progress and what is held for their clients.
        """
        self.metrics = metrics
        self.max_items = settings.max_items_per_message
        self.held_bytes: HeldBytes = (
            beside.held_bytes if beside else HeldBytes(settings.max_held_bytes, settings.max_message_bytes)
        )
        self.model_names: Callable[[], list[str]] = lambda: [self.served_name()]
        self._settings = settings
        self.observers: list[Observer] = []
        self.canary_observers: list[Observer] = []
        self.canary: Canary | None = None
        self._model: ServingModel | None = None
        self._max_text_bytes = 0
        self._readers: set[asyncio.Task[None]] = set()
        self._draining = False
        self._started = time.monotonic()
        self._calls: ActiveCalls = beside._calls if beside else ActiveCalls(metrics.set_requests_running)
        self._turns: LoopTurns = beside._turns if beside else LoopTurns()

    @property
    def pipeline(self) -> Intake | None:
        """The pipeline that answers now; None before the model is ready."""
        return self._model.pipeline if self._model else None

    def require_model(self) -> Model:
        """Returns the model that answers the current call, or one that begins now.

        Raises:
            NotReadyError: No model serves yet.
        """
        return self._route().pipeline.model

    def served_name(self) -> str:
        """Returns the model's name in requests: the one in its settings, or that of the bundle.

        Raises:
            NotReadyError: It is that of the bundle, which is still loading.
        """
        return self._settings.served_name or self._require_model().pipeline.model.source.manifest.name

    def model_ids(self) -> list[str]:
        """Returns the id of the served model, and that of the model of a canary, whichever answers the current call.

        Raises:
            NotReadyError: No model serves yet.
        """
        answering = [self._require_model(), *([self.canary.model] if self.canary else [])]
        return [one.pipeline.model.source.model_id for one in answering]

    def max_text_bytes(self) -> int:
        """Returns how many bytes of a text to decode: 4 for each code point, of which one detects truncation."""
        return self._max_text_bytes

    def serve(self, pipeline: Intake) -> None:
        """Answers new messages with this pipeline; messages that were accepted before keep the previous one."""
        pipeline.observers = self.observers
        self._model = ServingModel.from_pipeline(pipeline)
        max_characters = pipeline.model.source.manifest.max_tokens * self._settings.max_characters_per_token
        self._max_text_bytes = 4 * (max_characters + 1)

    def observe(self, observer: Observer) -> None:
        """Adds an observer of all texts, whether the served model or that of a canary answers them."""
        self.observers.append(observer)
        self.canary_observers.append(observer)

    def route_canary(self, pipeline: Intake, share: float) -> None:
        """Answers calls whose key belongs to a share, 0 to 1, with another pipeline; see ``candidate.routing``."""
        pipeline.observers = self.canary_observers
        self.canary = Canary(ServingModel.from_pipeline(pipeline), share)

    def drain(self) -> None:
        """Stops accepting items: each stream ends with UNAVAILABLE once its accepted items have been answered."""
        self._draining = True
        for reader in self._readers:
            reader.cancel()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no call is in progress; returns False if that takes longer than the timeout."""
        return await self._calls.wait_idle(timeout_s)

    @property
    def calls_in_progress(self) -> int:
        """Number of calls in progress, of all models of the process."""
        return self._calls.count

    def stats(self) -> WorkerStats:
        """Returns the current statistics.

        Raises:
            NotReadyError: No model serves yet.
        """
        return worker_stats.collect(
            self._require_model().pipeline,
            self.metrics,
            name=self.served_name(),
            serving=not self._draining,
            up_time_s=time.monotonic() - self._started,
            requests_running=self.calls_in_progress,
        )

    async def analyze(self, message: Message, context: _Context) -> bytes:
        """Answers a unary call: every item of one message, in request order. Returns the serialized response."""
        self._begin(context)
        self.held_bytes.require_room()
        message = await self._decode(message)
        model, message, outcomes = await self._answer(message, _deadline(context), ServingModel.check_unary)
        encoder = model.encoder.for_options(message.options)
        answers: list[bytes] = []
        for begin in range(0, len(outcomes), MAX_PART_ITEMS):
            if begin:
                await self._turns.next()
            part = slice(begin, begin + MAX_PART_ITEMS)
            answers += [
                encoder.encode(item.item_id, outcome)
                for item, outcome in zip(message.items[part], outcomes[part], strict=True)
            ]
        response = b"".join(answers)
        self.held_bytes.hold(len(response))
        return response

    async def answer(self, message: Message, deadline: float | None) -> tuple[Model, Sequence[ItemOutcome]]:
        """Answers the items of one message for a transport with an encoding of its own, inside of ``tracked``.

        Args:
            message: The items.
            deadline: ``time.monotonic()`` second after which the answers are useless; None for no deadline.

        Returns:
            The model, and one outcome for each item.

        Raises:
            DrainingError: The server is shutting down.
            NotReadyError: No model serves yet.
            OverloadedError: No item was accepted.
        """
        self._accepting_model()
        message = await self._decode(message)
        serving, _, outcomes = await self._answer(message, deadline, ServingModel.check)
        return serving.pipeline.model, outcomes

    async def _decode(self, message: Message) -> Message:
        """Decodes the items of a message, part by part; those of a tuple are decoded already."""
        if isinstance(message.items, tuple) and len(message.items) <= MAX_PART_ITEMS:
            return message
        items: list[Item | InvalidItem] = []
        for number, part in enumerate(message.parts()):
            if number:
                await self._turns.next()
            items += part.items
        if len(items) > MAX_PART_ITEMS:
            await self._turns.next()
        return dataclasses.replace(message, items=items)

    async def _answer(
        self, message: Message, deadline: float | None, check: Callable[[ServingModel, Message], Message]
    ) -> tuple[ServingModel, Message, Sequence[ItemOutcome]]:
        """Answers the items of a unary call with the model that serves now, after ``check`` has accepted the message.

        Where another model has replaced it before it answered, that one answers all of them.
        """
        while True:
            model = self._route(message.options)
            checked = check(model, message)
            outcomes = await _outcomes(model.pipeline, checked, deadline)
            errors = [outcome for outcome in outcomes if isinstance(outcome, ServerError)]
            if not any(isinstance(error, ModelReplacedError) for error in errors):
                break
            await model.pipeline.wait_until_replaced()
        self.metrics.count_outcomes(outcomes)
        overloaded = [error for error in errors if isinstance(error, OverloadedError)]
        if overloaded and len(overloaded) == len(outcomes):
            # No item was accepted, so the call as a whole fails: gRPC clients then know when to retry.
            raise overloaded[0]
        return model, checked, outcomes

    def tracked(self, context: _Context | None = None) -> contextlib.AbstractContextManager[None]:
        """Counts a call as running: until its last byte has been sent if it has a context, otherwise in a block."""
        if context is None:
            return self._calls
        self._calls.begin()
        when_done(context, self._calls.end)
        return _NO_BLOCK

    @contextlib.asynccontextmanager
    async def session(
        self,
        read: Callable[[Submitter], Awaitable[None]],
        deadline: float | None,
        on_end: Callable[[], None],
        *,
        has_age: bool = True,
    ) -> AsyncIterator[asyncio.Task[None]]:
        """Runs the reading half of a stream in a task, which a drain cancels.

        Args:
            read: Reads requests and submits their items.
            deadline: ``time.monotonic()`` second at which the stream expires; None for no deadline.
            on_end: Called when the task has ended.
            has_age: Whether the stream ends with its age, which leaves time to the connection's; HTTP's have none.

        Yields:
            The task. Outside of the block it has ended.

        Raises:
            DrainingError: The server is shutting down.
            NotReadyError: No model serves yet.
        """
        self._accepting_model()
        submitter = self.submitter(deadline)
        task: asyncio.Task[None] = asyncio.create_task(cast(Any, read(submitter)))
        task.add_done_callback(lambda _: on_end())
        with self._reading(task, has_age=has_age):
            yield task

    def submitter(self, deadline: float | None) -> Submitter:
        """Returns what submits the messages of a stream to this model.

        Args:
            deadline: ``time.monotonic()`` second at which the stream expires; None for no deadline.
        """
        return Submitter(self._route, deadline, self._turns)

    @contextlib.contextmanager
    def _reading(self, task: asyncio.Task[None], *, has_age: bool = True) -> Iterator[None]:
        """Registers the reading half of a stream, which ends with a drain, with the stream's age, or with the block."""
        self._readers.add(task)
        age_s = self._settings.stream_age_s() if has_age else None
        end = asyncio.get_running_loop().call_later(age_s, task.cancel) if age_s else None
        try:
            yield
        finally:
            self._readers.discard(task)
            task.cancel()
            if end:
                end.cancel()

    async def stream(self, messages: AsyncIterator[Message], context: _Context) -> None:
        """Answers a bidirectional stream: one task reads and submits items, this one writes their answers."""
        self._begin(context)
        buffer = ResponseBuffer(self._settings.stream_window)
        submitter = self.submitter(_deadline(context))
        reader = StreamReader(buffer, submitter, self._turns)
        task = asyncio.create_task(reader.run(messages))
        # A task that is cancelled before its first step never runs, so it cannot close the buffer itself.
        task.add_done_callback(lambda task: buffer.close(self.end_reason()) if task.cancelled() else None)
        with self._reading(task):
            try:
                await write_answers(buffer, context, self.metrics, self._turns)
            finally:
                buffer.cancel()

    async def get_model_info(self, _: Any, context: _Context) -> Any:
        """Describes the serving model."""
        model = self._begin(context)
        info = model_info.describe(model.pipeline.model, model.encoder, self._settings)
        return inference_service_pb2.GetModelInfoResponse(
            model=info, name=self.served_name(), model_names=self.model_names()
        )

    def _begin(self, context: _Context) -> ServingModel:
        """Counts a call as running until its last byte has been sent, and returns the model that serves at its start.

        Raises:
            DrainingError: The server is shutting down.
            NotReadyError: No model serves yet.
        """
        model = self._accepting_model()
        self.tracked(context)
        return model

    def _accepting_model(self) -> ServingModel:
        if self._draining:
            raise DrainingError
        return self._route()

    def end_reason(self) -> ServerError:
        """Why a stream whose client has not ended it accepts no more items."""
        return DrainingError() if self._draining else StreamAgeError()

    def _route(self, options: RequestOptions | None = None) -> ServingModel:
        """Returns the model that answers the current call.

        Args:
            options: Those of the message. One that states fingerprints is answered by the served model.
        """
        served, canary = self._require_model(), self.canary
        pinned = options is not None and (options.expected_space or options.expected_heads)
        if canary is None or pinned or not canary.answers(ROUTING_KEY.get()):
            return served
        return canary.model

    def _require_model(self) -> ServingModel:
        if self._model is None:
            raise NotReadyError
        return self._model


def _deadline(context: _Context) -> float | None:
    """The call's deadline as a ``time.monotonic()`` second; None if it has none."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else time.monotonic() + remaining_s


async def _outcomes(pipeline: Intake, message: Message, deadline: float | None) -> Sequence[ItemOutcome]:
    """Returns the outcome of each item of a unary call."""
    if message.error:
        return [message.error] * len(message.items)
    futures = await pipeline.submit(message, Flow(unary=True), deadline)
    try:
        return [await future for future in futures]
    except asyncio.CancelledError:
        # Removes the items of a cancelled call from the queue.
        for future in futures:
            future.cancel()
        raise
