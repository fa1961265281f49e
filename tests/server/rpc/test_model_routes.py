"""Calls reach the model that their metadata names, on a real socket with two fake models."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from grpc import aio
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc import service_names
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.rpc.interceptors.errors import ErrorInterceptor
from polyhead_server.rpc.method_table import inference_handler
from polyhead_server.rpc.model_routes import ModelRoutes
from polyhead_server.serving.backend import Backend
from polyhead_server.serving.models import Models
from polyhead_server.settings import Settings

from tests.support.fake_engine import MAX_TOKENS, FakeEngine, embedding_of
from tests.support.inference_server import InferenceServer, collect, embedding, items
from tests.support.polling import until

pytestmark = pytest.mark.timeout(60)
NAMES = ("first", "second")


@dataclass
class Server:
    """A server of two models, of which none serves yet.

    Attributes:
        services: Those of the models.
        interceptor: Maps errors, and keeps what it derives from handlers.
    """

    services: list[InferenceService]
    channel: aio.Channel
    interceptor: ErrorInterceptor

    async def call(self, name: str | None, text: str = "w1") -> Any:
        metadata = () if name is None else (("x-polyhead-model", name),)
        stub = InferenceServer(self.services[0], self.channel).stub
        return await stub.Analyze(pb2.AnalyzeRequest(items=items([text])), metadata=metadata)

    async def refusal(self, name: str) -> tuple[str, str]:
        """Returns the code and the message with which a call fails."""
        with pytest.raises(aio.AioRpcError) as caught:
            await self.call(name)
        return caught.value.code().name, str(caught.value.details())


@pytest.fixture
async def server(settings: Callable[..., Settings]) -> AsyncIterator[Server]:
    services: list[InferenceService] = []
    for name in NAMES:
        beside = services[0] if services else None
        services.append(InferenceService(settings(served_name=name), Metrics(name), beside))
    backends = [Backend(service, settings(), lambda: True) for service in services]
    models = Models(backends)
    for service in services:
        service.model_names = models.names
    interceptor = ErrorInterceptor(service_names.INFERENCE)
    grpc_server = aio.server(interceptors=[interceptor])
    handlers = {backend: inference_handler(service) for backend, service in zip(backends, services, strict=True)}
    grpc_server.add_generic_rpc_handlers((ModelRoutes(models, handlers),))
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Server(services, channel, interceptor)
    await grpc_server.stop(None)


@pytest.fixture
async def running(server: Server, model: Model, tokenizer_file: Any, settings: Any) -> AsyncIterator[Server]:
    """Both models serve; the second one reads shorter texts and has another id."""
    manifest = dataclasses.replace(model.source.manifest, max_tokens=5, name="other")
    short = dataclasses.replace(
        model,
        source=dataclasses.replace(model.source, manifest=manifest),
        tokenizer=Tokenizer(tokenizer_file, 5, max_characters=1000),
        engine=FakeEngine(),
    )
    pipelines = [Pipeline(one, settings()) for one in (model, short)]
    for service, pipeline in zip(server.services, pipelines, strict=True):
        pipeline.start()
        service.serve(pipeline)
    yield server
    await asyncio.gather(*(pipeline.close() for pipeline in pipelines))


async def test_each_call_reaches_the_model_that_it_names(running: Server) -> None:
    long = " ".join(f"w{number}" for number in range(9))
    used = {
        name: (await running.call(name, long)).answers[0].result.truncation.tokens_used
        for name in (None, "first", "second", running.services[1].require_model().source.model_id)
    }
    # 9 words and two special tokens; at most 5 of the other model.
    assert list(used.values()) == [11, 11, 5, 5]
    assert MAX_TOKENS > 11


async def test_stream_reaches_the_model_that_it_names(running: Server) -> None:
    stub = InferenceServer(running.services[0], running.channel).stub
    requests = [pb2.StreamAnalyzeRequest(items=items(["w1", "w2 " * 9]))]
    answers = await collect(stub.StreamAnalyze(iter(requests), metadata=(("x-polyhead-model", "second"),)))
    assert embedding(answers[0]) == embedding_of("w1")
    assert answers[1].result.truncation.tokens_used == 5


async def test_name_is_described(running: Server) -> None:
    stub = InferenceServer(running.services[0], running.channel).stub
    for name, metadata in (("first", ()), ("second", (("x-polyhead-model", "second"),))):
        info = await stub.GetModelInfo(pb2.GetModelInfoRequest(), metadata=metadata)
        assert (info.name, list(info.model_names)) == (name, list(NAMES))
        assert info.model.model_id == running.services[NAMES.index(name)].require_model().source.model_id


async def test_unknown_name_is_not_found_and_leaves_nothing_behind(running: Server) -> None:
    problem = "this server serves the models 'first', 'second', version 1 of each, and no other"
    for number in range(5):
        assert await running.refusal(f"third-{number}") == ("NOT_FOUND", problem)
    # One for each method that was called, not for each name.
    assert running.interceptor._wrap_large.cache_info().currsize <= 2


async def test_method_that_does_not_exist_has_no_model(running: Server) -> None:
    method: Any = running.channel.unary_unary(f"/{service_names.INFERENCE}/Nothing")
    with pytest.raises(aio.AioRpcError, match="UNIMPLEMENTED"):
        await method(b"", metadata=(("x-polyhead-model", "third"),))


async def test_named_model_that_loads_is_not_ready(server: Server) -> None:
    for name in NAMES:
        assert (await server.refusal(name))[0] == "UNAVAILABLE"


async def test_names_are_those_of_the_command_line_while_models_load(server: Server) -> None:
    code, message = await server.refusal("third")
    # It may be the id of a bundle that is still loading.
    assert code == "UNAVAILABLE", message


async def test_models_share_the_count_of_calls_and_drain_together(running: Server) -> None:
    first, second = running.services
    second.require_model().engine.gate.clear()  # type: ignore[attr-defined]
    call = asyncio.ensure_future(running.call("second"))
    await until(lambda: first.calls_in_progress)
    assert first.stats().requests_running == second.stats().requests_running == 1
    for service in running.services:
        service.drain()
    assert not await first.wait_idle(0.0)
    second.require_model().engine.gate.set()  # type: ignore[attr-defined]
    await call
    assert await first.wait_idle(30)
    for name in NAMES:
        assert (await running.refusal(name))[0] == "UNAVAILABLE"
