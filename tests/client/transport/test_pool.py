from __future__ import annotations

import pytest
from polyhead_client.transport.pool import ConnectionPool


def test_few_calls_use_few_connections() -> None:
    connections = ConnectionPool(["a", "b", "c"])
    for _ in range(5):
        with connections.acquire() as lease:
            assert (lease.index, lease.stub) == (0, "a")


def test_calls_that_run_together_are_dealt_out_evenly() -> None:
    connections = ConnectionPool(["a", "b", "c"])
    leases = [connections.acquire() for _ in range(6)]
    assert [lease.stub for lease in leases] == ["a", "b", "c", "a", "b", "c"]
    leases[4].release()
    assert connections.acquire().stub == "b"


def test_connection_to_avoid_is_taken_only_when_there_is_no_other() -> None:
    connections = ConnectionPool(["a", "b"])
    busy = [connections.acquire({0}) for _ in range(3)]
    assert {lease.stub for lease in busy} == {"b"}
    assert connections.acquire({0, 1}).stub == "a"


def test_connection_is_given_back_when_its_call_fails() -> None:
    connections = ConnectionPool(["a", "b"])
    with pytest.raises(ZeroDivisionError), connections.acquire():
        _ = 1 / 0
    assert connections.acquire().stub == "a"
