"""What the sync and the asyncio client have in common: the streaming calls, and the shape of a unary one."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Literal, TypeVar

from polyhead.v1 import inference_service_pb2 as service_pb2

from . import conversion
from .conversion import Encoding, Order, StreamRequest, Task, TruncationPolicy
from .errors import InvalidRequestError
from .flow import Flow, Text
from .results import Answer

# Where a server listens unless it is told otherwise.
DEFAULT_TARGET = "127.0.0.1:50051"
# No unary call waits for ever; half a minute is as long as a server lets an item wait by default.
DEFAULT_DEADLINE_S = 30.0
# Enough to keep a server busy over a slow network, little enough to start over when it dies.
DEFAULT_MAX_IN_FLIGHT = 256

# A stream's message: 32 items cost gRPC about as much as one, and more would make the first of them wait.
_STREAM_ITEMS, _STREAM_BYTES = 32, 256 * 2**10
# A unary message: the server's limit of items; and bytes that every gRPC server takes.
_UNARY_ITEMS, _UNARY_BYTES = 1024, 4 * 2**20

TextsT = TypeVar("TextsT", bound=Any)
AnswersT = TypeVar("AnswersT")

StreamMethod = Literal["StreamAnalyze", "StreamEmbed", "StreamClassify", "StreamSentiment"]


def stream_flow(order: Order, max_in_flight: int) -> Flow:
    """An empty flow for a stream."""
    return Flow(order, max_in_flight, _STREAM_ITEMS, _STREAM_BYTES)


class Analysis:
    """A unary analysis: as many calls as its texts need, one after the other, with one deadline for all."""

    def __init__(
        self,
        texts: Iterable[Text],
        *,
        tasks: Iterable[Task],
        truncation: TruncationPolicy,
        include_timings: bool,
        encoding: Encoding,
        dimensions: int | None,
        deadline_s: float | None,
    ) -> None:
        _require_several(texts)
        self._template = service_pb2.AnalyzeRequest(
            tasks=conversion.task_numbers(tasks),
            options=conversion.item_options(truncation, include_timings),
            embedding_options=conversion.embedding_options(encoding, dimensions),
        )
        self._flow = Flow("request", sys.maxsize, _UNARY_ITEMS, _UNARY_BYTES)
        for text in texts:
            self._flow.offer(text)
        self._flow.end_input()
        self._end = None if deadline_s is None else time.monotonic() + deadline_s

    def requests(self) -> Iterator[service_pb2.AnalyzeRequest]:
        """The messages to send."""
        while items := self._flow.take():
            yield conversion.with_items(self._template, items)

    def left_s(self) -> float | None:
        """Seconds until the deadline; None when there is none."""
        return None if self._end is None else self._end - time.monotonic()

    def accept(self, response: service_pb2.AnalyzeResponse) -> None:
        """Takes in the response to the last message."""
        self._flow.accept(conversion.answers_of(response))

    def answers(self) -> list[Answer]:
        """All answers, in order, after the last response."""
        self._flow.end_answers()
        if self._flow.error is not None:
            raise self._flow.error
        return self._flow.collect()


class StreamCalls(ABC, Generic[TextsT, AnswersT]):
    """The streaming calls of a client.

    Each takes texts as they come and gives answers as they come; a text is a ``str``, or ``(item_id, text)``. Without
    an id of its own an item has its running number, ``"0"`` first. The input may be endless: it is read no further
    ahead than what may be in flight and one message more. What waits is gathered into one message without delay.
    Closing the answers early cancels the call. An input that raises ends the call with what it raised. One item's error
    is in its answer, and ends nothing.
    """

    _closed = False

    def _require_open(self) -> None:
        if self._closed:
            raise InvalidRequestError("FAILED_PRECONDITION", "the client is closed; make a new one")

    @abstractmethod
    def _stream(
        self, method: StreamMethod, template: StreamRequest, flow: Flow, texts: TextsT, deadline_s: float | None
    ) -> AnswersT:
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
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        deadline_s: float | None = None,
    ) -> AnswersT:
        """Streams texts, and their answers with every task asked for.

        Args:
            texts: To analyze.
            tasks: Any of ``"embedding"``, ``"classification"``, ``"sentiment"``; none means all that the model has.
            order: Of the answers: ``"request"``, or ``"finished"`` to have each as soon as it is done.
            truncation: ``"truncate"`` reads the beginning of a text that is too long, ``"error"`` refuses it.
            include_timings: Whether to say where the time went.
            encoding: Of embeddings on the wire: ``"float32"``, ``"float16"`` for half the bytes, ``"int8"`` for a
                quarter, ``"binary"`` for the signs alone, which come as -1 and 1.
            dimensions: Of embeddings: the first so many; None for all.
            max_in_flight: Items that may be sent and not yet answered.
            deadline_s: Seconds for the whole stream; None for no limit.

        Returns:
            An iterator of ``Answer``.

        Raises:
            InvalidRequestError: An option has a value that is not known.
            PolyheadError: While iterating, when the call as a whole fails; its subclass says what can be done.
        """
        request = service_pb2.StreamAnalyzeRequest(
            tasks=conversion.task_numbers(tasks),
            options=conversion.item_options(truncation, include_timings),
            embedding_options=conversion.embedding_options(encoding, dimensions),
            order=conversion.answer_order(order),
        )
        return self._checked("StreamAnalyze", request, stream_flow(order, max_in_flight), texts, deadline_s)

    def embed(
        self,
        texts: TextsT,
        *,
        order: Order = "request",
        truncation: TruncationPolicy = "truncate",
        include_timings: bool = False,
        encoding: Encoding = "float32",
        dimensions: int | None = None,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        deadline_s: float | None = None,
    ) -> AnswersT:
        """Streams texts, and their embeddings. Arguments and errors as in ``stream``."""
        request = service_pb2.StreamEmbedRequest(
            options=conversion.item_options(truncation, include_timings),
            embedding_options=conversion.embedding_options(encoding, dimensions),
            order=conversion.answer_order(order),
        )
        return self._checked("StreamEmbed", request, stream_flow(order, max_in_flight), texts, deadline_s)

    def classify(
        self,
        texts: TextsT,
        *,
        order: Order = "request",
        truncation: TruncationPolicy = "truncate",
        include_timings: bool = False,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        deadline_s: float | None = None,
    ) -> AnswersT:
        """Streams texts, and their classes. Arguments and errors as in ``stream``."""
        request = service_pb2.StreamClassifyRequest(
            options=conversion.item_options(truncation, include_timings), order=conversion.answer_order(order)
        )
        return self._checked("StreamClassify", request, stream_flow(order, max_in_flight), texts, deadline_s)

    def sentiment(
        self,
        texts: TextsT,
        *,
        order: Order = "request",
        truncation: TruncationPolicy = "truncate",
        include_timings: bool = False,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        deadline_s: float | None = None,
    ) -> AnswersT:
        """Streams texts, and their sentiments. Arguments and errors as in ``stream``."""
        request = service_pb2.StreamSentimentRequest(
            options=conversion.item_options(truncation, include_timings), order=conversion.answer_order(order)
        )
        return self._checked("StreamSentiment", request, stream_flow(order, max_in_flight), texts, deadline_s)

    def _checked(
        self, method: StreamMethod, template: StreamRequest, flow: Flow, texts: TextsT, deadline_s: float | None
    ) -> AnswersT:
        _require_several(texts)
        return self._stream(method, template, flow, texts, deadline_s)


def _require_several(texts: object) -> None:
    """Refuses a lone str: it is an iterable of str too, and each of its characters would be answered."""
    if isinstance(texts, str):
        raise InvalidRequestError("INVALID_ARGUMENT", "texts: one str is given; write [text]")
