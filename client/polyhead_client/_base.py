"""The common implementation of both clients, as coroutines over a runtime: configuration, unary and streaming calls.

``Client`` runs these coroutines in the calling thread, ``AsyncClient`` awaits them.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sized
from typing import Any, Generic, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray
from polyhead.v1 import inference_service_pb2 as service_pb2
from polyhead.v1 import item_pb2

from polyhead_client.core.batch_call import BatchCall
from polyhead_client.core.concurrency_limit import AdaptiveLimit, FixedLimit
from polyhead_client.core.hedging import HedgeAfter, Hedging
from polyhead_client.core.message_limits import MessageLimits
from polyhead_client.core.retry import DEFAULT_MAX_ATTEMPTS, Deadline, RetryBudget, RetryPolicy
from polyhead_client.core.stream_state import StreamState, require_text
from polyhead_client.transport import channel
from polyhead_client.transport.credentials import Tls, authorization, model_metadata
from polyhead_client.transport.diagnosis import Diagnosis
from polyhead_client.transport.pool import DEFAULT_CONNECTIONS
from polyhead_client.transport.runtime import Runtime
from polyhead_client.transport.target import parse

from . import conversion
from .choices import DEFAULT_TARGET, Task
from .conversion import StreamRequest
from .errors import InvalidRequestError, PolyheadError, require_integer
from .model_info import ModelInfo
from .options import (
    EmbedOptions,
    StreamAnalyzeOptions,
    StreamEmbedOptions,
    StreamOptions,
    documented,
    resolve,
)
from .session import Session, StreamMethod
from .streaming import Stream
from .types import Answer, embedding_matrix

# Maximum size of a stream's message: gRPC's cost per message hardly grows up to 32 items, and a larger message would
# delay the first of its items.
_STREAM_ITEMS, _STREAM_BYTES = 32, 256 * 2**10

TextsT = TypeVar("TextsT", bound=Any)
AnswersT = TypeVar("AnswersT")


class BaseClient(ABC, Generic[TextsT, AnswersT]):
    """Configuration and calls of a client.

    A streaming method reads texts as they come and yields answers as they come. A text is a ``str`` or ``(item_id,
    text)``; without an id of its own an item has its running number, ``"0"`` first. The input may be endless: it is
    read ahead by at most the items in flight plus one message. Texts that are waiting share a message, and no text is
    delayed to fill one. Closing the answers early cancels the call. An exception in the input ends the call with that
    exception. An item's error is part of its answer and ends nothing. When a connection breaks or a server goes away,
    the call continues on another one: unanswered items are sent again, and every item is answered once.
    """

    # Types of the inputs that streaming methods accept.
    _inputs: tuple[type[Any], ...] = (Iterable,)

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        wait_for_ready: bool = False,
        connections: int = DEFAULT_CONNECTIONS,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        hedge_after_s: HedgeAfter = None,
        tls: Tls | None = None,
        api_key: str | None = None,
        allow_plaintext_key: bool = False,
        model: str | None = None,
    ) -> None:
        """Configures the client; it connects on first use, in the process and event loop of that call.

        Args:
            target: ``HOST:PORT`` of the server, or another form that gRPC resolves: ``dns:///NAME:PORT`` for all
                addresses of a name, ``ipv4:10.0.0.1:50051,10.0.0.2:50051`` for a list, ``unix:/PATH`` for a socket.
                Calls are distributed over several servers in turn, skipping those whose health service reports
                NOT_SERVING.
            wait_for_ready: True waits for an unreachable server until the call's deadline; False tries ``max_attempts``
                times.
            connections: Maximum number of connections to each address. Each reaches one of the server's workers at
                random, so use several times the number of workers. A call uses the connection with the fewest running
                calls, and connections that are not needed are not opened; a stream stays on one.
            max_attempts: Maximum number of consecutive failed attempts for a call, a stream, or an item that an
                overloaded server rejects; 1 disables retries.
            hedge_after_s: Hedging: if a unary call has no response after this many seconds, it is sent a second time on
                another connection, and the first response wins. ``"p95"`` uses the 95th percentile of recent
                latencies. At most one call in twenty is hedged. None disables hedging.
            tls: TLS settings; ``Tls()`` for the default trusted roots, None for plain TCP.
            api_key: API key, sent with every call as ``authorization: Bearer KEY``.
            allow_plaintext_key: Allow sending the API key to another machine without TLS.
            model: Name of the model that answers, for a server with several; ``ModelInfo.model_names`` lists them. None
                for the server's first model.

        Raises:
            InvalidRequestError: An argument has an invalid value.
        """
        require_integer("connections", connections)
        RetryPolicy(max_attempts, RetryBudget(), Deadline(None))  # rejects an invalid number now, not in the first call
        given: object = tls
        if given is not None and not isinstance(given, Tls):
            problem = f"tls: expected Tls, not {type(given).__name__}; use tls=Tls()"
            raise InvalidRequestError("INVALID_ARGUMENT", problem)
        self._target = parse(target)
        self._metadata = authorization(api_key, self._target, tls, allow_plaintext_key) + model_metadata(model)
        self._tls = tls
        self._credentials = tls.credentials() if tls else None
        self._connections = connections
        self._wait_for_ready = wait_for_ready
        self._hedging = Hedging(hedge_after_s)
        self._diagnosis = Diagnosis(self._target, tls)
        self._budget = RetryBudget()
        self._max_attempts = max_attempts
        self._limits = MessageLimits()
        self._lock = threading.Lock()  # of the attributes below
        self._session: Session | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"<{type(self).__name__} target={self._target.text!r}{', tls' if self._tls else ''}{state}>"

    @property
    def target(self) -> str:
        """The target, as given."""
        return self._target.text

    @property
    def running_streams(self) -> int:
        """Number of streams whose answers are being iterated."""
        return self._session.running_streams if self._session else 0

    @property
    def retry_tokens(self) -> float:
        """Tokens left in the throttle of this client's retries."""
        return self._budget.tokens

    @abstractmethod
    def _create_runtime(self) -> Runtime:
        """Returns the runtime of this client: threads or asyncio."""

    @abstractmethod
    def _answers(self, open_stream: Callable[[], tuple[Session, Stream]], texts: TextsT) -> AnswersT:
        """Returns the iterator that opens a stream at its first step and runs it."""

    def _connected(self) -> Session:
        """Returns the session for this process and event loop, opened by the first call in it.

        Raises:
            InvalidRequestError: The client is closed, or is in use by another event loop.
        """
        with self._lock:
            if self._closed:
                raise InvalidRequestError("FAILED_PRECONDITION", "the client is closed; create a new one", "CLOSED")
            if self._session is None or not self._session.runtime.usable():
                runtime = self._create_runtime()
                options = channel.options(self._target, self._tls)
                channels = [
                    runtime.open_channel(self._target.text, options, self._credentials)
                    for _ in range(self._connections)
                ]
                self._session = Session(
                    runtime,
                    channels,
                    hedging=self._hedging,
                    diagnosis=self._diagnosis,
                    metadata=self._metadata,
                    wait_for_ready=self._wait_for_ready,
                )
            return self._session

    async def _close(self) -> None:
        """Ends all calls and closes the connections."""
        with self._lock:
            # Connections of a parent process, or of an event loop that has ended, are gone already.
            session = self._session if self._session and self._session.runtime.usable() else None
            self._closed, self._session = True, None
        if session is not None:
            await session.close()

    @documented(StreamAnalyzeOptions)
    def stream(self, texts: TextsT, **options: Unpack[StreamAnalyzeOptions]) -> AnswersT:
        """Streams texts and yields their answers, with the outputs of every requested task.

        Args:
            texts: The texts to analyze.
            **options: See ``StreamAnalyzeOptions``.

        Returns:
            An iterator of ``Answer``.

        Raises:
            InvalidRequestError: An option has an invalid value.
            PolyheadError: While iterating, when the call as a whole fails; the subclass tells how to react.
        """
        filled = resolve(StreamAnalyzeOptions, options)
        template = conversion.request_template(service_pb2.StreamAnalyzeRequest, filled)
        return self._open_stream("StreamAnalyze", template, texts, filled)

    @documented(StreamEmbedOptions)
    def stream_embed(self, texts: TextsT, **options: Unpack[StreamEmbedOptions]) -> AnswersT:
        """Streams texts and yields answers with their embeddings.

        Args:
            texts: The texts to embed.
            **options: See ``StreamEmbedOptions``.

        Returns:
            An iterator of ``Answer``.

        Raises:
            InvalidRequestError: An option has an invalid value.
            PolyheadError: While iterating, when the call as a whole fails; the subclass tells how to react.
        """
        filled = resolve(StreamEmbedOptions, options)
        template = conversion.request_template(service_pb2.StreamEmbedRequest, filled)
        return self._open_stream("StreamEmbed", template, texts, filled)

    @documented(StreamOptions)
    def stream_classify(self, texts: TextsT, **options: Unpack[StreamOptions]) -> AnswersT:
        """Streams texts and yields answers with their classifications.

        Args:
            texts: The texts to classify.
            **options: See ``StreamOptions``.

        Returns:
            An iterator of ``Answer``.

        Raises:
            InvalidRequestError: An option has an invalid value.
            PolyheadError: While iterating, when the call as a whole fails; the subclass tells how to react.
        """
        filled = resolve(StreamOptions, options)
        template = conversion.request_template(service_pb2.StreamClassifyRequest, filled)
        return self._open_stream("StreamClassify", template, texts, filled)

    @documented(StreamOptions)
    def stream_sentiment(self, texts: TextsT, **options: Unpack[StreamOptions]) -> AnswersT:
        """Streams texts and yields answers with their sentiments.

        Args:
            texts: The texts to rate.
            **options: See ``StreamOptions``.

        Returns:
            An iterator of ``Answer``.

        Raises:
            InvalidRequestError: An option has an invalid value.
            PolyheadError: While iterating, when the call as a whole fails; the subclass tells how to react.
        """
        filled = resolve(StreamOptions, options)
        template = conversion.request_template(service_pb2.StreamSentimentRequest, filled)
        return self._open_stream("StreamSentiment", template, texts, filled)

    def _open_stream(
        self, method: StreamMethod, template: StreamRequest, texts: TextsT, options: Mapping[str, Any]
    ) -> AnswersT:
        # The client restores the order: an answer that waited for others at the server would count as in flight.
        template.order = item_pb2.ANSWER_ORDER_COMPLETION
        max_in_flight = options["max_in_flight"]
        state = StreamState(
            options["order"],
            AdaptiveLimit() if max_in_flight is None else FixedLimit(max_in_flight),
            self._retry_policy(options["deadline_s"]),
            max_items=_STREAM_ITEMS,
            max_bytes=_STREAM_BYTES,
            limits=self._limits,
        )

        reject_invalid_texts(texts, self._inputs)

        def open_stream() -> tuple[Session, Stream]:
            session = self._connected()

            def start_call(stub: Any, requests: Any) -> Any:
                return session.start_stream(stub, method, requests, state.deadline)

            return session, Stream(
                session.runtime, state, template, session.pool, start_call=start_call, explain=session.explain
            )

        return self._answers(open_stream, texts)

    async def _analyze(self, texts: Any, kind: type[Any], options: Mapping[str, Any], *tasks: Task) -> list[Answer]:
        """Makes the unary calls for a batch of texts.

        Args:
            texts: The texts.
            kind: Type of the options.
            options: The options that were given.
            *tasks: The tasks of a method that does not take them as an option.
        """
        filled = resolve(kind, options)
        retry = self._retry_policy(filled["deadline_s"])
        template = conversion.request_template(service_pb2.AnalyzeRequest, {"tasks": tasks, **filled})
        reject_invalid_texts(texts, (Iterable,))
        batch = BatchCall(template, texts, retry, self._limits)
        session = self._connected()
        while (wait_s := batch.wait_s()) is not None:
            await session.wait(wait_s)
            for request in batch.requests():
                try:
                    response = await session.call("Analyze", request, retry)
                except PolyheadError as error:
                    batch.on_error(error)
                else:
                    batch.on_response(response)
        return batch.answers()

    async def _embeddings(self, texts: Any, options: Mapping[str, Any]) -> NDArray[np.float32]:
        answers = await self._analyze(texts, EmbedOptions, options, "embedding")
        if answers:
            return embedding_matrix(answers)
        dimensions = options.get("dimensions")
        if dimensions is None:
            dimensions = (await self._info(resolve(EmbedOptions, options)["deadline_s"])).embedding.dimensions
        return np.empty((0, dimensions), np.float32)

    async def _info(self, deadline_s: float | None) -> ModelInfo:
        session = self._connected()
        request = service_pb2.GetModelInfoRequest()
        return conversion.model_info_of(await session.call("GetModelInfo", request, self._retry_policy(deadline_s)))

    def _retry_policy(self, deadline_s: float | None) -> RetryPolicy:
        """Returns the retry policy of a call that starts now."""
        return RetryPolicy(self._max_attempts, self._budget, Deadline(deadline_s))


def reject_invalid_texts(texts: object, kinds: tuple[type[Any], ...]) -> None:
    """Rejects what is no collection of texts, and the first invalid element of a collection, before anything is sent.

    A single str is an iterable of its characters, bytes one of numbers, and a mapping or table one of its keys.

    Args:
        texts: The input of a call.
        kinds: ``Iterable``, and ``AsyncIterable`` where the call accepts it.

    Raises:
        InvalidRequestError: The message names the element.
    """
    advice = ""
    if isinstance(texts, str):
        advice = "; use [text]"
    elif isinstance(texts, bytes | bytearray | Mapping) or hasattr(texts, "columns"):
        advice = "; pass its texts alone"
    elif isinstance(texts, AsyncIterable) and AsyncIterable not in kinds:
        advice = "; the streaming methods of AsyncClient accept it"
    elif isinstance(texts, kinds) and getattr(texts, "ndim", 1) == 1:
        if isinstance(texts, Sized):  # a generator, which cannot be read twice, is checked while it is read
            for number, text in enumerate(texts):  # type: ignore[arg-type, var-annotated]
                require_text(number, text)
        return
    what = "one str" if isinstance(texts, str) else type(texts).__name__
    problem = f"texts: expected an iterable of texts, not {what}{advice}"
    raise InvalidRequestError("INVALID_ARGUMENT", problem, "INVALID_TEXT")
