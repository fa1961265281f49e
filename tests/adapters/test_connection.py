"""The clients behind the adapters: one call for all texts, from any thread and event loop."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from typing import Any

import grpc
import numpy as np
import pytest
from polyhead_adapters._connection import MAX_UNARY_TEXTS, Connection, tls_to_dict
from polyhead_client import DeadlineExceededError, InvalidRequestError, ItemFailedError, ServerError, Tls

from tests.support.fake_server import BUSY, ERROR, FakeServicer, embedding_of, labels


def texts(number: int) -> list[str]:
    return [f"{index:03}" for index in range(number)]


@pytest.mark.parametrize(
    ("number", "calls"), [(1, ["Analyze"]), (MAX_UNARY_TEXTS, ["Analyze"]), (MAX_UNARY_TEXTS + 1, ["StreamAnalyze"])]
)
def test_all_texts_share_one_call(servicer: FakeServicer, number: int, calls: list[str]) -> None:
    connection = Connection(servicer.target)
    expected = np.array([embedding_of(text) for text in texts(number)], np.float32)
    np.testing.assert_array_equal(connection.embeddings(texts(number)), expected)
    assert asyncio.run(connection.avectors(texts(number))) == expected.tolist()
    assert servicer.calls == calls * 2


def test_no_texts_have_the_dimensions_of_the_model(servicer: FakeServicer) -> None:
    connection = Connection(servicer.target)
    assert connection.embeddings([]).shape == (0, 3)
    assert connection.vectors([]) == asyncio.run(connection.avectors([])) == []
    assert servicer.calls == ["GetModelInfo"]


def test_options_are_sent(servicer: FakeServicer) -> None:
    space = "00112233445566aa"
    connection = Connection(
        servicer.target, dimensions=2, truncation="window", deadline_s=5, expected_embedding_space=space, api_key="KEY"
    )
    assert connection.embeddings(["a"]).shape == (1, 2)
    connection.embeddings(texts(MAX_UNARY_TEXTS + 1))
    for request in servicer.requests:
        assert request.embedding_options.dimensions == 2
        assert request.options.expected_fingerprints.embedding_space == space
        assert request.options != type(request.options)(expected_fingerprints=request.options.expected_fingerprints)
    assert {metadata["authorization"] for metadata in servicer.metadata} == {"Bearer KEY"}


@pytest.mark.parametrize("number", [1, MAX_UNARY_TEXTS + 1])
def test_prompt_of_a_call_replaces_that_of_the_connection(servicer: FakeServicer, number: int) -> None:
    connection = Connection(servicer.target, prompt="passage")
    connection.embeddings(texts(number))
    connection.embeddings(texts(number), prompt="query")
    asyncio.run(connection.avectors(texts(number), "query"))
    asyncio.run(connection.avectors(texts(number)))
    Connection(servicer.target).embeddings(texts(number))
    found = dict.fromkeys(request.options.prompt for request in servicer.requests)
    assert list(found) == ["passage", "query", ""]


@pytest.mark.parametrize("number", [1, MAX_UNARY_TEXTS + 1])
def test_deadline_limits_the_whole_call(servicer: FakeServicer, number: int) -> None:
    servicer.gate.clear()
    connection = Connection(servicer.target, deadline_s=0.2)
    with pytest.raises(DeadlineExceededError):
        connection.embeddings(texts(number))


def test_client_retries(servicer: FakeServicer) -> None:
    servicer.unary_failures = [grpc.StatusCode.UNAVAILABLE]
    servicer.stream_failures = [(3, grpc.StatusCode.UNAVAILABLE)]
    connection = Connection(servicer.target)
    assert labels(connection.answers([f"{BUSY}one"])) == [f"{BUSY}one"]
    assert labels(connection.answers(texts(100))) == texts(100)


@pytest.mark.parametrize("number", [4, MAX_UNARY_TEXTS + 4])
def test_error_of_a_text_names_its_position(servicer: FakeServicer, number: int) -> None:
    connection = Connection(servicer.target)
    wrong = texts(number)
    wrong[number - 2] = ERROR
    with pytest.raises(ItemFailedError) as sync:
        connection.embeddings(wrong)
    with pytest.raises(ItemFailedError) as asynchronous:
        asyncio.run(connection.avectors(wrong))
    assert sync.value.item_id == asynchronous.value.item_id == str(number - 2)


def test_vectors_of_different_models_are_never_mixed(servicer: FakeServicer) -> None:
    servicer.embedding_spaces = ["00112233445566aa", "ffffffffffffffff"]
    with pytest.raises(ServerError, match="different models"):
        Connection(servicer.target).embeddings(["a", "b"])


@pytest.mark.parametrize("invalid", ["text", [None], ["a", float("nan")], [1]])
def test_invalid_texts_are_not_sent(servicer: FakeServicer, invalid: Any) -> None:
    connection = Connection(servicer.target)
    with pytest.raises(InvalidRequestError):
        connection.embeddings(invalid)
    with pytest.raises(InvalidRequestError):
        asyncio.run(connection.avectors(invalid))
    assert servicer.calls == []


def test_event_loops_and_threads_share_a_connection(servicer: FakeServicer) -> None:
    """One loop after the other, and several at once, as frameworks run coroutines in threads of their own."""
    connection = Connection(servicer.target)
    barrier = threading.Barrier(3)
    found: list[Any] = []

    async def embed() -> None:
        await connection.avectors(["a"])
        barrier.wait(30)  # all three loops are open
        found.append(await connection.avectors(["b"]))
        await connection.aclose()

    for _ in range(2):
        threads = [threading.Thread(target=lambda: asyncio.run(embed())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [[embedding_of("b")]] * 6


def test_clients_of_closed_event_loops_are_released(servicer: FakeServicer) -> None:
    connection = Connection(servicer.target)
    for _ in range(3):
        asyncio.run(connection.avectors(["a"]))
    assert len(connection._async_clients) == 1


def test_it_connects_again_after_close(servicer: FakeServicer) -> None:
    connection = Connection(servicer.target)

    async def embed_twice() -> None:
        for _ in range(2):
            await connection.avectors(["a"])
            await connection.aclose()

    for _ in range(2):
        connection.vectors(["a"])
        connection.close()
    asyncio.run(embed_twice())
    assert len(servicer.calls) == 4


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_independent(servicer: FakeServicer, duplicate: Any) -> None:
    connection = Connection(servicer.target, dimensions=2)
    connection.embeddings(["a"])
    copied = duplicate(connection)
    connection.close()
    assert copied.embeddings(["a"]).shape == (1, 2)


def test_arguments_are_checked_before_the_first_call() -> None:
    with pytest.raises(InvalidRequestError, match="port"):
        Connection("host")
    with pytest.raises(TypeError, match="unexpected option 'dimension'; the options are tls"):
        Connection(dimension=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'api_key' is an argument of its own"):
        Connection(client_options={"api_key": "KEY"})
    with pytest.raises(InvalidRequestError, match="max_attempts"):
        Connection(client_options={"max_attempts": 0})


def test_repr_does_not_contain_the_key() -> None:
    assert "SECRET" not in repr(Connection(api_key="SECRET"))


def test_tls_settings_are_restored_from_their_dict(tmp_path: Any) -> None:
    tls = Tls(ca_file=tmp_path / "ca.pem", server_name="model.example")
    values = tls_to_dict(tls)
    assert values == {"ca_file": str(tmp_path / "ca.pem"), "server_name": "model.example"}
    assert Tls(**values).server_name == "model.example"
    assert tls_to_dict(None) is None
