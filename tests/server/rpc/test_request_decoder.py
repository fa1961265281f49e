"""Request messages as the server's own types, and what becomes of invalid ones."""

from __future__ import annotations

import os

import pytest
from google.protobuf.message import DecodeError
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2
from polyhead_server.inference.types import (
    ALL_TASKS,
    MAX_ITEM_ID_BYTES,
    Encoding,
    InvalidItem,
    Item,
    Message,
    RequestOptions,
    Task,
    Truncation,
)
from polyhead_server.rpc import message_limits
from polyhead_server.rpc.request_decoder import RequestDecoder

MAX_ITEMS = 5

decode_analyze = RequestDecoder(pb2.StreamAnalyzeRequest, MAX_ITEMS)


def request(*items: item_pb2.Item, **fields: object) -> bytes:
    return pb2.StreamAnalyzeRequest(items=items, **fields).SerializeToString()  # type: ignore[arg-type]


def reasons(message: Message) -> list[str | None]:
    """Returns why each item is rejected."""
    if message.error:
        return [message.error.reason] * len(message.items)
    return [item.error.reason if isinstance(item, InvalidItem) else None for item in message.items]


def test_message_without_options_requests_every_task() -> None:
    message = decode_analyze(request(item_pb2.Item(item_id="1", text="héllo")))
    assert list(message.items) == [Item("1", "héllo")]
    assert message.options == RequestOptions(
        ALL_TASKS, encoding=Encoding.FLOAT32_LE, truncation=Truncation.TRUNCATE, timings=False
    )
    assert (message.in_order, message.error) == (None, None)


def test_options_are_decoded() -> None:
    message = decode_analyze(
        request(
            tasks=[item_pb2.TASK_SENTIMENT, item_pb2.TASK_SENTIMENT],
            options=item_pb2.ItemOptions(truncation=item_pb2.TRUNCATION_POLICY_ERROR, include_timings=True),
            embedding_options=item_pb2.EmbeddingOptions(encoding=item_pb2.EMBEDDING_ENCODING_INT8, dimensions=1),
            order=item_pb2.ANSWER_ORDER_COMPLETION,
        )
    )
    assert message.options == RequestOptions(
        frozenset({Task.SENTIMENT}),
        frozenset({Task.SENTIMENT}),
        Encoding.INT8,
        dimensions=1,
        truncation=Truncation.ERROR,
        timings=True,
    )
    assert message.in_order is False


@pytest.mark.parametrize("request_type", [pb2.AnalyzeRequest, pb2.StreamAnalyzeRequest, pb2.StreamEmbedRequest])
def test_text_that_is_not_utf8_does_not_affect_other_items(request_type: type[pb2.AnalyzeRequest]) -> None:
    items = [item_pb2.Item(item_id=name, text=f"text {name}") for name in "abc"]
    options = item_pb2.ItemOptions(include_timings=True)
    data = request_type(items=items, options=options).SerializeToString().replace(b"text b", b"tex\xff b")
    message = RequestDecoder(request_type, MAX_ITEMS)(data)
    assert reasons(message) == [None, "TEXT_NOT_UTF8", None]
    assert [item.item_id for item in message.items] == ["a", "b", "c"]
    assert message.items[2] == Item("c", "text c")
    assert message.options.timings


def test_id_that_is_not_utf8_is_rejected() -> None:
    data = request(item_pb2.Item(item_id="zz", text="x")).replace(b"zz", b"\xff\xfe")
    assert reasons(decode_analyze(data)) == ["ITEM_ID_NOT_UTF8"]


@pytest.mark.parametrize(("size", "reason"), [(MAX_ITEM_ID_BYTES, None), (MAX_ITEM_ID_BYTES + 1, "ITEM_ID_TOO_LONG")])
def test_id_has_a_limit(size: int, reason: str | None) -> None:
    assert reasons(decode_analyze(request(item_pb2.Item(item_id="i" * size)))) == [reason]


@pytest.mark.parametrize("data", [b"\x0a\xff", b"\xff", b"garbage"])
def test_malformed_message_gets_one_answer(data: bytes) -> None:
    message = decode_analyze(data)
    assert reasons(message) == ["MALFORMED_MESSAGE"]
    assert message.items[0].item_id == ""


@pytest.mark.parametrize(("count", "expected"), [(MAX_ITEMS, [None] * MAX_ITEMS), (MAX_ITEMS + 1, ["TOO_MANY_ITEMS"])])
def test_message_with_too_many_items_gets_one_answer(count: int, expected: list[str | None]) -> None:
    assert reasons(decode_analyze(request(*[item_pb2.Item(item_id="1")] * count))) == expected


@pytest.mark.parametrize("item_id", [b"i" * 10_000, b"\xff" * 10_000])
def test_invalid_id_is_echoed_truncated(item_id: bytes) -> None:
    data = request(item_pb2.Item(item_id="x" * 10_000)).replace(b"x" * 10_000, item_id)
    (item,) = decode_analyze(data).items
    assert len(item.item_id) == 64


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tasks": [99]}, "UNKNOWN_TASK"),
        ({"tasks": [item_pb2.TASK_UNSPECIFIED]}, "UNKNOWN_TASK"),
        ({"order": 9}, "UNKNOWN_ORDER"),
        ({"options": item_pb2.ItemOptions(truncation=9)}, "UNKNOWN_TRUNCATION"),  # type: ignore[arg-type]
        ({"embedding_options": item_pb2.EmbeddingOptions(encoding=9)}, "UNKNOWN_ENCODING"),  # type: ignore[arg-type]
    ],
)
def test_unknown_enum_number_rejects_every_item(fields: dict[str, object], reason: str) -> None:
    message = decode_analyze(request(item_pb2.Item(item_id="1"), item_pb2.Item(item_id="2"), **fields))
    assert reasons(message) == [reason, reason]
    assert [item.item_id for item in message.items] == ["1", "2"]


def test_expected_fingerprints_are_decoded() -> None:
    expected = item_pb2.Fingerprints(
        embedding_space="e" * 16, heads=[item_pb2.HeadFingerprint(head="topic", fingerprint="t" * 16)]
    )
    options = item_pb2.ItemOptions(expected_fingerprints=expected)
    decoded = decode_analyze(pb2.AnalyzeRequest(options=options).SerializeToString()).options
    assert (decoded.expected_space, decoded.expected_heads) == ("e" * 16, (("topic", "t" * 16),))


@pytest.mark.parametrize(
    "expected",
    [
        item_pb2.Fingerprints(embedding_space="e" * 17),
        item_pb2.Fingerprints(embedding_space="e" * 60_000),
        item_pb2.Fingerprints(heads=[item_pb2.HeadFingerprint(head="topic", fingerprint="short")]),
        item_pb2.Fingerprints(heads=[item_pb2.HeadFingerprint(head="topic")] * 1025),
    ],
)
def test_fingerprint_that_no_model_can_have_rejects_every_item(expected: item_pb2.Fingerprints) -> None:
    options = item_pb2.ItemOptions(expected_fingerprints=expected)
    message = decode_analyze(request(item_pb2.Item(item_id="1"), item_pb2.Item(item_id="2"), options=options))
    assert reasons(message) == ["INVALID_FINGERPRINT"] * 2
    assert len(str(message.error)) < 100


def test_items_with_the_same_mistake_share_one_error() -> None:
    data = request(*[item_pb2.Item(text="??")] * 2).replace(b"??", b"\xff\xfe")
    first, second = decode_analyze(data).items
    assert isinstance(first, InvalidItem)
    assert isinstance(second, InvalidItem)
    assert first.error is second.error


def test_large_message_is_decoded_in_parts() -> None:
    texts = [str(number) for number in range(1000)] + ["x" * 40_000] * 4
    data = pb2.AnalyzeRequest(items=[item_pb2.Item(text=text) for text in texts]).SerializeToString()
    message = RequestDecoder(pb2.AnalyzeRequest, 2000)(data)
    parts = [[item.text for item in part.items if isinstance(item, Item)] for part in message.parts()]
    assert [text for part in parts for text in part] == texts
    assert max(map(len, parts)) == 64
    assert [len(part) for part in parts[-2:]] == [42, 2]
    assert message.items[:2] == [Item("", "0"), Item("", "1")]


@pytest.mark.parametrize(("text", "decoded"), [("aé€😀" * 9, "aé€😀aé€"), ("aé€", "aé€"), ("😀" * 9, "😀" * 4)])
def test_text_is_decoded_up_to_the_limit(text: str, decoded: str) -> None:
    decode = RequestDecoder(pb2.StreamAnalyzeRequest, MAX_ITEMS, max_text_bytes=lambda: 18)
    (item,) = decode(request(item_pb2.Item(text=text))).items
    assert isinstance(item, Item)
    assert item.text == decoded


def test_text_must_be_utf8_up_to_the_limit() -> None:
    decode = RequestDecoder(pb2.StreamAnalyzeRequest, MAX_ITEMS, max_text_bytes=lambda: 4)
    data = request(item_pb2.Item(text="aXb" + "long" * 9)).replace(b"aXb", b"a\xffb")
    assert reasons(decode(data)) == ["TEXT_NOT_UTF8"]


def test_process_that_cannot_parse_for_lack_of_memory_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed allocation in protobuf is no mistake of the client; here the step before the parser plays its part."""

    def fail(*_: object) -> None:
        raise DecodeError("Error parsing message: Arena alloc failed")

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(message_limits, "check", fail)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        decode_analyze(b"")
