"""What a stream of a dialect keeps while its client does not read."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from polyhead_server.errors import InvalidRequestError, ServerError
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import Item, ItemOutcome
from polyhead_server.rpc.dialects.descriptors import TYPES
from polyhead_server.rpc.dialects.ordered_stream import OrderedStream
from polyhead_server.serving.backend import Backend, Submission
from polyhead_server.settings import Settings

from tests.support.fake_engine import FakeEngine
from tests.support.polling import until

from .conftest import DialectServer

pytestmark = pytest.mark.timeout(60)
REQUESTS = 20
TEXTS = 3


class Request:
    """A request, or what is kept of it."""

    def __init__(self, number: int) -> None:
        self.number = number


class Client:
    """Sends requests, every fourth of which is invalid, and reads no response until it is asked to.

    Attributes:
        submitted: Numbers of the requests that were submitted.
        responses: The responses that it has read.
        reads: Set once it reads.
    """

    def __init__(self, backend: Backend) -> None:
        self.submitted: list[int] = []
        self.responses: list[str] = []
        self.reads = asyncio.Event()
        self.requests: list[weakref.ref[Request]] = []
        self.plans: list[weakref.ref[Request]] = []
        self._backend = backend
        self.stream: OrderedStream[Request, Request] = OrderedStream(
            backend, self._submit, self._respond, self._failed, lambda request: str(request.number)
        )

    async def run(self) -> None:
        await self.stream.run(self._send(), self)  # type: ignore[arg-type]

    def time_remaining(self) -> None:
        return None

    async def write(self, response: str) -> None:
        await self.reads.wait()
        self.responses.append(response)

    async def _send(self) -> AsyncIterator[Request]:
        for number in range(REQUESTS):
            request = Request(number)
            self.requests.append(weakref.ref(request))
            yield request
            del request

    async def _submit(self, _: Any, request: Request) -> tuple[Request, Submission]:
        self.submitted.append(request.number)
        if not request.number % 4:
            raise InvalidRequestError("INVALID_TENSOR", "invalid")
        plan = Request(request.number)
        self.plans.append(weakref.ref(plan))
        futures: list[asyncio.Future[ItemOutcome]] = []
        for _ in range(TEXTS):
            futures.append(asyncio.get_running_loop().create_future())
            futures[-1].set_result(InvalidRequestError("TEXT_NOT_UTF8", "not UTF-8"))
        return plan, Submission(self._backend.model(), futures, self._backend.service.metrics)

    def _respond(self, plan: Request, _: Submission, outcomes: list[ItemOutcome]) -> str:
        return f"{plan.number}: {len(outcomes)}"

    def _failed(self, request_id: str, error: ServerError) -> str:
        return f"{request_id}: {error}"


@pytest.fixture
def client(running: DialectServer, settings: Callable[..., Settings]) -> Callable[..., Client]:
    def make(**values: object) -> Client:
        return Client(Backend(running.service, settings(**values), lambda: True))

    return make


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def steps() -> None:
    """Lets the event loop run until nothing changes any more."""
    for _ in range(10 * REQUESTS):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("without_collector")
async def test_requests_that_wait_for_their_response_are_not_kept(client: Callable[..., Client]) -> None:
    silent = client()
    task = asyncio.create_task(silent.run())
    await steps()
    assert silent.submitted == list(range(REQUESTS))
    assert [one() for one in silent.requests] == [None] * REQUESTS
    assert any(one() for one in silent.plans)
    task.cancel()
    await asyncio.wait([task])
    # Its traceback holds the frames.
    del task
    assert [one() for one in silent.plans] == [None] * len(silent.plans)


@pytest.mark.parametrize("path", ["inference.GRPCInferenceService/ModelStreamInfer", "tei.v1.Embed/EmbedStream"])
async def test_texts_that_are_in_the_queue_are_not_kept(running: DialectServer, engine: FakeEngine, path: str) -> None:
    engine.gate.clear()
    texts = [f"w{number} of a stream" for number in range(REQUESTS)]
    blocker = running.call(path, [_request(path, "w199")])
    await engine.hold()
    call = running.call(path, [_request(path, text) for text in texts])
    pipeline = running.service.pipeline
    assert isinstance(pipeline, Pipeline)
    await until(lambda: pipeline.scheduler.accounting.waiting_items == REQUESTS)
    # What comes last is still being decoded or submitted.
    assert not [one for one in gc.get_objects() if type(one) is Item and one.text in texts[:-1]]
    engine.gate.set()
    assert [len([response async for response in one]) for one in (blocker, call)] == [1, REQUESTS]


def _request(path: str, text: str) -> Any:
    if path.startswith("tei"):
        return TYPES["tei.v1.EmbedRequest"](inputs=text.encode())
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [text.encode()]}}
    return TYPES["inference.ModelInferRequest"](model_name="fake", inputs=[tensor])


async def test_texts_that_wait_for_their_response_are_bounded_by_the_window(client: Callable[..., Client]) -> None:
    silent = client(stream_window=2 * TEXTS)
    task = asyncio.create_task(silent.run())
    await steps()
    # The response to the first one, an error, is being written.
    assert silent.submitted == [0, 1, 2]
    silent.reads.set()
    await task
    expected = [f"{number}: {TEXTS if number % 4 else 'invalid'}" for number in range(REQUESTS)]
    assert silent.responses == expected
