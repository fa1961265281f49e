"""The values that both clients return, and what they may be used for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from polyhead_client import (
    Answer,
    Classification,
    Fingerprints,
    InvalidRequestError,
    ItemError,
    ItemFailedError,
    LabelScore,
    Result,
    Sentiment,
    ServerError,
    Timings,
    Truncation,
)
from polyhead_client.value import Value

from tests.support.both_clients import Face
from tests.support.fake_server import ERROR, FakeServicer, embedding_of, labels

TASKS = ("embed", "classify", "sentiment", "labels", "score")
FLOAT32 = float(np.float32(0.9))  # 0.8999999761581421
RESULT = Result(
    Truncation(False, 3, 3),
    Fingerprints("00112233445566aa", {"topic": "0123456789abcdef"}),
    embedding=np.array([0.1, -2.5], np.float32),
    classification=Classification("topic", (LabelScore("billing", FLOAT32), LabelScore("app", 1 - FLOAT32))),
    sentiment=Sentiment("mood", FLOAT32, "good"),
    additional_classifications=(Classification("language", (LabelScore("de", 1.0),)),),
    additional_sentiments=(Sentiment("urgent", 0.25, "no"),),
    timings=Timings(0.1, 0.2, 0.3, 0.6, 1, 3, 0.0, 0.0),
)


@pytest.mark.parametrize("method", TASKS)
def test_unary_method_of_one_task_returns_a_list_and_requests_that_task_alone(
    client: Face, servicer: FakeServicer, method: str
) -> None:
    answers = client.unary(method, ["one", ("mine", "two"), ERROR])
    assert isinstance(answers, list)
    assert [answer.item_id for answer in answers] == ["0", "mine", "2"]
    assert answers[2].error is not None
    assert labels(answers[:2]) == ["one", "two"]
    (request,) = servicer.requests
    assert [int(task) for task in request.tasks] == [1 + TASKS.index(method)]


def test_embeddings_are_one_matrix_in_the_order_of_the_texts(client: Face) -> None:
    texts = [f"{number:04}" for number in range(1500)]
    matrix = client.unary("embeddings", texts)
    assert (matrix.shape, matrix.dtype) == ((1500, 3), np.float32)
    np.testing.assert_array_equal(matrix, np.array([embedding_of(text) for text in texts], np.float32))
    assert client.unary("embeddings", texts[:2], dimensions=2).shape == (2, 2)


def test_embeddings_of_no_texts_have_the_model_s_dimensions(client: Face, servicer: FakeServicer) -> None:
    assert client.unary("embeddings", []).shape == (0, 3)
    servicer.calls.clear()
    assert client.unary("embeddings", [], dimensions=2).shape == (0, 2)
    assert servicer.calls == []


def test_embeddings_raise_the_error_of_the_first_text_that_has_one(client: Face) -> None:
    with pytest.raises(ItemFailedError, match="error:a") as caught:
        client.unary("embeddings", ["good", ERROR + "a", ERROR + "b"])
    assert caught.value.item_id == "1"


def test_embeddings_of_different_models_are_never_in_one_matrix(client: Face, servicer: FakeServicer) -> None:
    servicer.embedding_spaces = ["00112233445566aa", "ffffffffffffffff"]
    with pytest.raises(ServerError, match=r"embedded by different models, with embedding spaces 0011.*, ffff"):
        client.unary("embeddings", ["one", "two"])
    servicer.embedding_spaces = []
    assert client.unary("embeddings", ["one", "two"]).shape == (2, 3)  # control


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ("embedding", "embedding"),
        ("classification", "classification"),
        ("sentiment", "sentiment"),
        ("labels", "label_sets"),
        ("score", "scores"),
    ],
)
def test_result_without_a_requested_output_is_an_error_that_names_the_heads(
    client: Face, servicer: FakeServicer, task: str, field: str
) -> None:
    servicer.missing = [field]
    for answers in (client.analyze(["one"], tasks=[task]), list(client.stream(["one"], tasks=[task]))):
        (answer,) = answers
        assert answer.error is not None
        assert (answer.error.code, answer.error.reason) == ("INVALID_ARGUMENT", "TASK_NOT_AVAILABLE")
        assert answer.error.message.endswith("its heads are: topic, mood")
    assert client.analyze(["one"])[0].error is None  # control: all that the model has


def test_answer_of_a_server_has_a_json_form(client: Face) -> None:
    good, bad = client.analyze(["abc", ERROR + "no"], include_timings=True)
    assert json.loads(json.dumps(good.to_dict()))["result"]["sentiment"] == {
        "head": "mood",
        "probability": 0.75,
        "label": "abc",
    }
    assert bad.to_dict() == {
        "item_id": "1",
        "result": None,
        "error": {"code": "INVALID_ARGUMENT", "reason": "REQUESTED", "message": "error:no", "retry_after_s": None},
    }
    model = client.info().to_dict()
    assert json.loads(json.dumps(model)) == model
    assert model["heads"][0]["labels"] == ["account", "billing"]


def test_dict_has_lists_and_the_shortest_decimals_of_float32() -> None:
    result = RESULT.to_dict()
    assert json.loads(json.dumps(result)) == result
    assert result["embedding"] == [0.1, -2.5]
    assert result["classification"]["scores"][0] == {"label": "billing", "probability": 0.9}
    assert result["fingerprints"] == {"embedding_space": "00112233445566aa", "heads": {"topic": "0123456789abcdef"}}
    assert result["additional_sentiments"] == [{"head": "urgent", "probability": 0.25, "label": "no"}]
    assert result["truncation"]["cut_at_code_point"] is None
    assert np.array_equal(np.array(result["embedding"], np.float32), RESULT.embedding)  # type: ignore[arg-type]


def test_infinite_delay_is_null_in_the_dict() -> None:
    error = ItemError("RESOURCE_EXHAUSTED", "OVERLOADED", "busy", float("inf"))
    assert json.loads(json.dumps(error.to_dict(), allow_nan=False))["retry_after_s"] is None


def test_every_returned_type_has_a_dict() -> None:
    import polyhead_client

    values = [getattr(polyhead_client, name) for name in polyhead_client.__all__]
    dataclasses = [kind for kind in values if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__")]
    assert [kind.__name__ for kind in dataclasses if not issubclass(kind, Value)] == ["Tls"]  # an argument
    assert len(dataclasses) == 19


def test_label_sets_and_scores_of_a_server(client: Face) -> None:
    (answer,) = client.analyze(["abc"], tasks=["labels", "score"])
    (tags,), (stars, price) = answer.label_sets, answer.scores
    assert (tags.head, tags.labels, tags.scores[1]) == ("tags", ("abc",), LabelScore("other", 0.0))
    assert (stars.label, [one.label for one in stars.probabilities]) == ("2", ["1", "2"])
    assert (price.label, price.probabilities) == (None, ())
    assert list(answer.unwrap().heads) == ["topic", "mood", "tags", "stars", "price"]
    assert answer.head("stars") is stars
    assert answer.to_dict()["result"]["scores"] == [
        {
            "head": "stars",
            "value": 1.9,
            "label": "2",
            "probabilities": [{"label": "1", "probability": 0.1}, {"label": "2", "probability": 0.9}],
        },
        {"head": "price", "value": -0.7, "label": None, "probabilities": []},
    ]


def test_label_sets_and_scores_that_were_not_computed_raise() -> None:
    for part in ("label_sets", "scores"):
        with pytest.raises(InvalidRequestError, match=f"no {part[:-1].replace('_', ' ')}"):
            getattr(Answer("1", RESULT), part)


def test_head_is_found_by_name() -> None:
    answer = Answer("1", RESULT)
    assert [answer.head(name, Classification).label for name in ("topic", "language")] == ["billing", "de"]
    assert [answer.head(name, Sentiment).label for name in ("mood", "urgent")] == ["good", "no"]
    assert answer.head("topic") is answer.classification
    with pytest.raises(InvalidRequestError, match="the output of head 'topic' is a Classification, not a Sentiment"):
        answer.head("topic", Sentiment)
    assert list(RESULT.heads) == ["topic", "mood", "language", "urgent"]


@pytest.mark.parametrize(
    ("name", "hint"), [("topc", "did you mean 'topic'?"), ("x", "no head 'x', only 'topic', 'mood'")]
)
def test_unknown_head_is_an_error_with_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Answer("1", RESULT).head(name)
    assert hint in caught.value.message
    assert caught.value.reason == "UNKNOWN_HEAD"


@pytest.mark.parametrize("part", ["embedding", "classification", "sentiment"])
def test_part_that_is_missing_raises(part: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"item 'mine' has no {part}: it was not requested"):
        getattr(Answer("mine", Result(RESULT.truncation, RESULT.fingerprints)), part)
    with pytest.raises(ItemFailedError, match="too long"):
        getattr(Answer("mine", error=ItemError("OUT_OF_RANGE", "TEXT_TOO_LONG", "too long")), part)
