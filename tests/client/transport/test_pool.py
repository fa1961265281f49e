from __future__ import annotations

import pytest
from polyhead_client.transport.pool import Connections


def test_few_calls_use_few_connections() -> None:
    connections = Connections(["a", "b", "c"])
    for _ in range(5):
        with connections.lease() as lease:
            assert (lease.number, lease.stub) == (0, "a")


def test_calls_that_run_together_are_dealt_out_evenly() -> None:
    connections = Connections(["a", "b", "c"])
    leases = [connections.lease() for _ in range(6)]
    assert [lease.stub for lease in leases] == ["a", "b", "c", "a", "b", "c"]
    leases[4].give_back()
    assert connections.lease().stub == "b"


def test_connection_to_avoid_is_taken_only_when_there_is_no_other() -> None:
    connections = Connections(["a", "b"])
    busy = [connections.lease({0}) for _ in range(3)]
    assert {lease.stub for lease in busy} == {"b"}
    assert connections.lease({0, 1}).stub == "a"


def test_connection_is_given_back_when_its_call_fails() -> None:
    connections = Connections(["a", "b"])
    with pytest.raises(ZeroDivisionError), connections.lease():
        _ = 1 / 0
    assert connections.lease().stub == "a"
