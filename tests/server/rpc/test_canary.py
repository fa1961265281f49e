"""A second pipeline that answers a share of the callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import polyhead_bundle as bundle
import pytest
from polyhead_server.candidate.answer_counts import AnswerCounts
from polyhead_server.candidate.routing import ROUTING_KEY
from polyhead_server.candidate.selection import is_selected
from polyhead_server.errors import ModelNotFoundError
from polyhead_server.inference.loop_turns import LoopTurns
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.inference.types import Item, Message, RequestOptions, Result
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.rpc.stream import Submitter
from polyhead_server.serving.backend import Backend
from polyhead_server.serving.models import Models
from polyhead_server.settings import Settings

from tests.support.fake_engine import MAX_TOKENS, FakeEngine

pytestmark = pytest.mark.timeout(60)
KEYS = [f"peer:10.0.0.{number}" for number in range(200)]


@dataclass
class Served:
    """A service with a served model and a candidate."""

    service: InferenceService
    model: Model
    candidate: Model
    pipelines: list[Pipeline]


@pytest.fixture
async def served(model: Model, tokenizer_file: Path, settings: Callable[..., Settings]) -> AsyncIterator[Served]:
    manifest = model.source.manifest
    fingerprints = bundle.Fingerprints("e" * 16, {"topic": "T" * 16, "sentiment": "s" * 16})
    variants = {"fp32": replace(manifest.variants["fp32"], fingerprints=fingerprints)}
    source = bundle.Bundle(Path("new"), replace(manifest, variants=variants), "f" * 64)
    candidate = Model(source, Tokenizer(tokenizer_file, MAX_TOKENS, 1000), FakeEngine(), (), max_batch_tokens=256)
    service = InferenceService(settings(), Metrics())
    pipelines = [Pipeline(one, settings()) for one in (model, candidate)]
    for pipeline in pipelines:
        pipeline.start()
    service.serve(pipelines[0])
    yield Served(service, model, candidate, pipelines)
    for pipeline in pipelines:
        await pipeline.close()


async def answer(served: Served, key: str, **options: str) -> Model:
    """Returns the model that answers a call with this key."""
    ROUTING_KEY.set(key)
    message = Message((Item("", "w1"),), RequestOptions(**options))  # type: ignore[arg-type]
    model, (outcome,) = await served.service.answer(message, None)
    assert isinstance(outcome, Result)
    return model


async def test_share_of_the_callers_is_answered_by_the_candidate(served: Served) -> None:
    served.service.route_canary(served.pipelines[1], 0.2)
    for _ in range(2):
        # Each caller stays with one model.
        for key in KEYS:
            expected = served.candidate if is_selected(key, 0.2) else served.model
            assert await answer(served, key) is expected
    assert 10 < sum(is_selected(key, 0.2) for key in KEYS) < 80
    served.service.canary = None
    assert {id(await answer(served, key)) for key in KEYS[:20]} == {id(served.model)}


async def test_call_that_states_fingerprints_is_answered_by_the_served_model(served: Served) -> None:
    served.service.route_canary(served.pipelines[1], 1.0)
    assert await answer(served, "peer:a") is served.candidate
    assert await answer(served, "peer:a", expected_space="e" * 16) is served.model


async def test_call_without_a_key_is_answered_by_the_served_model(served: Served) -> None:
    served.service.route_canary(served.pipelines[1], 1.0)
    assert await answer(served, "") is served.model


async def test_stream_follows_the_canary_and_its_end(served: Served) -> None:
    ROUTING_KEY.set("peer:a")
    submitter = Submitter(served.service._route, None, LoopTurns())
    message = Message((Item("", "w1"), Item("", "w2")), RequestOptions())

    async def model_of() -> Model:
        model, futures = await submitter.submit(message, 1)
        for future in futures:
            assert isinstance(await future, Result)
        return model

    assert await model_of() is served.model
    served.service.route_canary(served.pipelines[1], 1.0)
    assert await model_of() is served.candidate
    served.service.canary = None
    assert await model_of() is served.model


async def test_description_of_the_model_is_that_of_the_one_that_answers(served: Served) -> None:
    served.service.route_canary(served.pipelines[1], 1.0)
    ROUTING_KEY.set("peer:a")
    assert served.service.require_model() is served.candidate
    # What serves does not change with the caller.
    assert served.service.pipeline is served.pipelines[0]
    assert served.service.stats().model_id == served.model.source.model_id


async def test_id_of_either_model_names_it_for_every_caller(served: Served, settings: Callable[..., Settings]) -> None:
    served.service.route_canary(served.pipelines[1], 1.0)
    models = Models([Backend(served.service, settings(), lambda: True)])
    for key in ("", "peer:a"):
        ROUTING_KEY.set(key)
        for model in (served.model, served.candidate):
            assert models.named(model.source.model_id) is models.default
    with pytest.raises(ModelNotFoundError):
        models.named("another")


async def test_answers_of_both_models_are_counted(served: Served) -> None:
    counts = [AnswerCounts(), AnswerCounts()]
    served.service.observers.append(counts[0].observe)
    served.service.canary_observers.append(counts[1].observe)
    served.service.route_canary(served.pipelines[1], 0.2)
    for key in KEYS:
        await answer(served, key)
    await asyncio.sleep(0)
    selected = sum(is_selected(key, 0.2) for key in KEYS)
    assert [one.snapshot().texts for one in counts] == [len(KEYS) - selected, selected]
    assert sum(counts[1].snapshot().buckets.values()) == selected


async def test_failures_of_a_model_are_counted_and_mistakes_of_clients_are_not(
    served: Served, engine: FakeEngine
) -> None:
    counts = AnswerCounts()
    served.service.observers.append(counts.observe)
    engine.error = RuntimeError("broken")
    ROUTING_KEY.set("peer:a")
    await served.service.answer(Message((Item("", "poison"), Item("", "w1")), RequestOptions()), None)
    await served.service.answer(Message((Item("", "w1"),), RequestOptions(prompt="unknown")), None)
    await asyncio.sleep(0)
    assert (counts.snapshot().texts, counts.snapshot().errors) == (2, {"INTERNAL": 1})
