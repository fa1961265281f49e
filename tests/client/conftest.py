"""Fixtures: fake servers, and a client of either kind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.both_clients import AsyncFace, Face, SyncFace
from tests.support.fake_server import FakeServicer, serve_fake


@pytest.fixture
def servicer() -> Iterator[FakeServicer]:
    """A servicer behind a real server."""
    with serve_fake() as servicer:
        yield servicer


@pytest.fixture
def two_servicers() -> Iterator[list[FakeServicer]]:
    """Two servers."""
    with serve_fake() as first, serve_fake() as second:
        yield [first, second]


@pytest.fixture(params=[SyncFace, AsyncFace])
def connect(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Creates a client: ``connect(target, **options) -> Face``."""
    with contextlib.ExitStack() as opened:

        def connected(target: str, **options: Any) -> Face:
            face: Face = request.param(target, **options)
            opened.callback(face.dispose)
            return face

        yield connected


@pytest.fixture
def client(connect: Any, servicer: FakeServicer) -> Face:
    """A client of the server."""
    face: Face = connect(servicer.target)
    return face
