"""A serving process's part in a canary, with a candidate's engine in the same event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from polyhead_server.candidate.parameters import CanaryParams
from polyhead_server.candidate.routing import ROUTING_KEY
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.types import ItemOutcome, Message, OutcomeFuture, Result
from polyhead_server.lifecycle.candidate_operations import CandidateOperations
from polyhead_server.observability.metrics import Metrics
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.settings import Settings

from tests.support.front_processes import TIMEOUT_S, EngineProcess, write_model
from tests.support.submissions import message

pytestmark = pytest.mark.timeout(60)

END = CanaryParams()


@pytest.fixture
async def service(model: Model, settings: Callable[..., Settings]) -> AsyncIterator[InferenceService]:
    """The service of the served model."""
    service = InferenceService(settings(), Metrics())
    pipeline = Pipeline(model, settings())
    pipeline.start()
    service.serve(pipeline)
    yield service
    await pipeline.close()


@pytest.fixture
async def process(
    tmp_path: Path, tokenizer_file: Path, settings: Callable[..., Settings]
) -> AsyncIterator[EngineProcess]:
    """The engine of the candidate."""
    process = EngineProcess(tmp_path / "engine", settings())
    await process.start(write_model(tmp_path / "candidate", tokenizer_file))
    yield process
    await process.stop()


@pytest.fixture
def canary(tmp_path: Path) -> CanaryParams:
    """A canary that answers every caller."""
    return CanaryParams(str(tmp_path / "engine"), 1.0)


@pytest.fixture
async def operations(
    service: InferenceService, process: EngineProcess, settings: Callable[..., Settings]
) -> AsyncIterator[CandidateOperations]:
    operations = CandidateOperations(service, settings(), None)
    yield operations
    await operations.set_canary(CanaryParams(lost=True))
    await operations.drain_canary()


async def answer(service: InferenceService) -> tuple[Model, ItemOutcome]:
    ROUTING_KEY.set("peer:a")
    model, (outcome,) = await service.answer(message("w1"), None)
    return model, outcome


async def test_canary_answers_until_it_ends(
    operations: CandidateOperations, service: InferenceService, model: Model, canary: CanaryParams
) -> None:
    await operations.set_canary(canary)
    candidate, outcome = await answer(service)
    assert isinstance(outcome, Result)
    assert candidate is not model
    await asyncio.sleep(0)
    assert operations.canary_counts().candidate.texts == 1
    await operations.set_canary(END)
    assert (await answer(service))[0] is model
    await asyncio.wait_for(operations.drain_canary(), TIMEOUT_S)


async def test_end_that_comes_while_the_canary_begins_ends_it(
    operations: CandidateOperations, service: InferenceService, model: Model, canary: CanaryParams
) -> None:
    await asyncio.gather(operations.set_canary(canary), operations.set_canary(END))
    assert (await answer(service))[0] is model
    assert service.observers == service.canary_observers == []


async def test_canary_that_is_requested_twice_at_once_begins_once(
    operations: CandidateOperations, service: InferenceService, process: EngineProcess, canary: CanaryParams
) -> None:
    await asyncio.gather(operations.set_canary(canary), operations.set_canary(canary))
    assert len(process.host.connections) == len(service.observers) == len(service.canary_observers) == 1


async def test_engine_that_ends_after_its_canary_leaves_its_texts_to_the_served_model(
    operations: CandidateOperations,
    service: InferenceService,
    process: EngineProcess,
    model: Model,
    canary: CanaryParams,
) -> None:
    await operations.set_canary(canary)
    process.engine.gate.clear()
    call = asyncio.create_task(answer(service))
    await process.engine.hold()
    await operations.set_canary(END)
    draining = asyncio.create_task(operations.drain_canary())
    await asyncio.sleep(0.02)
    assert not draining.done()
    await process.stop()
    answered_by, outcome = await asyncio.wait_for(call, TIMEOUT_S)
    assert answered_by is model
    assert isinstance(outcome, Result)
    await asyncio.wait_for(draining, TIMEOUT_S)


async def test_observer_of_all_texts_sees_those_of_the_canary_with_its_model(
    operations: CandidateOperations, service: InferenceService, model: Model, canary: CanaryParams
) -> None:
    seen: list[Model] = []

    def observe(by: Model, _: Message, __: Sequence[OutcomeFuture]) -> None:
        seen.append(by)

    service.observe(observe)
    await operations.set_canary(canary)
    candidate, _ = await answer(service)
    await operations.set_canary(END)
    await answer(service)
    assert seen == [candidate, model]
