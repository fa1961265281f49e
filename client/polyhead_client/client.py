"""The client for threads."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Self

import grpc
from polyhead.v1 import inference_service_pb2 as service_pb2
from polyhead.v1 import item_pb2

from polyhead_client.core.retry import Retries
from polyhead_client.core.stream_state import StreamState, Text
from polyhead_client.transport.pool import Connections

from . import conversion
from ._base import Calls, StreamMethod, UnaryMethod, closed_meanwhile
from .batch import DEFAULT_DEADLINE_S, Attempts, BatchCall
from .conversion import Encoding, StreamRequest, Task, TruncationPolicy
from .errors import PolyheadError, map_grpc_errors
from .model_info import ModelInfo
from .types import Answer, Fingerprints


class Client(Calls[Iterable[Text], Iterator[Answer]]):
    """Connections to a server, or to several that serve the same model. Threads may share it.

    Use it as a context manager, or ``close`` it::

        with Client("127.0.0.1:50051") as client:
            for answer in client.stream(lines):
                print(answer.item_id, answer.unwrap().sentiment)
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; calls that are running end with UnavailableError."""
        self._shut()
        for end in list(self._streams):
            end()
        for channel in self._channels:
            channel.close()

    def analyze(
        self,
        texts: Iterable[Text],
        *,
        tasks: Iterable[Task] = (),
        truncation: TruncationPolicy = "truncate",
        include_timings: bool = False,
        encoding: Encoding = "float32",
        dimensions: int | None = None,
        expected_fingerprints: Fingerprints | ModelInfo | None = None,
        deadline_s: float | None = DEFAULT_DEADLINE_S,
    ) -> list[Answer]:
        """Answers a batch of texts, in order; a large batch takes several calls.

        While the server is away, or too busy and says for how long, it is asked again.

        Args:
            texts: Each a ``str``, or ``(item_id, text)``.
            tasks: Any of ``"embedding"``, ``"classification"``, ``"sentiment"``; none means all that the model has.
            truncation: ``"truncate"`` reads the beginning of a text that is too long, ``"error"`` refuses it,
                ``"window"`` reads it in overlapping windows and pools their answers.
            include_timings: Whether to say where the time went.
            encoding: Of embeddings on the wire: ``"float32"``, ``"float16"`` for half the bytes, ``"int8"`` for a
                quarter, ``"binary"`` for the signs alone, which come as -1 and 1.
            dimensions: Of embeddings: the first so many; None for all.
            expected_fingerprints: Of a model, or of an answer: an item that anything else would answer is refused with
                ``FINGERPRINT_MISMATCH``. What is empty in it may be anything.
            deadline_s: Seconds for the whole batch; None for no limit.

        Returns:
            One answer for each text. One item's error is in its answer, and raises nothing.

        Raises:
            PolyheadError: The call as a whole failed; its subclass says what can be done.
        """
        retries = self._retries(deadline_s)
        analysis = BatchCall(
            texts,
            retries,
            self._limits,
            tasks=tasks,
            truncation=truncation,
            include_timings=include_timings,
            encoding=encoding,
            dimensions=dimensions,
            expected_fingerprints=expected_fingerprints,
        )
        self._require_open()
        while (wait_s := analysis.wait_s()) is not None:
            self._wait(wait_s)
            for request in analysis.requests():
                try:
                    response = self._ask("Analyze", request, retries)
                except PolyheadError as error:
                    analysis.fail(error)
                else:
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
        response = self._ask("GetModelInfo", service_pb2.GetModelInfoRequest(), self._retries(deadline_s))
        return conversion.model_info_of(response)

    def _event(self) -> threading.Event:
        return threading.Event()

    def _channel(
        self, target: str, options: list[tuple[str, Any]], credentials: grpc.ChannelCredentials | None
    ) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(target, options)
        return grpc.secure_channel(target, credentials, options)

    def _ask(self, method: UnaryMethod, request: Any, retries: Retries) -> Any:
        """The response to a unary call, after as many attempts as it takes."""
        attempts = Attempts(retries)
        while True:
            self._require_still_open()
            hedge_s = self._hedging.delay_s()
            began = time.monotonic()
            try:
                with map_grpc_errors():
                    if hedge_s is None:
                        response = self._attempt(method, request, attempts)
                    else:
                        response = self._race(method, request, attempts, hedge_s)
            except PolyheadError as error:
                self._wait(attempts.failed(error))
            except ValueError:  # what gRPC says of a channel that was closed in this moment
                self._require_still_open()
                raise
            else:
                attempts.succeeded()
                self._hedging.observe(time.monotonic() - began)
                return response

    def _wait(self, seconds: float) -> None:
        """Waits, but no longer than until the client is closed."""
        self._closing.wait(seconds)
        self._require_still_open()

    def _attempt(self, method: UnaryMethod, request: Any, attempts: Attempts) -> Any:
        with self._connections.lease(attempts.tried) as lease:
            attempts.tried.add(lease.number)
            return getattr(lease.stub, method)(request, **self._options(attempts.deadline))

    def _race(self, method: UnaryMethod, request: Any, attempts: Attempts, hedge_s: float) -> Any:
        """The first response of two calls, the second of which begins after ``hedge_s``, if it may."""
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        calls = [self._begin(method, request, attempts, ended)]
        try:
            try:
                first = ended.get(timeout=hedge_s)
            except queue.Empty:
                if self._hedging.spend():
                    calls.append(self._begin(method, request, attempts, ended))
                first = ended.get()
            if len(calls) > 1 and first.code() is not grpc.StatusCode.OK:
                first = ended.get()
            return first.result()
        finally:
            for call in calls:
                call.cancel()

    def _begin(self, method: UnaryMethod, request: Any, attempts: Attempts, ended: queue.SimpleQueue[Any]) -> Any:
        """Begins a call, which goes into the queue when it has ended."""
        lease = self._connections.lease(attempts.tried)
        attempts.tried.add(lease.number)
        try:
            call = getattr(lease.stub, method).future(request, **self._options(attempts.deadline))
        except BaseException:
            lease.give_back()
            raise
        call.add_done_callback(lambda _: lease.give_back())
        call.add_done_callback(ended.put)
        return call

    def _stream(
        self, method: StreamMethod, template: StreamRequest, flow: StreamState, texts: Iterable[Text]
    ) -> Iterator[Answer]:
        def begin(stub: Any, requests: Iterator[StreamRequest]) -> Any:
            self._require_still_open()
            return getattr(stub, method)(requests, **self._options(flow.deadline))

        return _Stream(flow, template, self._connections, begin, self._running).run(texts)


class _Stream:
    """One streaming call, over as many gRPC calls as it takes.

    ::

        texts --reader thread--> flow --gRPC's thread--> server --receiver thread--> flow --caller's thread--> answers
    """

    def __init__(
        self,
        flow: StreamState,
        template: StreamRequest,
        connections: Connections[Any],
        begin: Callable[[Any, Iterator[StreamRequest]], Any],
        running: Callable[[Callable[[], None]], AbstractContextManager[None]],
    ) -> None:
        self._flow = flow
        self._template = template
        self._connections = connections
        self._begin = begin
        self._running = running
        self._broken: set[int] = set()  # the connection of the last call
        self._call: Any = None
        self._changed = threading.Condition()

    def run(self, texts: Iterable[Text]) -> Iterator[Answer]:
        # Daemons that nobody waits for: they end by themselves, but a reader not before its input gives the next text.
        reader = threading.Thread(target=self._read, args=(texts,), name="polyhead-reader", daemon=True)
        receiver = threading.Thread(target=self._receive, name="polyhead-receiver", daemon=True)
        with self._running(self._client_closed):
            try:
                reader.start()
                receiver.start()
                while answers := self._collect():
                    yield from answers
                if self._flow.error is not None:
                    raise self._flow.error
            finally:
                with self._changed:
                    self._flow.close()
                    self._changed.notify_all()
                if self._call is not None:
                    self._call.cancel()

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

    def _receive(self) -> None:
        try:
            while not self._flow.closed:
                try:
                    with self._connections.lease(self._broken) as lease, map_grpc_errors():
                        self._broken = {lease.number}
                        self._follow(lease.stub)
                except PolyheadError as error:
                    self._lose(error)
        except BaseException as error:  # noqa: BLE001  the edge of a thread: the caller raises it
            self._fail(error)

    def _follow(self, stub: Any) -> None:
        """One gRPC call, to its end."""
        with self._changed:
            number = self._flow.begin_call()
            self._changed.notify_all()
        if self._flow.closed:
            return
        self._call = self._begin(stub, self._requests(number))
        try:
            # Closed meanwhile: whoever did it may have seen no call to cancel.
            if not self._flow.closed:
                for response in self._call:
                    answers = conversion.answers_of(response)
                    with self._changed:
                        self._flow.accept(answers)
                        self._changed.notify_all()
                with self._changed:
                    self._flow.end_answers()
                    self._changed.notify_all()
        finally:
            self._call.cancel()

    def _requests(self, call: int) -> Iterator[StreamRequest]:
        while items := self._take(call):
            yield conversion.with_items(self._template, items)

    def _take(self, call: int) -> list[item_pb2.Item]:
        with self._changed:
            while not self._flow.may_take(call):
                self._changed.wait(self._flow.wait_s())
            return self._flow.take(call)

    def _collect(self) -> list[Answer]:
        with self._changed:
            self._changed.wait_for(self._flow.may_collect)
            answers = self._flow.collect()
            self._changed.notify_all()
            return answers

    def _lose(self, error: PolyheadError) -> None:
        """Waits until the next call may begin and has something to do, if there is to be one."""
        with self._changed:
            delay_s = self._flow.lose(error)
            self._changed.notify_all()
            if delay_s is not None:
                self._changed.wait_for(lambda: self._flow.closed, delay_s)
                self._changed.wait_for(self._flow.may_begin, self._flow.deadline.left_s())

    def _client_closed(self) -> None:
        self._fail(closed_meanwhile())

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._flow.fail(error)
            self._changed.notify_all()
