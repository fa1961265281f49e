from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
from polyhead_server.inference.admission import Admission
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.inference.scheduler import BatchScheduler
from polyhead_server.settings import Settings


@pytest.fixture
async def pipeline(model: Model, settings: Callable[..., Settings]) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(model, settings())
    pipeline.start()
    yield pipeline
    await pipeline.close()


@pytest.fixture
def admission(scheduler: BatchScheduler) -> Admission:
    """Two workers with 1,000 tokens a second each; at most 2 s, or 10,000 tokens, of queue."""
    return Admission(scheduler.accounting, 2, max_queue_s=2.0, max_queue_tokens=10_000, tokens_per_s=1000)
