"""What the sync and the asyncio client have in common: how they are set up, and their streaming calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Literal, TypeVar

import grpc
from polyhead.v1 import inference_service_pb2 as service_pb2
from polyhead.v1 import inference_service_pb2_grpc as service_grpc
from polyhead.v1 import item_pb2

from polyhead_client.core.concurrency_limit import AdaptiveWindow, FixedWindow
from polyhead_client.core.hedging import HedgeAfter, Hedging
from polyhead_client.core.message_limits import MessageLimits
from polyhead_client.core.retry import DEFAULT_MAX_ATTEMPTS, Deadline, Retries, RetryBudget
from polyhead_client.core.stream_state import StreamState
from polyhead_client.transport import channel
from polyhead_client.transport.credentials import Tls, authorization
from polyhead_client.transport.pool import DEFAULT_CONNECTIONS, Connections

from . import conversion
from .conversion import Encoding, Order, StreamRequest, Task, TruncationPolicy
from .errors import InvalidRequestError, UnavailableError
from .model_info import ModelInfo
from .types import Fingerprints

# Where a server listens unless it is told otherwise.
DEFAULT_TARGET = "127.0.0.1:50051"

# A stream's message: 32 items cost gRPC about as much as one, and more would make the first of them wait.
_STREAM_ITEMS, _STREAM_BYTES = 32, 256 * 2**10

TextsT = TypeVar("TextsT", bound=Any)
AnswersT = TypeVar("AnswersT")

StreamMethod = Literal["StreamAnalyze", "StreamEmbed", "StreamClassify", "StreamSentiment"]
UnaryMethod = Literal["Analyze", "GetModelInfo"]


class Calls(ABC, Generic[TextsT, AnswersT]):
    """A client's set-up and its streaming calls.

    A streaming call takes texts as they come and gives answers as they come; a text is a ``str``, or ``(item_id,
    text)``. Without an id of its own an item has its running number, ``"0"`` first. The input may be endless: it is
    read no further ahead than what may be in flight and one message more. What waits is gathered into one message
    without delay. Closing the answers early cancels the call. An input that raises ends the call with what it raised.
    One item's error is in its answer, and ends nothing. When the connection breaks or the server goes away, the call
    goes on over another one: what was sent and not answered is sent again, and every item is answered once.
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
        """Connects when it is first used.

        Args:
            target: ``HOST:PORT`` of the server, or any name that gRPC resolves: ``dns:///NAME:PORT`` for all addresses
                of a name, ``ipv4:10.0.0.1:50051,10.0.0.2:50051`` for a list, ``unix:/PATH``. Of several servers each
                gets its turn, but none whose health service says that it does not serve.
            wait_for_ready: True waits, until a call's deadline, for a server that is not there yet; False tries
                ``max_attempts`` times.
            connections: To each address, at the most. Each reaches one of a server's workers, at random: take some
                times as many as there are workers. A call takes the one with the fewest running, so that what is not
                needed is not opened; a stream stays on one.
            max_attempts: In a row and in vain, for a call, a stream or an item that the server is too busy for; 1 tries
                nothing again.
            hedge_after_s: After so many seconds, or after what 95 % of recent calls took with ``"p95"``, a unary call
                that was not answered is made a second time over another connection, and the first answer counts. At
                most one call in twenty. None never does.
            tls: Files and names for TLS, also with ``Tls()`` alone; None for plain TCP.
            api_key: Sent with every call as ``authorization: Bearer KEY``.
            allow_plaintext_key: Whether a key may leave this machine without TLS.

        Raises:
            InvalidRequestError: An argument cannot be used.
        """
        if connections < 1:
            raise InvalidRequestError("INVALID_ARGUMENT", f"connections: {connections} is less than 1")
        self._closing = self._event()
        self._wait_for_ready = wait_for_ready
        self._metadata = authorization(api_key, target, tls, allow_plaintext_key)
        self._max_attempts = max_attempts
        self._budget = RetryBudget()
        self._limits = MessageLimits()
        self._streams: set[Callable[[], Any]] = set()  # what ends each that is running
        self._hedging = Hedging(hedge_after_s)
        self._retries(None)  # refuses a number of attempts now, not at the first call
        credentials = tls.credentials() if tls else None
        options = channel.options(target, tls)
        self._channels = [self._channel(target, options, credentials) for _ in range(connections)]
        self._connections = Connections([service_grpc.InferenceServiceStub(one) for one in self._channels])

    @abstractmethod
    def _channel(self, target: str, options: list[tuple[str, Any]], credentials: grpc.ChannelCredentials | None) -> Any:
        """A channel that connects when it is first used."""

    @abstractmethod
    def _event(self) -> Any:
        """An event, of threads or of tasks: it wakes what waits when this is closed."""

    def _retries(self, deadline_s: float | None) -> Retries:
        """The decisions for a call that begins now."""
        return Retries(self._max_attempts, self._budget, Deadline(deadline_s))

    def _options(self, deadline: Deadline) -> dict[str, Any]:
        """What every call tells gRPC."""
        return {
            "timeout": deadline.left_s(),
            "wait_for_ready": self._wait_for_ready,
            "metadata": self._metadata,
        }

    def _shut(self) -> None:
        """Lets no call begin, and none be tried again."""
        self._closing.set()
        self._budget.stop()

    def _require_open(self) -> None:
        """Lets no call begin on a closed client."""
        if self._closing.is_set():
            raise InvalidRequestError("FAILED_PRECONDITION", "the client is closed; make a new one")

    def _require_still_open(self) -> None:
        """Ends a call whose client was closed meanwhile."""
        if self._closing.is_set():
            raise closed_meanwhile()

    @contextmanager
    def _running(self, end: Callable[[], Any]) -> Iterator[None]:
        """The length of a stream, which ``close`` ends with ``end``."""
        self._streams.add(end)
        try:
            self._require_open()
            yield
        finally:
            self._streams.discard(end)

    @abstractmethod
    def _stream(self, method: StreamMethod, template: StreamRequest, flow: StreamState, texts: TextsT) -> AnswersT:
        """Runs a streaming call, asking for each text what ``template`` asks for."""

    def stream(
        self,
        texts: TextsT,
        *,
        tasks: Iterable[Task] = (),
        order: Order = "request",
        truncation: TruncationPolicy = "truncate",
        include_timings: bool = False,
        encoding: Encoding = "float32",
        dimensions: int | None = None,
        expected_fingerprints: Fingerprints | ModelInfo | None = None,
        max_in_flight: int | None = None,
        deadline_s: float | None = None,
    ) -> AnswersT:
        """Streams texts, and their answers with every task asked for.

        Args:
            texts: To analyze.
            tasks: Any of ``"embedding"``, ``"classification"``, ``"sentiment"``; none means all that the model has.
            order: Of the answers: ``"request"``, or ``"completion"`` to have each as soon as it is done.
            truncation: ``"truncate"`` reads the beginning of a text that is too long, ``"error"`` refuses it,
                ``"window"`` reads it in overlapping windows and pools their answers.
            include_timings: Whether to say where the time went.
            encoding: Of embeddings on the wire: ``"float32"``, ``"float16"`` for half the bytes, ``"int8"`` for a
                quarter, ``"binary"`` for the signs alone, which come as -1 and 1.
            dimensions: Of embeddings: the first so many; None for all.
            expected_fingerprints: Of a model, or of an answer: an item that anything else would answer is refused with
                ``FINGERPRINT_MISMATCH``. What is empty in it may be anything.
            max_in_flight: Items that may be sent and not yet answered; None begins with few, and takes more as long as
                that brings throughput. In request order, up to five times as many texts are taken from the input.
            deadline_s: Seconds for the whole stream; None for no limit.

        Returns:
            An iterator of ``Answer``.

        Raises:
            InvalidRequestError: An option has a value that is not known.
            PolyheadError: While iterating, when the call as a whole fails; its subclass says what can be done.
        """
        request = service_pb2.StreamAnalyzeRequest(
            tasks=conversion.task_numbers(tasks),
            options=conversion.item_options(truncation, include_timings, expected_fingerprints),
            embedding_options=conversion.embedding_options(encoding, dimensions),
        )
        return self._checked(
            "StreamAnalyze", request, texts, order=order, max_in_flight=max_in_flight, deadline_s=deadline_s
        )

    def embed(
        self,
        texts: TextsT,
        *,
        order: Order = "request",
        truncation: TruncationPolicy = "truncate",
        include_timings: bool = False,
        encoding: Encoding = "float32",
        dimensions: int | None = None,
        expected_fingerprints: Fingerprints | ModelInfo | None = None,
        max_in_flight: int | None = None,
        deadline_s: float | None = None,
    ) -> AnswersT:
        """Streams texts, and their embeddings. Arguments and errors as in ``stream``."""
        request = service_pb2.StreamEmbedRequest(
            options=conversion.item_options(truncation, include_timings, expected_fingerprints),
            embedding_options=conversion.embedding_options(encoding, dimensions),
        )
        return self._checked(
            "StreamEmbed", request, texts, order=order, max_in_flight=max_in_flight, deadline_s=deadline_s
        )

    def classify(
        self,
        texts: TextsT,
        *,
        order: Order = "request",
        truncation: TruncationPolicy = "truncate",
        include_timings: bool = False,
        expected_fingerprints: Fingerprints | ModelInfo | None = None,
        max_in_flight: int | None = None,
        deadline_s: float | None = None,
    ) -> AnswersT:
        """Streams texts, and their classes. Arguments and errors as in ``stream``."""
        request = service_pb2.StreamClassifyRequest(
            options=conversion.item_options(truncation, include_timings, expected_fingerprints),
        )
        return self._checked(
            "StreamClassify", request, texts, order=order, max_in_flight=max_in_flight, deadline_s=deadline_s
        )

    def sentiment(
        self,
        texts: TextsT,
        *,
        order: Order = "request",
        truncation: TruncationPolicy = "truncate",
        include_timings: bool = False,
        expected_fingerprints: Fingerprints | ModelInfo | None = None,
        max_in_flight: int | None = None,
        deadline_s: float | None = None,
    ) -> AnswersT:
        """Streams texts, and their sentiments. Arguments and errors as in ``stream``."""
        request = service_pb2.StreamSentimentRequest(
            options=conversion.item_options(truncation, include_timings, expected_fingerprints),
        )
        return self._checked(
            "StreamSentiment", request, texts, order=order, max_in_flight=max_in_flight, deadline_s=deadline_s
        )

    def _checked(
        self,
        method: StreamMethod,
        template: StreamRequest,
        texts: TextsT,
        *,
        order: Order,
        max_in_flight: int | None,
        deadline_s: float | None,
    ) -> AnswersT:
        reject_bare_str(texts)
        # The order is made here: an answer that waited for others at the server would count as in flight meanwhile.
        template.order = item_pb2.ANSWER_ORDER_COMPLETION
        window = AdaptiveWindow() if max_in_flight is None else FixedWindow(max_in_flight)
        flow = StreamState(
            order,
            window,
            self._retries(deadline_s),
            max_items=_STREAM_ITEMS,
            max_bytes=_STREAM_BYTES,
            limits=self._limits,
        )
        return self._stream(method, template, flow, texts)


def closed_meanwhile() -> UnavailableError:
    """The error of a call whose client was closed before its end."""
    return UnavailableError("CANCELLED", "the client was closed before the call ended")


def reject_bare_str(texts: object) -> None:
    """Refuses a lone str: it is an iterable of str too, and each of its characters would be answered."""
    if isinstance(texts, str):
        raise InvalidRequestError("INVALID_ARGUMENT", "texts: one str is given; write [text]")
