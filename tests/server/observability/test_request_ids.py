"""Request ids: a client's own, or a random one."""

from __future__ import annotations

import re

import pytest
from polyhead_server.observability.request_ids import request_id


@pytest.mark.parametrize("received", ["a", "4bf92f35-77b3", "x" * 128, "A.b_c:/+=@-"])
def test_id_of_the_client_is_kept(received: str) -> None:
    assert request_id(received) == received


@pytest.mark.parametrize("received", ["", "x" * 129, "two words", "line\n", "é", "%s"])
def test_any_other_id_is_replaced_by_a_random_one(received: str) -> None:
    first, second = request_id(received), request_id(received)
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert first != second
