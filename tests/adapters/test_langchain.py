"""The LangChain adapters, with LangChain's own tests of embeddings."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from typing import Any

import pytest

from tests.support.fake_server import ERROR, FakeServicer, embedding_of

pytest.importorskip("langchain_core", reason="polyhead[langchain] is not installed")
pytest.importorskip("langchain_tests", reason="langchain-tests is not installed")

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from polyhead_adapters.langchain import PolyheadAnalyzer, PolyheadEmbeddings
from polyhead_client import InvalidRequestError, ItemFailedError, UnavailableError

CLASSIFICATION = {"head": "topic", "label": "bill", "probability": 0.9, "scores": {"bill": 0.9, "other": 0.1}}
SENTIMENT = {"head": "mood", "label": "bill", "probability": 0.75}


class TestStandardUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[PolyheadEmbeddings]:
        return PolyheadEmbeddings

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"POLYHEAD_API_KEY": "KEY"}, {}, {"api_key": "KEY"}


class TestStandardIntegration(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _server(self, servicer: FakeServicer) -> None:
        self._target = servicer.target

    @property
    def embeddings_class(self) -> type[PolyheadEmbeddings]:
        return PolyheadEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"target": self._target}


def rounded(value: Any) -> Any:
    """Replaces the float64 of a float32 by its shortest decimal."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def test_texts_of_a_call_share_one_request(servicer: FakeServicer) -> None:
    embeddings = PolyheadEmbeddings(target=servicer.target, dimensions=2)
    assert embeddings.embed_documents(["one", "two"]) == [embedding_of("one")[:2], embedding_of("two")[:2]]
    assert asyncio.run(embeddings.aembed_documents(["one"])) == [embeddings.embed_query("one")]
    assert asyncio.run(embeddings.aembed_query("one")) == embedding_of("one")[:2]
    assert embeddings.embed_documents([]) == []
    assert [len(request.items) for request in servicer.requests] == [2, 1, 1, 1]


def test_queries_and_documents_have_their_own_prompts(servicer: FakeServicer) -> None:
    embeddings = PolyheadEmbeddings(target=servicer.target, query_prompt="query", document_prompt="passage")
    embeddings.embed_documents(["one"])
    embeddings.embed_query("one")
    asyncio.run(embeddings.aembed_documents(["one"]))
    asyncio.run(embeddings.aembed_query("one"))
    PolyheadAnalyzer(target=servicer.target, prompt="query").batch(["one", "two"])
    prompts = [request.options.prompt for request in servicer.requests]
    assert prompts == ["passage", "query", "passage", "query", "query"]


def test_analyzer_returns_class_and_sentiment(servicer: FakeServicer) -> None:
    analyzer = PolyheadAnalyzer(target=servicer.target)
    analysis = analyzer.invoke("bill")
    assert rounded(json.loads(json.dumps(analysis))) == {
        "classification": CLASSIFICATION,
        "sentiment": SENTIMENT,
        "heads": {"topic": CLASSIFICATION, "mood": SENTIMENT},
        "truncated": False,
    }
    assert asyncio.run(analyzer.ainvoke("bill")) == analysis
    properties = analyzer.get_output_jsonschema()["$defs"]["Analysis"]["properties"]
    # The model has no heads of the other kinds.
    assert properties.keys() == analysis.keys() | {"label_sets", "scores"}


def test_batches_are_one_call_and_have_callbacks_for_each_text(servicer: FakeServicer) -> None:
    class Recorder(BaseCallbackHandler):
        def __init__(self) -> None:
            self.events: list[str] = []

        def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
            self.events.append(f"start {inputs}")

        def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
            self.events.append(f"end {outputs['classification']['label']}")

        def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
            self.events.append(f"error {type(error).__name__}")

    analyzer = PolyheadAnalyzer(target=servicer.target)
    recorder = Recorder()
    outcomes: list[Any] = analyzer.batch(["a", ERROR, "c"], {"callbacks": [recorder]}, return_exceptions=True)
    assert outcomes[0]["classification"]["label"] == "a"
    assert isinstance(outcomes[1], ItemFailedError)
    assert recorder.events == ["start a", f"start {ERROR}", "start c", "end a", "error ItemFailedError", "end c"]
    assert [len(request.items) for request in servicer.requests] == [3]


@pytest.mark.parametrize("number", [3, 100])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_errors_of_a_batch(servicer: FakeServicer, number: int, asynchronous: bool) -> None:
    analyzer = PolyheadAnalyzer(target=servicer.target)
    texts = [*map(str, range(number - 1)), ERROR]

    def batch(**options: Any) -> Any:
        return asyncio.run(analyzer.abatch(texts, **options)) if asynchronous else analyzer.batch(texts, **options)

    with pytest.raises(ItemFailedError) as raised:
        batch()
    assert raised.value.item_id == str(number - 1)
    *analyses, error = batch(return_exceptions=True)
    assert [analysis["classification"]["label"] for analysis in analyses] == texts[:-1]
    assert isinstance(error, ItemFailedError)
    assert len(servicer.calls) == 2


def test_call_that_fails_as_a_whole() -> None:
    analyzer = PolyheadAnalyzer(target="127.0.0.1:1", client_options={"max_attempts": 1})
    with pytest.raises(UnavailableError):
        analyzer.batch(["a", "b"])
    outcomes: list[Any] = analyzer.batch(["a", "b"], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 2


def test_analyzer_in_a_chain(servicer: FakeServicer) -> None:
    chain = PolyheadAnalyzer(target=servicer.target) | (lambda analysis: analysis["classification"]["label"])
    assert chain.batch(["a", "b"]) == ["a", "b"]
    assert [len(request.items) for request in servicer.requests] == [2]


def test_model_without_one_of_the_heads(servicer: FakeServicer) -> None:
    servicer.missing = ["sentiment"]
    assert "sentiment" not in PolyheadAnalyzer(target=servicer.target, tasks=("classification",)).invoke("a")
    with pytest.raises(ItemFailedError, match="sentiment"):
        PolyheadAnalyzer(target=servicer.target).invoke("a")


@pytest.mark.parametrize(("adapter", "method"), [(PolyheadEmbeddings, "embed_query"), (PolyheadAnalyzer, "invoke")])
def test_api_key_is_never_shown(servicer: FakeServicer, adapter: Any, method: str) -> None:
    one = adapter(target=servicer.target, api_key="SECRET")
    for text in (repr(one), str(one), dumps(one), one.model_dump_json(), str(one.model_dump())):
        assert "SECRET" not in text
    for duplicate in (copy.deepcopy(one), one.model_copy(), pickle.loads(pickle.dumps(one))):
        getattr(duplicate, method)("a")
        assert servicer.metadata[-1]["authorization"] == "Bearer SECRET"


def test_invalid_configuration_is_rejected_at_once() -> None:
    with pytest.raises(InvalidRequestError, match="port"):
        PolyheadEmbeddings(target="host")
    with pytest.raises(ValueError, match="dimension"):
        PolyheadEmbeddings(dimension=3)  # type: ignore[call-arg]


def test_analysis_of_multilabel_ordinal_and_regression_heads(servicer: FakeServicer) -> None:
    analyzer = PolyheadAnalyzer(target=servicer.target, tasks=("labels", "score"))
    analysis = rounded(analyzer.invoke("late"))
    assert analysis["label_sets"] == {"tags": {"head": "tags", "labels": ["late"], "scores": {"late": 0.9, "other": 0}}}
    assert analysis["scores"] == {
        "stars": {"head": "stars", "value": 1.9, "label": "2", "scores": {"1": 0.1, "2": 0.9}},
        "price": {"head": "price", "value": -0.7},
    }
    assert "label_sets" not in PolyheadAnalyzer(target=servicer.target).invoke("late")
    assert [[int(task) for task in request.tasks] for request in servicer.requests] == [[4, 5], [2, 3]]
