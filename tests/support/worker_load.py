"""Observations of a server with several workers, and load on it."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import grpc
from google.rpc import error_details_pb2, status_pb2
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2

from tests.e2e.conftest import START_S, Server
from tests.support.polling import wait_until


def serving(server: Server) -> int:
    """Returns how many workers have started to serve since the start of the server, restarted ones included."""
    return server.log.read_text().count(" serves on cores ")


def workers_of(server: Server) -> list[int]:
    """Returns the process ids of the workers."""
    pid = server.process.pid
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether a process exists."""
    return Path(f"/proc/{pid}").exists()


def answered(server: Server) -> bool:
    """Whether a call over a new connection is answered."""
    request = pb2.AnalyzeRequest(items=[item_pb2.Item(text="one text")])
    with grpc.insecure_channel(server.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        (answer,) = stub.Analyze(request, timeout=START_S, wait_for_ready=True).answers
    return answer.WhichOneof("outcome") == "result"


class Load:
    """Streams and unary calls from plain gRPC stubs, which retry nothing, each over its own connection.

    Attributes:
        ends: Number of calls by how they ended: OK, the reason that the server gave, or else the code.
        answers: Number of answered items by outcome.
    """

    def __init__(self, target: str, pause_s: float = 0.0) -> None:
        """Prepares the load.

        Args:
            target: HOST:PORT of the server.
            pause_s: Pause after each message, so that processes which start meanwhile get compute.
        """
        self.ends: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self._target = target
        self._pause_s = pause_s
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(call,)) for call in [self._stream, self._unary] * 4]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(START_S)

    def wait_for(self, answers: int) -> None:
        """Waits until this many items have a result."""
        wait_until(lambda: self.answers["result"] >= answers, f"{answers} answers")

    def _run(self, call: Callable[[Any], None]) -> None:
        with grpc.insecure_channel(self._target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            while not self._stopping.is_set():
                try:
                    call(stub)
                    self.ends["OK"] += 1
                except grpc.RpcError as error:
                    self.ends[reason(error)] += 1
                    self._stopping.wait(0.05)

    def _unary(self, stub: Any) -> None:
        request = pb2.AnalyzeRequest(items=[item_pb2.Item(text=f"text {number}") for number in range(8)])
        self._count(stub.Analyze(request, timeout=START_S))
        self._stopping.wait(self._pause_s)

    def _stream(self, stub: Any) -> None:
        # Endless: the server ends it.
        requests = (
            pb2.StreamAnalyzeRequest(items=[item_pb2.Item(item_id=str(number), text=f"text number {number}")])
            for number in itertools.takewhile(lambda _: not self._stopping.wait(self._pause_s), itertools.count())
        )
        expected = itertools.count()
        for response in stub.StreamAnalyze(requests, timeout=START_S):
            # No answer is missing in between.
            assert all(answer.item_id == str(next(expected)) for answer in response.answers)
            self._count(response)

    def _count(self, response: Any) -> None:
        self.answers.update(answer.WhichOneof("outcome") for answer in response.answers)


def reason(error: Any) -> str:
    """Returns the reason that the server gave for an error, or else the code."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            info = error_details_pb2.ErrorInfo()
            (detail, *_) = status_pb2.Status.FromString(value).details
            assert detail.Unpack(info)
            return str(info.reason)
    return str(error.code().name)


# How a call may end that was not accepted: rejected by the server, or by a connection that has closed.
NOT_ACCEPTED = {"OK", "DRAINING", "UNAVAILABLE", "CANCELLED"}
