"""Load that records each request with its answer, and compares each answer with the reference answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc.aio
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_client import Answer, PolyheadError
from polyhead_client.conversion import answers_of
from polyhead_client.errors import map_grpc_errors

from .reference_answers import ReferenceAnswers, version

# Minimum number of items of each method before and after a fault; with fewer, the fault may have met no traffic.
MIN_ITEMS = 50
# Maximum number of items of a stream that are in flight: enough to keep a server busy; more would only wait longer.
_MAX_STREAM_IN_FLIGHT = 24
_CALL_DEADLINE_S = 20.0
# Pause after a failure: short enough to meet the fault again, long enough that retries do not dominate the load.
_RETRY_PAUSE_S = 0.05


class Caller(Protocol):
    """Methods that the shipped client and the plain client share."""

    async def analyze(self, texts: Iterable[tuple[str, str]], *, deadline_s: float | None = ...) -> list[Answer]:
        """Returns the answers to a batch of texts."""
        ...

    def stream(self, texts: AsyncIterator[tuple[str, str]]) -> AsyncIterator[Answer]:
        """Yields the answers to a stream of texts in order."""
        ...


@dataclass(slots=True)
class Request:
    """One text that was sent.

    Attributes:
        text: The text.
        method: ``unary`` or ``stream``.
        sent: Send time by ``time.monotonic()``.
        done: Time of the answer or of the failure; 0 while there is neither.
        outcome: ``correct``, ``incorrect`` or an error code; ``lost`` while there is none.
        version: Version of the model that answered, as named by the answer.
    """

    text: str
    method: str
    sent: float
    done: float = 0.0
    outcome: str = "lost"
    version: str = ""


class Traffic:
    """Closed-loop callers that send until they are stopped."""

    def __init__(self, reference_answers: ReferenceAnswers, texts: Sequence[str]) -> None:
        self.requests: list[Request] = []
        self._reference_answers = reference_answers
        self._texts = itertools.cycle(texts)
        self._stopping = False

    @contextlib.asynccontextmanager
    async def flowing(
        self, clients: Sequence[Caller], *, calls: int = 4, items: int = 4, streams: int = 2
    ) -> AsyncIterator[None]:
        """Sends load while the block runs.

        Args:
            clients: Clients among which the callers are distributed.
            calls: Number of callers that send unary calls.
            items: Texts per unary call.
            streams: Number of callers that send streams.
        """
        next_client = itertools.cycle(clients)
        tasks = [asyncio.create_task(self._call(next(next_client), items)) for _ in range(calls)]
        tasks += [asyncio.create_task(self._stream(next(next_client))) for _ in range(streams)]
        try:
            yield
        finally:
            self.stop()
            await asyncio.gather(*tasks)

    def stop(self) -> None:
        """Stops sending; the end of ``flowing`` waits for the requests in flight."""
        self._stopping = True

    async def flow_until(self, items: int, deadline_s: float = 60.0) -> None:
        """Waits until ``items`` more items of each method are answered correctly."""
        methods, end = {one.method for one in self.requests}, time.monotonic() + deadline_s
        before = self._correct()
        while any(self._correct()[method] < before[method] + items for method in methods or {"unary"}):
            if time.monotonic() > end:
                raise RuntimeError(f"no traffic flows: {self.outcomes()}")
            await asyncio.sleep(0.05)

    def outcomes(self, *, since: float = 0.0, until: float = float("inf")) -> Counter[str]:
        """Counts the outcomes of the items that were sent in a span of time."""
        return Counter(one.outcome for one in self.requests if since <= one.sent < until)

    def failures(self) -> int:
        """Number of items without a correct answer."""
        return len(self.requests) - self.outcomes()["correct"]

    def covers(self, *moments: float) -> bool:
        """Whether enough items of each method were answered correctly before and after every moment."""
        spans = list(itertools.pairwise([0.0, *moments, float("inf")]))
        methods = {one.method for one in self.requests}
        counts = Counter(
            (one.method, span)
            for one in self.requests
            for span in spans
            if one.outcome == "correct" and span[0] <= one.sent < span[1]
        )
        return bool(methods) and all(counts[method, span] >= MIN_ITEMS for method in methods for span in spans)

    def _correct(self) -> Counter[str]:
        return Counter(one.method for one in self.requests if one.outcome == "correct")

    def _send(self, method: str) -> Request:
        self.requests.append(Request(next(self._texts), method, time.monotonic()))
        return self.requests[-1]

    def _record(self, request: Request, answer: Answer) -> None:
        request.done = time.monotonic()
        if answer.result is None:
            request.outcome = answer.error.code if answer.error else "UNKNOWN"
            return
        request.outcome = self._reference_answers.judge(request.text, answer.result)
        request.version = version(answer.result.fingerprints)

    async def _call(self, client: Caller, items: int) -> None:
        while not self._stopping:
            sent = [self._send("unary") for _ in range(items)]
            texts = [(str(number), one.text) for number, one in enumerate(sent)]
            try:
                answers = await client.analyze(texts, deadline_s=_CALL_DEADLINE_S)
            except PolyheadError as error:
                _fail(sent, error)
                await asyncio.sleep(_RETRY_PAUSE_S)
                continue
            for request, answer in zip(sent, answers, strict=True):
                self._record(request, answer)

    async def _stream(self, client: Caller) -> None:
        while not self._stopping:
            in_flight: dict[str, Request] = {}
            try:
                async for answer in client.stream(self._feed(in_flight)):
                    self._record(in_flight.pop(answer.item_id), answer)
            except PolyheadError as error:
                _fail(in_flight.values(), error)
                await asyncio.sleep(_RETRY_PAUSE_S)

    async def _feed(self, in_flight: dict[str, Request]) -> AsyncIterator[tuple[str, str]]:
        for number in itertools.count():
            while len(in_flight) >= _MAX_STREAM_IN_FLIGHT and not self._stopping:
                await asyncio.sleep(0.005)
            if self._stopping:
                return
            in_flight[str(number)] = self._send("stream")
            yield str(number), in_flight[str(number)].text


def _fail(requests: Iterable[Request], error: PolyheadError) -> None:
    for request in requests:
        request.done, request.outcome = time.monotonic(), error.code


class PlainClient:
    """Generated stubs without the shipped client: one connection, no retries, no reopened streams. Used by controls."""

    def __init__(self, target: str) -> None:
        options = [
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
            ("grpc.initial_reconnect_backoff_ms", 100),
        ]
        self.channel = grpc.aio.insecure_channel(target, options)
        self._stub: Any = inference_service_pb2_grpc.InferenceServiceStub(self.channel)

    async def __aenter__(self) -> PlainClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def analyze(self, texts: Iterable[tuple[str, str]], *, deadline_s: float | None = None) -> list[Answer]:
        """Sends one call without retries."""
        with map_grpc_errors():
            request = pb2.AnalyzeRequest(items=_items(texts))
            return answers_of(await self._stub.Analyze(request, timeout=deadline_s), request)

    async def stream(self, texts: AsyncIterator[tuple[str, str]]) -> AsyncIterator[Answer]:
        """Sends one stream with one item per message."""

        async def requests() -> AsyncIterator[pb2.StreamAnalyzeRequest]:
            async for one in texts:
                yield pb2.StreamAnalyzeRequest(items=_items([one]))

        with map_grpc_errors():
            async for response in self._stub.StreamAnalyze(requests()):
                for answer in answers_of(response, pb2.StreamAnalyzeRequest()):
                    yield answer


def _items(texts: Iterable[tuple[str, str]]) -> Iterator[item_pb2.Item]:
    return (item_pb2.Item(item_id=item_id, text=text) for item_id, text in texts)
