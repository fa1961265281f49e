"""What the sync and the asyncio client have in common for unary calls: a batch in calls, and a call in attempts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from polyhead.v1 import inference_service_pb2 as service_pb2

from polyhead_client.core.concurrency_limit import FixedWindow
from polyhead_client.core.message_limits import MessageLimits
from polyhead_client.core.retry import Retries
from polyhead_client.core.stream_state import StreamState, Text

from . import conversion
from ._base import reject_bare_str
from .conversion import Encoding, Task, TruncationPolicy
from .errors import PolyheadError, ServerError
from .model_info import ModelInfo
from .types import Answer, Fingerprints

# No unary call waits for ever; half a minute is as long as a server lets an item wait by default.
DEFAULT_DEADLINE_S = 30.0

# A unary message: the server's limit of items; and bytes that every gRPC server takes.
_UNARY_ITEMS, _UNARY_BYTES = 1024, 4 * 2**20


class BatchCall:
    """A unary analysis: as many calls as its texts need, one after the other, with one deadline for all."""

    def __init__(
        self,
        texts: Iterable[Text],
        retries: Retries,
        limits: MessageLimits,
        *,
        tasks: Iterable[Task],
        truncation: TruncationPolicy,
        include_timings: bool,
        encoding: Encoding,
        dimensions: int | None,
        expected_fingerprints: Fingerprints | ModelInfo | None,
    ) -> None:
        reject_bare_str(texts)
        self._template = service_pb2.AnalyzeRequest(
            tasks=conversion.task_numbers(tasks),
            options=conversion.item_options(truncation, include_timings, expected_fingerprints),
            embedding_options=conversion.embedding_options(encoding, dimensions),
        )
        window = FixedWindow(sys.maxsize)
        self._flow = StreamState(
            "request", window, retries, max_items=_UNARY_ITEMS, max_bytes=_UNARY_BYTES, limits=limits
        )
        for text in texts:
            self._flow.offer(text)
        self._flow.end_input()
        self._call = self._flow.begin_call()

    def wait_s(self) -> float | None:
        """Seconds until there are ``requests``; None when everything is answered."""
        return (self._flow.wait_s() or 0.0) if self._flow.unanswered else None

    def requests(self) -> Iterator[service_pb2.AnalyzeRequest]:
        """The messages to send now."""
        while items := self._flow.take(self._call):
            yield conversion.with_items(self._template, items)

    def accept(self, response: service_pb2.AnalyzeResponse) -> None:
        """Takes in the response to the last message.

        Raises:
            ServerError: It does not answer every item.
            PolyheadError: It refuses the message as a whole, and not for its size.
        """
        try:
            self._flow.accept(conversion.answers_of(response))
        except PolyheadError as error:
            if not self._flow.repack(error):
                raise
        if self._flow.in_flight:
            raise ServerError("INTERNAL", f"the server left {self._flow.in_flight} items of a call unanswered")

    def fail(self, error: PolyheadError) -> None:
        """Takes in that the call for the last message failed.

        Where the message held too much, the next ones hold less. Where only such items are left as were refused before,
        the batch has that for an answer, and loses no other.

        Raises:
            PolyheadError: Otherwise: this is ``error`` itself.
        """
        if not (self._flow.repack(error) or self._flow.give_up()):
            raise error

    def answers(self) -> list[Answer]:
        """All answers, in order, after the last response."""
        return self._flow.collect()


class Attempts:
    """The attempts of one unary call.

    Attributes:
        deadline: Of the call.
        tried: Connections that are busy with it, or failed.
    """

    def __init__(self, retries: Retries) -> None:
        self.deadline = retries.deadline
        self.tried: set[int] = set()
        self._retries = retries
        self._failures = 0

    def succeeded(self) -> None:
        """Counts the answer."""
        self._retries.succeeded()

    def failed(self, error: PolyheadError) -> float:
        """Counts a failure.

        Returns:
            Seconds to wait before the next attempt.

        Raises:
            PolyheadError: There is to be none: this is ``error`` itself.
        """
        self._failures += 1
        delay_s = self._retries.failed(error, self._failures)
        if delay_s is None:
            raise error
        return delay_s
