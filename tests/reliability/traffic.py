"""Load that records each request with its answer and judges it by the offline answer."""

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

# Enough of both kinds before a fault and after it, or the fault has met nothing.
MIN_ITEMS = 50
_CALL_DEADLINE_S = 20.0
# A broken client tries again so soon: often enough to meet the fault, seldom enough not to be all of the load.
_AGAIN_S = 0.05


class Caller(Protocol):
    """What the shipped client and the plain one have in common."""

    async def analyze(self, texts: Iterable[tuple[str, str]], *, deadline_s: float | None = ...) -> list[Answer]:
        """Answers a batch of texts."""
        ...

    def stream(self, texts: AsyncIterator[tuple[str, str]]) -> AsyncIterator[Answer]:
        """Answers a stream of texts, in order."""
        ...


@dataclass(slots=True)
class Request:
    """One text that was sent.

    Attributes:
        text: The text.
        way: ``unary`` or ``stream``.
        sent: Second of ``time.monotonic()``.
        done: When its answer came, or its failure; 0 while it has none.
        outcome: ``right``, ``wrong``, or the code of an error; ``lost`` while it has none.
        version: Of what answered, as the answer says.
    """

    text: str
    way: str
    sent: float
    done: float = 0.0
    outcome: str = "lost"
    version: str = ""


class Traffic:
    """Callers in closed loops, until they are told to stop."""

    def __init__(self, reference_answers: ReferenceAnswers, texts: Sequence[str]) -> None:
        self.requests: list[Request] = []
        self._offline = reference_answers
        self._texts = itertools.cycle(texts)
        self._stopping = False

    @contextlib.asynccontextmanager
    async def flowing(
        self, clients: Sequence[Caller], *, calls: int = 4, items: int = 4, streams: int = 2
    ) -> AsyncIterator[None]:
        """Load for as long as the block lasts: so many callers and streams, dealt out over the clients."""
        turns = itertools.cycle(clients)
        tasks = [asyncio.create_task(self._call(next(turns), items)) for _ in range(calls)]
        tasks += [asyncio.create_task(self._stream(next(turns))) for _ in range(streams)]
        try:
            yield
        finally:
            self.stop()
            await asyncio.gather(*tasks)

    def stop(self) -> None:
        """Sends nothing more; what is on its way is waited for at the end of ``flowing``."""
        self._stopping = True

    async def flow_until(self, items: int, deadline_s: float = 60.0) -> None:
        """Waits until so many more items of each way have an answer."""
        ways, end = {one.way for one in self.requests}, time.monotonic() + deadline_s
        begun = self._answered()
        while any(self._answered()[way] < begun[way] + items for way in ways or {"unary"}):
            if time.monotonic() > end:
                raise RuntimeError(f"no traffic flows: {self.outcomes()}")
            await asyncio.sleep(0.05)

    def outcomes(self, *, since: float = 0.0, until: float = float("inf")) -> Counter[str]:
        """How many items ended how, of those sent in a span of time."""
        return Counter(one.outcome for one in self.requests if since <= one.sent < until)

    def bad(self) -> int:
        """Items without a right answer."""
        return len(self.requests) - self.outcomes()["right"]

    def enough(self, *moments: float) -> bool:
        """Whether enough items of each way were answered rightly before and after every moment."""
        spans = list(itertools.pairwise([0.0, *moments, float("inf")]))
        ways = {one.way for one in self.requests}
        counts = Counter(
            (one.way, span)
            for one in self.requests
            for span in spans
            if one.outcome == "right" and span[0] <= one.sent < span[1]
        )
        return bool(ways) and all(counts[way, span] >= MIN_ITEMS for way in ways for span in spans)

    def _answered(self) -> Counter[str]:
        return Counter(one.way for one in self.requests if one.outcome == "right")

    def _send(self, way: str) -> Request:
        self.requests.append(Request(next(self._texts), way, time.monotonic()))
        return self.requests[-1]

    def _judge(self, request: Request, answer: Answer) -> None:
        request.done = time.monotonic()
        if answer.result is None:
            request.outcome = answer.error.code if answer.error else "UNKNOWN"
            return
        request.outcome = self._offline.judge(request.text, answer.result)
        request.version = version(answer.result.fingerprints)

    async def _call(self, client: Caller, items: int) -> None:
        while not self._stopping:
            sent = [self._send("unary") for _ in range(items)]
            texts = [(str(number), one.text) for number, one in enumerate(sent)]
            try:
                answers = await client.analyze(texts, deadline_s=_CALL_DEADLINE_S)
            except PolyheadError as error:
                _fail(sent, error)
                await asyncio.sleep(_AGAIN_S)
                continue
            for request, answer in zip(sent, answers, strict=True):
                self._judge(request, answer)

    async def _stream(self, client: Caller) -> None:
        while not self._stopping:
            on_their_way: dict[str, Request] = {}
            try:
                async for answer in client.stream(self._feed(on_their_way)):
                    self._judge(on_their_way.pop(answer.item_id), answer)
            except PolyheadError as error:
                _fail(on_their_way.values(), error)
                await asyncio.sleep(_AGAIN_S)

    async def _feed(self, on_their_way: dict[str, Request]) -> AsyncIterator[tuple[str, str]]:
        for number in itertools.count():
            # Two dozen on their way keep a server at work; more would only make each of them wait.
            while len(on_their_way) >= 24 and not self._stopping:
                await asyncio.sleep(0.005)
            if self._stopping:
                return
            on_their_way[str(number)] = self._send("stream")
            yield str(number), on_their_way[str(number)].text


def _fail(requests: Iterable[Request], error: PolyheadError) -> None:
    for request in requests:
        request.done, request.outcome = time.monotonic(), error.code


class PlainClient:
    """The stubs alone: one connection, no retries, no second try of a stream. What the controls are made with."""

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
        """One call, one try."""
        with map_grpc_errors():
            return answers_of(await self._stub.Analyze(pb2.AnalyzeRequest(items=_items(texts)), timeout=deadline_s))

    async def stream(self, texts: AsyncIterator[tuple[str, str]]) -> AsyncIterator[Answer]:
        """One stream, one item a message."""

        async def requests() -> AsyncIterator[pb2.StreamAnalyzeRequest]:
            async for one in texts:
                yield pb2.StreamAnalyzeRequest(items=_items([one]))

        with map_grpc_errors():
            async for response in self._stub.StreamAnalyze(requests()):
                for answer in answers_of(response):
                    yield answer


def _items(texts: Iterable[tuple[str, str]]) -> Iterator[item_pb2.Item]:
    return (item_pb2.Item(item_id=item_id, text=text) for item_id, text in texts)
