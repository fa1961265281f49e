"""The client for threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import grpc
from polyhead.v1 import inference_service_pb2 as service_pb2
from polyhead.v1 import inference_service_pb2_grpc as service_grpc
from polyhead.v1 import item_pb2

from . import conversion
from .calls import DEFAULT_DEADLINE_S, DEFAULT_TARGET, Analysis, StreamCalls, StreamMethod
from .channel import OPTIONS
from .conversion import Encoding, StreamRequest, Task, TruncationPolicy
from .errors import translated
from .flow import Flow, Text
from .model_info import ModelInfo
from .results import Answer


class Client(StreamCalls[Iterable[Text], Iterator[Answer]]):
    """A connection to a server. Threads may share it.

    Use it as a context manager, or ``close`` it::

        with Client("127.0.0.1:50051") as client:
            for answer in client.stream(lines):
                print(answer.item_id, answer.unwrap().sentiment)
    """

    def __init__(self, target: str = DEFAULT_TARGET, *, wait_for_ready: bool = False) -> None:
        """Connects when it is first used.

        Args:
            target: ``HOST:PORT`` of the server, or any name that gRPC resolves.
            wait_for_ready: True waits, until a call's deadline, for a server that is not there yet; False fails then.
        """
        self._wait_for_ready = wait_for_ready
        self._channel = grpc.insecure_channel(target, OPTIONS)
        self._stub = service_grpc.InferenceServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls that are running end with UnavailableError."""
        self._closed = True
        self._channel.close()

    def analyze(
        self,
        texts: Iterable[Text],
        *,
        tasks: Iterable[Task] = (),
        truncation: TruncationPolicy = "truncate",
        include_timings: bool = False,
        encoding: Encoding = "float32",
        dimensions: int | None = None,
        deadline_s: float | None = DEFAULT_DEADLINE_S,
    ) -> list[Answer]:
        """Answers a batch of texts, in order; a large batch takes several calls. Retried while the server is away.

        Args:
            texts: Each a ``str``, or ``(item_id, text)``.
            tasks: Any of ``"embedding"``, ``"classification"``, ``"sentiment"``; none means all that the model has.
            truncation: ``"truncate"`` reads the beginning of a text that is too long, ``"error"`` refuses it.
            include_timings: Whether to say where the time went.
            encoding: Of embeddings on the wire: ``"float32"``, ``"float16"`` for half the bytes, ``"int8"`` for a
                quarter, ``"binary"`` for the signs alone, which come as -1 and 1.
            dimensions: Of embeddings: the first so many; None for all.
            deadline_s: Seconds for the whole batch; None for no limit.

        Returns:
            One answer for each text. One item's error is in its answer, and raises nothing.

        Raises:
            PolyheadError: The call as a whole failed; its subclass says what can be done.
        """
        self._require_open()
        analysis = Analysis(
            texts,
            tasks=tasks,
            truncation=truncation,
            include_timings=include_timings,
            encoding=encoding,
            dimensions=dimensions,
            deadline_s=deadline_s,
        )
        for request in analysis.requests():
            with translated():
                response = self._stub.Analyze(request, timeout=analysis.left_s(), wait_for_ready=self._wait_for_ready)
            analysis.accept(response)
        return analysis.answers()

    def info(self, *, deadline_s: float | None = DEFAULT_DEADLINE_S) -> ModelInfo:
        """Describes the model behind the server, and how it is being run.

        Args:
            deadline_s: Seconds for the call; None for no limit.

        Raises:
            PolyheadError: The call failed; its subclass says what can be done.
        """
        self._require_open()
        with translated():
            response = self._stub.GetModelInfo(
                service_pb2.GetModelInfoRequest(), timeout=deadline_s, wait_for_ready=self._wait_for_ready
            )
        return conversion.model_info_of(response)

    def _stream(
        self, method: StreamMethod, template: StreamRequest, flow: Flow, texts: Iterable[Text], deadline_s: float | None
    ) -> Iterator[Answer]:
        rpc = getattr(self._stub, method)

        def start(requests: Iterator[StreamRequest]) -> Any:
            self._require_open()
            return rpc(requests, timeout=deadline_s, wait_for_ready=self._wait_for_ready)

        return _Stream(flow, template).run(start, texts)


class _Stream:
    """One streaming call.

    ::

        texts --reader thread--> flow --gRPC's thread--> server --receiver thread--> flow --caller's thread--> answers
    """

    def __init__(self, flow: Flow, template: StreamRequest) -> None:
        self._flow = flow
        self._template = template
        self._changed = threading.Condition()

    def run(self, start: Callable[[Iterator[StreamRequest]], Any], texts: Iterable[Text]) -> Iterator[Answer]:
        with translated():
            call = start(self._requests())
        # Daemons that nobody waits for: they end by themselves, but a reader not before its input gives the next text.
        reader = threading.Thread(target=self._read, args=(texts,), name="polyhead-reader", daemon=True)
        receiver = threading.Thread(target=self._receive, args=(call,), name="polyhead-receiver", daemon=True)
        try:
            reader.start()
            receiver.start()
            while answers := self._collect():
                yield from answers
            if self._flow.error is not None:
                raise self._flow.error
        finally:
            self._close()
            call.cancel()

    def _read(self, texts: Iterable[Text]) -> None:
        try:
            for text in texts:
                with self._changed:
                    self._changed.wait_for(self._flow.may_offer)
                    if self._flow.closed:
                        return
                    self._flow.offer(text)
                    self._changed.notify_all()
            with self._changed:
                self._flow.end_input()
                self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  the edge of a thread: the caller raises it
            self._fail(error)

    def _requests(self) -> Iterator[StreamRequest]:
        while items := self._take():
            yield conversion.with_items(self._template, items)

    def _receive(self, call: Any) -> None:
        try:
            with translated():
                for response in call:
                    answers = conversion.answers_of(response)
                    with self._changed:
                        self._flow.accept(answers)
                        self._changed.notify_all()
            with self._changed:
                self._flow.end_answers()
                self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  the edge of a thread: the caller raises it
            self._fail(error)

    def _take(self) -> list[item_pb2.Item]:
        with self._changed:
            self._changed.wait_for(self._flow.may_take)
            return self._flow.take()

    def _collect(self) -> list[Answer]:
        with self._changed:
            self._changed.wait_for(self._flow.may_collect)
            answers = self._flow.collect()
            self._changed.notify_all()
            return answers

    def _close(self) -> None:
        with self._changed:
            self._flow.close()
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._flow.fail(error)
            self._changed.notify_all()
