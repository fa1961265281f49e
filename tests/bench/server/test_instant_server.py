from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from polyhead_client import Client

from bench.server.fronts import running


@pytest.mark.parametrize("fronts", [0, 1])
def test_engine_that_answers_at_once_gives_all_texts_the_same_embedding(demo_bundle: Path, fronts: int) -> None:
    with running(demo_bundle, fronts, real=False) as server, Client(server.target) as client:
        first, second = client.analyze(["My parcel is late.", "Great product!"])
    assert first.embedding is not None
    np.testing.assert_array_equal(first.embedding, second.embedding)


def test_model_gives_them_different_ones(demo_bundle: Path) -> None:
    with running(demo_bundle, 0, real=True) as server, Client(server.target) as client:
        first, second = client.analyze(["My parcel is late.", "Great product!"])
    assert first.embedding is not None
    assert second.embedding is not None
    assert not np.allclose(first.embedding, second.embedding)
