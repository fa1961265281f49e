"""Unary calls without I/O: a batch split into messages, and a call split into attempts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from polyhead.v1 import inference_service_pb2 as service_pb2

from polyhead_client import conversion
from polyhead_client.errors import PolyheadError, invalid_answer
from polyhead_client.types import Answer

from .concurrency_limit import FixedLimit
from .message_limits import MessageLimits
from .retry import RetryPolicy
from .stream_state import StreamState, Text

# Maximum size of a unary message: the server's limit of items, and bytes that every gRPC server accepts.
_MAX_ITEMS, _MAX_BYTES = 1024, 4 * 2**20


class BatchCall:
    """A batch of texts, sent in as many unary calls as it needs, one after the other, with one deadline for all."""

    def __init__(
        self, template: service_pb2.AnalyzeRequest, texts: Iterable[Text], retry: RetryPolicy, limits: MessageLimits
    ) -> None:
        """Reads all texts.

        Args:
            template: Request message without items.
            texts: The texts to send.
            retry: Decides which items are sent again, and when.
            limits: What is known about the server's limits.
        """
        self._template = template
        self._state = StreamState(
            "request", FixedLimit(sys.maxsize), retry, max_items=_MAX_ITEMS, max_bytes=_MAX_BYTES, limits=limits
        )
        for text in texts:
            self._state.offer(text)
        self._state.end_input()
        self._call = self._state.begin_call()

    def wait_s(self) -> float | None:
        """Seconds until there are ``requests``; None when every text has an answer."""
        return (self._state.wait_s() or 0.0) if self._state.unanswered else None

    def requests(self) -> Iterator[service_pb2.AnalyzeRequest]:
        """Yields the messages to send now."""
        while items := self._state.take(self._call):
            yield conversion.with_items(self._template, items)

    def on_response(self, response: service_pb2.AnalyzeResponse) -> None:
        """Records the response to the last message.

        Raises:
            ServerError: The response leaves items unanswered.
            PolyheadError: The response rejects the message as a whole, for a reason other than its size.
        """
        try:
            self._state.on_answers(conversion.answers_of(response, self._template))
        except PolyheadError as error:
            if not self._state.split_message(error):
                raise
        if self._state.in_flight:
            raise invalid_answer(f"the server left {self._state.in_flight} items of a call unanswered")

    def on_error(self, error: PolyheadError) -> None:
        """Records that the call for the last message failed.

        A message that was too large is sent again in smaller ones. If only items remain that the server has rejected
        before, their rejections become their answers, so that the batch keeps the answers it has.

        Raises:
            PolyheadError: ``error`` itself, in every other case.
        """
        if not (self._state.split_message(error) or self._state.settle_rejections()):
            raise error

    def answers(self) -> list[Answer]:
        """Returns all answers, in order; call it when ``wait_s`` is None."""
        return self._state.collect()


class Attempts:
    """The attempts of one unary call.

    Attributes:
        deadline: Deadline of the call.
        tried: Indices of the connections that run an attempt or failed.
    """

    def __init__(self, retry: RetryPolicy) -> None:
        self.deadline = retry.deadline
        self.tried: set[int] = set()
        self._retry = retry
        self._failures = 0

    def on_success(self) -> None:
        """Records the response."""
        self._retry.on_success()

    def on_failure(self, error: PolyheadError) -> float | None:
        """Records a failure; returns the seconds to wait before the next attempt, None when there is none."""
        self._failures += 1
        return self._retry.on_failure(error, self._failures)
