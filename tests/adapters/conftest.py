"""A fake server for the adapters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_server import FakeServicer, serve_fake


@pytest.fixture(autouse=True)
def no_api_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYHEAD_API_KEY", raising=False)


@pytest.fixture
def servicer() -> Iterator[FakeServicer]:
    """A servicer behind a real server."""
    with serve_fake() as servicer:
        yield servicer
