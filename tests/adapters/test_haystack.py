"""The Haystack components."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.fake_server import ERROR, FakeServicer, embedding_of

pytest.importorskip("haystack", reason="polyhead[haystack] is not installed")

import haystack
from haystack import Document
from haystack.utils import Secret
from polyhead.v1.model_pb2 import HEAD_KIND_MULTILABEL, HEAD_KIND_ORDINAL, HEAD_KIND_REGRESSION, HeadInfo
from polyhead_adapters.haystack import (
    PolyheadDocumentEmbedder,
    PolyheadDocumentRouter,
    PolyheadTextEmbedder,
    PolyheadTextRouter,
)
from polyhead_client import InvalidRequestError, ItemFailedError, Tls

COMPONENTS: list[tuple[Any, dict[str, Any]]] = [
    (PolyheadTextEmbedder, {"dimensions": 2, "prefix": "query: ", "prompt": "query"}),
    (PolyheadDocumentEmbedder, {"meta_fields_to_embed": ["title"], "raise_on_failure": False}),
    (PolyheadTextRouter, {"labels": ["billing"], "head": "topic"}),
    (PolyheadDocumentRouter, {"labels": ["good"], "task": "sentiment"}),
]
SPACE = "00112233445566aa"


def run(component: Any, asynchronous: bool, **inputs: Any) -> Any:
    return asyncio.run(component.run_async(**inputs)) if asynchronous else component.run(**inputs)


both = pytest.mark.parametrize("asynchronous", [False, True])


@both
def test_text_embedder(servicer: FakeServicer, asynchronous: bool) -> None:
    embedder = PolyheadTextEmbedder(target=servicer.target, dimensions=2, prefix="q", suffix="!")
    output = run(embedder, asynchronous, text="one")
    assert output == {"embedding": embedding_of("qo")[:2], "meta": {"embedding_space": SPACE, "truncated": False}}
    assert servicer.requests[0].items[0].text == "qone!"
    with pytest.raises(TypeError, match="PolyheadDocumentEmbedder embeds documents"):
        run(embedder, asynchronous, text=[Document(content="one")])


@both
def test_each_component_names_its_own_prompt(servicer: FakeServicer, asynchronous: bool) -> None:
    run(PolyheadTextEmbedder(target=servicer.target, prompt="query"), asynchronous, text="one")
    documents = [Document(content="one")]
    run(PolyheadDocumentEmbedder(target=servicer.target, prompt="passage"), asynchronous, documents=documents)
    run(PolyheadDocumentEmbedder(target=servicer.target), asynchronous, documents=documents)
    assert [request.options.prompt for request in servicer.requests] == ["query", "passage", ""]


@both
def test_document_embedder(servicer: FakeServicer, asynchronous: bool) -> None:
    documents = [Document(content="one", meta={"title": "T"}), Document(content="two"), Document()]
    embedder = PolyheadDocumentEmbedder(
        target=servicer.target, meta_fields_to_embed=["title"], embedding_separator="-", prefix="<", suffix=">"
    )
    output = run(embedder, asynchronous, documents=documents)
    assert [item.text for item in servicer.requests[0].items] == ["<T-one>", "<two>", "<>"]
    expected = [embedding_of(text) for text in ("<T-", "<tw", "<>")]
    assert [document.embedding for document in output["documents"]] == expected
    assert output["meta"] == {"embedding_space": SPACE, "truncated": 0, "failed": 0}
    assert [document.embedding for document in documents] == [None] * 3
    assert [document.id for document in output["documents"]] == [document.id for document in documents]
    assert run(embedder, asynchronous, documents=[])["documents"] == []
    with pytest.raises(TypeError, match="expected a list of haystack Documents"):
        run(embedder, asynchronous, documents=["one"])


@both
def test_document_with_an_error(servicer: FakeServicer, asynchronous: bool, caplog: pytest.LogCaptureFixture) -> None:
    documents = [Document(content="one"), Document(content=ERROR)]
    with pytest.raises(ItemFailedError, match="item '1'"):
        run(PolyheadDocumentEmbedder(target=servicer.target), asynchronous, documents=documents)
    tolerant = PolyheadDocumentEmbedder(target=servicer.target, raise_on_failure=False)
    output = run(tolerant, asynchronous, documents=documents)
    assert [document.embedding for document in output["documents"]] == [embedding_of("one"), None]
    assert output["meta"]["failed"] == 1
    assert f"document {documents[1].id} has no result: INVALID_ARGUMENT" in caplog.text
    router = PolyheadDocumentRouter(["billing"], target=servicer.target, raise_on_failure=False)
    documents = [Document(content="billing"), Document(content=ERROR), Document(content="account")]
    assert run(router, asynchronous, documents=documents) == {"billing": documents[:1], "unmatched": documents[1:]}


def test_progress_bar(servicer: FakeServicer, capsys: pytest.CaptureFixture[str]) -> None:
    PolyheadDocumentEmbedder(target=servicer.target, progress_bar=True).run([Document(content="one")])
    assert "100%" in capsys.readouterr().out


@both
@pytest.mark.parametrize("head", [None, "topic"])
def test_text_router(servicer: FakeServicer, asynchronous: bool, head: str | None) -> None:
    router = PolyheadTextRouter(["billing"], head=head, target=servicer.target)
    assert run(router, asynchronous, text="billing") == {"billing": "billing"}
    assert run(router, asynchronous, text="account") == {"unmatched": "account"}
    assert servicer.calls == ["GetModelInfo", "Analyze", "Analyze"]


@both
def test_document_router_by_sentiment(servicer: FakeServicer, asynchronous: bool) -> None:
    documents = [Document(content=text) for text in ("good", "bad", "neutral", "good ")]
    router = PolyheadDocumentRouter(["good", "bad"], task="sentiment", target=servicer.target)
    outputs = run(router, asynchronous, documents=documents)
    assert outputs == {"good": documents[:1], "bad": documents[1:2], "unmatched": documents[2:]}
    assert len(servicer.requests) == 1


@both
def test_router_by_a_multilabel_head_sends_a_text_to_every_label_that_applies(
    servicer: FakeServicer, asynchronous: bool
) -> None:
    servicer.additional_heads = [HeadInfo(name="tags", kind=HEAD_KIND_MULTILABEL, labels=["late", "rude", "broken"])]
    servicer.applying = ["late", "rude"]
    router = PolyheadTextRouter(["late", "rude"], task="labels", target=servicer.target)
    assert run(router, asynchronous, text="text") == {"late": "text", "rude": "text"}
    documents = [Document(content="text")]
    by_document = PolyheadDocumentRouter(["rude", "broken"], task="labels", target=servicer.target)
    outputs = run(by_document, asynchronous, documents=documents)
    assert outputs == {"rude": documents, "broken": [], "unmatched": []}
    servicer.applying = []
    assert run(router, asynchronous, text="text") == {"unmatched": "text"}


@both
def test_router_by_an_ordinal_head(servicer: FakeServicer, asynchronous: bool) -> None:
    servicer.additional_heads = [
        HeadInfo(name="price", kind=HEAD_KIND_REGRESSION),
        HeadInfo(name="stars", kind=HEAD_KIND_ORDINAL, labels=["1", "2"]),
    ]
    router = PolyheadTextRouter(["1", "2"], task="score", target=servicer.target)
    assert run(router, asynchronous, text="text") == {"2": "text"}
    with pytest.raises(InvalidRequestError, match="the model has no score head 'price'; it has stars"):
        run(PolyheadTextRouter(["1"], task="score", head="price", target=servicer.target), asynchronous, text="text")


@both
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["biling"]}, "head 'topic' has no label 'biling'; it has account, billing"),
        ({"labels": ["billing"], "task": "sentiment"}, "head 'mood' has no label 'billing'; it has bad, good"),
        ({"labels": [], "head": "mood"}, "the model has no classification head 'mood'; it has topic"),
    ],
)
def test_router_that_the_model_cannot_serve(
    servicer: FakeServicer, asynchronous: bool, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        run(PolyheadTextRouter(target=servicer.target, **arguments), asynchronous, text="a")


def test_reserved_label() -> None:
    with pytest.raises(ValueError, match="unmatched"):
        PolyheadTextRouter(["unmatched"])


@pytest.mark.parametrize(("kind", "arguments"), COMPONENTS)
def test_configuration_survives_serialization(
    kind: Any, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "SECRET")
    created = kind(
        target="model.example:50051",
        api_key=Secret.from_env_var("KEY"),
        tls=Tls(server_name="other.example"),
        client_options={"max_attempts": 2},
        **arguments,
    )
    data = json.loads(json.dumps(created.to_dict()))
    restored = kind.from_dict(data)
    assert restored.to_dict() == created.to_dict() == data
    restored.warm_up()  # TLS settings and key are usable
    assert data["init_parameters"]["api_key"]["env_vars"] == ["KEY"]
    assert arguments.items() <= data["init_parameters"].items()


@pytest.mark.parametrize(("kind", "arguments"), COMPONENTS)
def test_api_key_is_never_shown(kind: Any, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_API_KEY", "SECRET")
    for created in (kind(**arguments), kind(api_key=Secret.from_token("SECRET"), **arguments)):
        created.warm_up()
        assert "SECRET" not in repr(created) + repr(vars(created))
    assert "SECRET" not in str(kind(**arguments).to_dict())
    with pytest.raises(ValueError, match="token"):
        kind(api_key=Secret.from_token("SECRET"), **arguments).to_dict()


def test_api_key_is_read_from_the_environment(servicer: FakeServicer, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = PolyheadTextEmbedder(target=servicer.target)
    monkeypatch.setenv("POLYHEAD_API_KEY", "KEY")
    embedder.run("one")
    assert servicer.metadata[-1]["authorization"] == "Bearer KEY"


@pytest.mark.parametrize("options", [{"dimension": 3}, {"target": "host"}])
def test_invalid_options_are_rejected_by_warm_up(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, InvalidRequestError)):
        PolyheadTextEmbedder(**options).warm_up()


def test_pipeline(servicer: FakeServicer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that was saved and loaded routes documents and embeds those with one label."""
    monkeypatch.setenv("HAYSTACK_DESERIALIZATION_ALLOWLIST", "polyhead_adapters.haystack")
    pipeline = getattr(haystack, "AsyncPipeline", haystack.Pipeline)()  # one class since version 3
    pipeline.add_component("router", PolyheadDocumentRouter(["billing"], target=servicer.target))
    pipeline.add_component("embedder", PolyheadDocumentEmbedder(target=servicer.target))
    pipeline.connect("router.billing", "embedder.documents")
    loaded = type(pipeline).loads(pipeline.dumps())
    documents = [Document(content="billing"), Document(content="account")]
    outputs = loaded.run({"router": {"documents": documents}})
    assert [document.embedding for document in outputs["embedder"]["documents"]] == [embedding_of("bil")]
    assert outputs["router"]["unmatched"] == documents[1:]
    assert asyncio.run(loaded.run_async({"router": {"documents": documents}})) == outputs


def test_component_connects_again_after_close(servicer: FakeServicer) -> None:
    embedder = PolyheadTextEmbedder(target=servicer.target)
    output = embedder.run("one")
    embedder.close()
    assert embedder.run("one") == output

    async def run_twice() -> None:
        for _ in range(2):
            assert await embedder.run_async("one") == output
            await embedder.close_async()

    asyncio.run(run_twice())
