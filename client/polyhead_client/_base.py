"""The common implementation of both clients, as coroutines over a runtime: configuration, unary and streaming calls.

``Client`` runs these coroutines in the calling thread, ``AsyncClient`` awaits them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, Unpack

from polyhead.v1 import inference_service_pb2 as service_pb2
from polyhead.v1 import item_pb2

from polyhead_client.core.batch_call import BatchCall
from polyhead_client.core.concurrency_limit import AdaptiveLimit, FixedLimit
from polyhead_client.core.hedging import HedgeAfter, Hedging
from polyhead_client.core.message_limits import MessageLimits
from polyhead_client.core.retry import DEFAULT_MAX_ATTEMPTS, Deadline, RetryBudget, RetryPolicy
from polyhead_client.core.stream_state import StreamState
from polyhead_client.transport import channel
from polyhead_client.transport.credentials import Tls, authorization
from polyhead_client.transport.pool import DEFAULT_CONNECTIONS
from polyhead_client.transport.runtime import Runtime

from . import conversion
from .choices import DEFAULT_TARGET
from .conversion import StreamRequest
from .errors import InvalidRequestError, PolyheadError
from .options import (
    AnalyzeOptions,
    StreamAnalyzeOptions,
    StreamEmbedOptions,
    StreamOptions,
    documented,
    resolve,
)
from .session import Session, StreamMethod
from .streaming import Stream
from .types import Answer, ModelInfo

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
    ) -> None:
        """Configures the client; it connects on first use.

        Args:
            target: ``HOST:PORT`` of the server, or any name that gRPC resolves: ``dns:///NAME:PORT`` for all addresses
                of a name, ``ipv4:10.0.0.1:50051,10.0.0.2:50051`` for a list, ``unix:/PATH`` for a Unix socket. Calls
                are distributed over several servers in turn, skipping those whose health service reports NOT_SERVING.
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

        Raises:
            InvalidRequestError: An argument has an invalid value.
        """
        if connections < 1:
            raise InvalidRequestError("INVALID_ARGUMENT", f"connections: {connections} is less than 1")
        RetryPolicy(max_attempts, RetryBudget(), Deadline(None))  # rejects an invalid number now, not in the first call
        metadata = authorization(api_key, target, tls, allow_plaintext_key)
        hedging = Hedging(hedge_after_s)
        credentials = tls.credentials() if tls else None
        options = channel.options(target, tls)
        runtime = self._create_runtime()
        channels = [runtime.open_channel(target, options, credentials) for _ in range(connections)]
        self._session = Session(runtime, channels, hedging=hedging, metadata=metadata, wait_for_ready=wait_for_ready)
        self._max_attempts = max_attempts
        self._limits = MessageLimits()

    @property
    def running_streams(self) -> int:
        """Number of streams whose answers are being iterated."""
        return self._session.running_streams

    @property
    def retry_tokens(self) -> float:
        """Tokens left in the throttle of this client's retries."""
        return self._session.budget.tokens

    @abstractmethod
    def _create_runtime(self) -> Runtime:
        """Returns the runtime of this client: threads or asyncio."""

    @abstractmethod
    def _answers(self, stream: Stream, texts: TextsT) -> AnswersT:
        """Returns the iterator that runs ``stream``."""

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
    def embed(self, texts: TextsT, **options: Unpack[StreamEmbedOptions]) -> AnswersT:
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
    def classify(self, texts: TextsT, **options: Unpack[StreamOptions]) -> AnswersT:
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
    def sentiment(self, texts: TextsT, **options: Unpack[StreamOptions]) -> AnswersT:
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
        reject_bare_str(texts)
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

        def start_call(stub: Any, requests: Any) -> Any:
            return self._session.start_stream(stub, method, requests, state.deadline)

        stream = Stream(self._session.runtime, state, template, self._session.pool, start_call)
        return self._answers(stream, texts)

    async def _analyze(self, texts: Any, options: AnalyzeOptions) -> list[Answer]:
        filled = resolve(AnalyzeOptions, options)
        retry = self._retry_policy(filled["deadline_s"])
        template = conversion.request_template(service_pb2.AnalyzeRequest, filled)
        reject_bare_str(texts)
        batch = BatchCall(template, texts, retry, self._limits)
        self._session.require_open()
        while (wait_s := batch.wait_s()) is not None:
            await self._session.wait(wait_s)
            for request in batch.requests():
                try:
                    response = await self._session.call("Analyze", request, retry)
                except PolyheadError as error:
                    batch.on_error(error)
                else:
                    batch.on_response(response)
        return batch.answers()

    async def _info(self, deadline_s: float | None) -> ModelInfo:
        self._session.require_open()
        request = service_pb2.GetModelInfoRequest()
        return conversion.model_info_of(
            await self._session.call("GetModelInfo", request, self._retry_policy(deadline_s))
        )

    def _retry_policy(self, deadline_s: float | None) -> RetryPolicy:
        """Returns the retry policy of a call that starts now."""
        return RetryPolicy(self._max_attempts, self._session.budget, Deadline(deadline_s))


def reject_bare_str(texts: object) -> None:
    """Rejects a single str: as an iterable of str it would be analyzed character by character."""
    if isinstance(texts, str):
        raise InvalidRequestError("INVALID_ARGUMENT", "texts: expected an iterable of texts, not one str; use [text]")
