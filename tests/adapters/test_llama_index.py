"""The LlamaIndex adapter."""

from __future__ import annotations

import asyncio
import copy
import pickle

import pytest

from tests.support.fake_server import ERROR, FakeServicer, embedding_of

pytest.importorskip("llama_index.core", reason="polyhead[llama-index] is not installed")

from llama_index.core.embeddings.utils import resolve_embed_model
from llama_index.core.schema import TextNode
from polyhead_adapters.llama_index import PolyheadEmbedding
from polyhead_client import ItemFailedError, Tls


def test_query_text_and_batch(servicer: FakeServicer) -> None:
    model = PolyheadEmbedding(target=servicer.target, dimensions=2)
    expected = [embedding_of("one")[:2], embedding_of("two")[:2]]
    assert model.get_query_embedding("one") == model.get_text_embedding("one") == expected[0]
    assert model.get_text_embedding_batch(["one", "two"]) == expected
    assert [len(request.items) for request in servicer.requests] == [1, 1, 2]


def test_asynchronous_query_text_and_batch(servicer: FakeServicer) -> None:
    model = PolyheadEmbedding(target=servicer.target)

    async def embed() -> None:
        assert await model.aget_query_embedding("one") == embedding_of("one")
        assert await model.aget_text_embedding("one") == embedding_of("one")
        assert await model.aget_text_embedding_batch(["one", "two"]) == [embedding_of("one"), embedding_of("two")]

    asyncio.run(embed())
    asyncio.run(embed())
    assert [len(request.items) for request in servicer.requests] == [1, 1, 2] * 2


def test_queries_and_texts_have_their_own_prompts(servicer: FakeServicer) -> None:
    model = PolyheadEmbedding(target=servicer.target, query_prompt="query", text_prompt="passage")
    model.get_query_embedding("one")
    model.get_text_embedding("one")
    model.get_text_embedding_batch(["one", "two"])

    async def embed() -> None:
        await model.aget_query_embedding("one")
        await model.aget_text_embedding("one")
        await model.aget_text_embedding_batch(["one", "two"])

    asyncio.run(embed())
    assert [request.options.prompt for request in servicer.requests] == ["query", "passage", "passage"] * 2


def test_batch_size_of_the_framework(servicer: FakeServicer) -> None:
    texts = [f"{number:03}" for number in range(5)]
    model = PolyheadEmbedding(target=servicer.target, embed_batch_size=2)
    expected = [embedding_of(text) for text in texts]
    assert model.get_text_embedding_batch(texts) == expected
    assert [len(request.items) for request in servicer.requests] == [2, 2, 1]
    assert asyncio.run(model.aget_text_embedding_batch(texts)) == expected


def test_nodes_are_embedded(servicer: FakeServicer) -> None:
    model = resolve_embed_model(PolyheadEmbedding(target=servicer.target))
    (node,) = model([TextNode(text="one")])
    assert node.embedding == embedding_of("one")


def test_error_of_a_text(servicer: FakeServicer) -> None:
    with pytest.raises(ItemFailedError, match="item '1'"):
        PolyheadEmbedding(target=servicer.target).get_text_embedding_batch(["one", ERROR])


def test_api_key_is_never_shown(servicer: FakeServicer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PolyheadEmbedding(target=servicer.target, api_key="SECRET")
    for text in (
        repr(model),
        str(model),
        model.to_json(),
        str(model.to_dict()),
        str(getattr(model, "to_payload", dict)()),
    ):
        assert "SECRET" not in text
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        duplicate.get_query_embedding("one")
        assert servicer.metadata[-1]["authorization"] == "Bearer SECRET"
    monkeypatch.setenv("POLYHEAD_API_KEY", "FROM_ENVIRONMENT")
    PolyheadEmbedding.from_dict(model.to_dict()).get_query_embedding("one")
    assert servicer.metadata[-1]["authorization"] == "Bearer FROM_ENVIRONMENT"


def test_configuration_survives_serialization() -> None:
    model = PolyheadEmbedding(
        target="model.example:50051", dimensions=2, truncation="error", tls=Tls(server_name="other.example")
    )
    restored = PolyheadEmbedding.from_json(model.to_json())
    assert restored.to_dict() == model.to_dict()
    assert restored.tls == model.tls
