from __future__ import annotations

import pytest
from polyhead_client.transport.pool import ConnectionPool


def test_sequential_calls_use_one_connection() -> None:
    pool = ConnectionPool(["a", "b", "c"])
    for _ in range(5):
        with pool.acquire() as lease:
            assert (lease.index, lease.stub) == (0, "a")


def test_concurrent_calls_are_distributed_evenly() -> None:
    pool = ConnectionPool(["a", "b", "c"])
    leases = [pool.acquire() for _ in range(6)]
    assert [lease.stub for lease in leases] == ["a", "b", "c", "a", "b", "c"]
    leases[4].release()
    assert pool.acquire().stub == "b"


def test_avoided_connection_is_used_only_if_there_is_no_other() -> None:
    pool = ConnectionPool(["a", "b"])
    busy = [pool.acquire({0}) for _ in range(3)]
    assert {lease.stub for lease in busy} == {"b"}
    assert pool.acquire({0, 1}).stub == "a"


def test_connection_is_released_when_its_call_fails() -> None:
    pool = ConnectionPool(["a", "b"])
    with pytest.raises(ZeroDivisionError), pool.acquire():
        _ = 1 / 0
    assert pool.acquire().stub == "a"
