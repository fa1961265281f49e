"""Fixtures of the tests of the command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from polyhead.v1 import admin_service_pb2_grpc


@pytest.fixture
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes imports of rich fail, as in the image of the server, where it is not installed."""
    for name in [name for name in sys.modules if name.startswith("rich.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)


@pytest.fixture
def target(service: admin_service_pb2_grpc.AdminServiceServicer, tmp_path: Path) -> Iterator[str]:
    """Address of a server with the admin service that the module of the test names ``service``."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server(service, server)
        server.add_insecure_port(f"unix:{tmp_path}/admin")
        server.start()
        yield f"unix:{tmp_path}/admin"
        server.stop(None).wait()
