from __future__ import annotations

import json

import pytest

from .json_mutation import each_value_replaced, mutated

DOCUMENT = {"text": "a", "items": [{"id": 1}, {"id": 2}], "options": {"prompt": None}}


def test_changed_documents_are_json_and_differ() -> None:
    data = b"\x05" + json.dumps(DOCUMENT).encode()
    changed = {mutated(data, seed, prefix=1) for seed in range(200)}
    assert len(changed) > 100
    for one in changed:
        assert one is not None
        assert one[:1] == b"\x05"
        json.loads(one[1:])


def test_one_seed_gives_one_document() -> None:
    data = json.dumps(DOCUMENT).encode()
    assert mutated(data, 7) == mutated(data, 7)


@pytest.mark.parametrize("data", [b"", b"{", b"1", b'"text"', b"\xff", b"[" * 100_000])
def test_other_bytes_are_left_to_the_fuzzer(data: bytes) -> None:
    assert mutated(data, 0) is None


def test_empty_document_stays_empty() -> None:
    assert mutated(b"{}", 0) == b"{}"


def test_each_value_is_replaced_by_each_type_and_then_restored() -> None:
    found = [json.loads(one[1:]) for one in each_value_replaced(b'x{"a": [1], "b": "c"}', prefix=1)]
    assert len(found) == 3 * 7
    assert {"a": {}, "b": "c"} in found
    assert {"a": [None], "b": "c"} in found
    assert {"a": [1], "b": []} in found
    assert all(set(one) == {"a", "b"} for one in found)
    assert len(list(each_value_replaced(b'{"a": [1], "b": "c"}', at_most=7))) == 6
