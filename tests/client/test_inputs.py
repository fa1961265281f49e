"""Inputs that are no texts: rejected with their position before anything is sent, by every method of both clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from polyhead_client import Client, InvalidRequestError

from tests.support.both_clients import Face
from tests.support.fake_server import FakeServicer, labels

METHODS: list[Callable[[Face, Any], Any]] = [
    lambda client, texts: client.analyze(texts),
    lambda client, texts: client.unary("embeddings", texts),
    lambda client, texts: list(client.stream(texts)),
]
INVALID: list[tuple[Any, str]] = [
    (None, "text 17 is None"),
    (float("nan"), "text 17 is NaN"),
    (np.float64("nan"), "text 17 is NaN"),
    (b"bytes", "text 17 is of type bytes b'bytes'"),
    (3, "text 17 is of type int 3"),
    (2.5, "text 17 is of type float 2.5"),
    (True, "text 17 is of type bool True"),
    (["a", "b"], "text 17 is of type list"),
    ({"text": "a"}, "text 17 is of type dict"),
    (("a", "b", "c"), "text 17 is of type tuple"),
    (("id", None), "text 17 is None"),
    ((7, "text"), "text 17 is a tuple whose id is of type int 7"),
]


class Series:
    """Like a pandas Series: neither a list nor a Sequence, with values of any kind."""

    def __init__(self, values: list[Any]) -> None:
        self._values = values
        self.ndim = 1

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Any:
        return iter(self._values)


@pytest.fixture
def unconnected() -> Iterator[Client]:
    """A client without a server."""
    with Client("127.0.0.1:1") as client:
        yield client


@pytest.mark.parametrize(("value", "problem"), INVALID)
def test_value_that_is_no_text_is_named_with_its_position(unconnected: Client, value: Any, problem: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        unconnected.analyze([*["fine"] * 17, value, "fine"])
    assert caught.value.message.startswith(problem)
    assert caught.value.reason == "INVALID_TEXT"


def test_every_method_rejects_a_value_that_is_no_text_and_sends_nothing(client: Face, servicer: FakeServicer) -> None:
    for call in METHODS:
        with pytest.raises(InvalidRequestError, match="text 17 is None"):
            call(client, [*["fine"] * 17, None, "fine"])
    assert servicer.calls == []


def test_series_with_a_missing_value_is_rejected_before_anything_is_sent(connect: Any, servicer: FakeServicer) -> None:
    client = connect(servicer.target)
    with pytest.raises(InvalidRequestError, match="text 1 is NaN"):
        client.client.stream(Series(["one", float("nan")]))
    with pytest.raises(InvalidRequestError, match="text 1 is NaN"):
        client.analyze(Series(["one", float("nan")]))
    assert servicer.calls == []


def test_collections_of_texts_are_accepted(client: Face) -> None:
    collections: list[Any] = [
        np.array(["one", "two"]),
        np.array(["one", "two"], object),
        Series(["one", "two"]),
        ("one", "two"),
        {"one": 1, "two": 2}.keys(),
    ]
    for texts in collections:
        assert labels(client.analyze(texts)) == ["one", "two"]
        assert labels(client.analyze(text for text in texts)) == ["one", "two"]


def test_generator_is_checked_while_it_is_read(client: Face) -> None:
    with pytest.raises(InvalidRequestError, match="text 1 is of type int 7"):
        list(client.stream(iter(["one", 7])))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ("text", r"not one str; use \[text\]"),
        (b"text", "not bytes"),
        ({"a": "text"}, "not dict; pass its texts alone"),
        (None, "not NoneType"),
        (7, "not int"),
        (np.array([["a", "b"]]), "not ndarray"),
        (np.array("text"), "not ndarray"),
    ],
)
def test_value_that_is_no_collection_of_texts_is_rejected(unconnected: Client, texts: Any, problem: str) -> None:
    for call in (unconnected.analyze, unconnected.stream):
        with pytest.raises(InvalidRequestError, match=problem):
            call(texts)


def test_every_method_rejects_one_text_instead_of_splitting_it(connect: Any, servicer: FakeServicer) -> None:
    client = connect(servicer.target)
    for method in ("analyze", "embed", "embeddings", "classify", "sentiment"):
        with pytest.raises(InvalidRequestError, match=r"use \[text\]"):
            client.unary(method, "text")
    # At once, not when the answers are read.
    with pytest.raises(InvalidRequestError, match=r"use \[text\]"):
        client.client.stream("text")
    assert servicer.calls == []


def test_table_is_rejected_instead_of_analyzed_by_its_column_names(client: Face) -> None:
    class Frame(Series):
        columns = ("text",)

    with pytest.raises(InvalidRequestError, match="not Frame; pass its texts alone"):
        client.analyze(Frame(["text"]))


def test_unary_call_rejects_an_async_iterable(client: Face) -> None:
    async def texts() -> Any:
        yield "text"

    with pytest.raises(InvalidRequestError, match="not async_generator; the streaming methods of AsyncClient"):
        client.analyze(texts())


@pytest.mark.parametrize(
    "option",
    [
        {"tasks": "embedding"},
        {"tasks": ["poetry"]},
        {"tasks": [None]},
        {"truncation": "cut"},
        {"prompt": ""},
        {"prompt": "requ\u00eate"},
        {"prompt": ["query"]},
        {"encoding": "float64"},
        {"encoding": ["int8"]},
        {"dimensions": 0},
        {"dimensions": "64"},
        {"dimensions": 64.0},
        {"dimensions": True},
        {"dimensions": 2**32},
        {"deadline_s": "5"},
        {"deadline_s": float("nan")},
        {"expected_fingerprints": "00112233445566aa"},
    ],
)
def test_invalid_option_is_named(unconnected: Client, option: dict[str, Any]) -> None:
    for call in (unconnected.analyze, unconnected.stream):
        with pytest.raises(InvalidRequestError, match=f"^INVALID_ARGUMENT: {next(iter(option))}: "):
            list(call(["text"], **option))


def test_invalid_option_is_rejected_at_once_by_both_clients(connect: Any) -> None:
    client = connect("127.0.0.1:1")
    with pytest.raises(InvalidRequestError, match="truncation"):
        client.analyze(["text"], truncation="maybe")
    for option in ({"truncation": "maybe"}, {"order": "random"}, {"max_in_flight": 0}):
        with pytest.raises(InvalidRequestError, match=next(iter(option))):
            client.client.stream(["text"], **option)


def test_number_of_numpy_is_a_number_of_dimensions(client: Face) -> None:
    assert client.unary("embeddings", ["text"], dimensions=np.int64(2)).shape == (1, 2)
