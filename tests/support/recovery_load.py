"""Streams under load with a fault in their middle: the load of the tests of the client's recovery."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_client import Answer, Client

STREAMS = 8
# Texts per stream; answers of all streams before the fault; texts of each stream that are sent only after the fault.
TEXTS, BEFORE, AFTER = 250, 500, 50


class Load:
    """Texts for several streams, with a fault after ``BEFORE`` answers."""

    def __init__(self, fault: Callable[[], object], timeout_s: float) -> None:
        """Starts without answers.

        Args:
            fault: Called once, while all streams run.
            timeout_s: Seconds to wait for the answers before the fault.
        """
        self._fault = fault
        self._timeout_s = timeout_s
        self._before_fault = threading.Event()
        self._after_fault = threading.Event()
        self._lock = threading.Lock()
        self.answered = 0
        self.answered_before = 0

    def texts(self) -> Iterator[str]:
        """Yields the texts of one stream, the last of them after the fault."""
        for number in range(TEXTS):
            if number == TEXTS - AFTER:
                self._after_fault.wait(self._timeout_s)
            yield f"text number {number}"

    def count(self) -> None:
        """Counts an answer."""
        with self._lock:
            self.answered += 1
            if self.answered == BEFORE:
                self._before_fault.set()

    def inject_fault(self) -> None:
        """Waits for ``BEFORE`` answers and injects the fault."""
        assert self._before_fault.wait(self._timeout_s)
        self.answered_before = self.answered
        self._fault()
        self._after_fault.set()

    def stream(self, client: Client) -> bool:
        """Sends the texts over one stream; returns whether each was answered exactly once, in order, with a result."""
        answers = []
        for answer in client.stream(self.texts()):
            answers.append(answer)
            self.count()
        return is_complete(answers)

    def plain_stream(self, stub: inference_service_pb2_grpc.InferenceServiceStub) -> bool:
        """Sends the texts over one stream of a generated stub; returns whether the stream ended without an error."""
        requests = (pb2.StreamAnalyzeRequest(items=[item_pb2.Item(text=text)]) for text in self.texts())
        try:
            for response in stub.StreamAnalyze(requests):
                for _ in response.answers:
                    self.count()
        except grpc.RpcError:
            return False
        return True


def is_complete(answers: list[Answer]) -> bool:
    """Whether every text of a stream was answered exactly once, in order, with a result."""
    ids = [answer.item_id for answer in answers]
    return ids == [str(number) for number in range(TEXTS)] and all(answer.result for answer in answers)


def call_until(ended: threading.Event, client: Client) -> int:
    """Makes unary calls until the event is set; returns their number."""
    calls = 0
    while not ended.is_set():
        assert client.analyze(["one", "two"])[1].result
        calls += 1
    return calls
