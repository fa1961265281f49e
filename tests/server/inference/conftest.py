from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
from polyhead_server.inference.model import Model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.settings import Settings


@pytest.fixture
async def pipeline(model: Model, settings: Callable[..., Settings]) -> AsyncIterator[Pipeline]:
    pipeline = Pipeline(model, settings())
    pipeline.start()
    yield pipeline
    await pipeline.close()
