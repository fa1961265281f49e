"""The key by which calls stay with one model."""

from __future__ import annotations

import pytest
from polyhead_server.candidate.routing import routing_key


def test_header_comes_before_key_and_address() -> None:
    assert routing_key("user-7", "shop", "ipv4:10.0.0.1:1") == "key:user-7"
    assert routing_key("", "shop", "ipv4:10.0.0.1:1") == "caller:shop"


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        ("ipv4:10.0.0.1:50000", "peer:10.0.0.1"),
        ("10.0.0.1:50001", "peer:10.0.0.1"),
        ("ipv6:%5B::1%5D:50000", "peer:::1"),
        ("ipv6:[::1]:50000", "peer:::1"),
        ("::1:50000", "peer:::1"),
        ("unix:", "peer:unix"),
        ("unix", "peer:unix"),
    ],
)
def test_address_counts_without_its_port(peer: str, key: str) -> None:
    assert routing_key("", "", peer) == key
