from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from polyhead.v1 import inference_service_pb2 as service_pb2
from polyhead.v1 import item_pb2, model_pb2
from polyhead_client import AnalyzeOptions, Answer, InvalidRequestError, ServerError, conversion
from polyhead_client.cli.jsonl import format_answer
from polyhead_client.options import resolve

REQUEST = service_pb2.AnalyzeRequest()
NUMBERS = [0.1, -2.5, 3e-5, 65504.0]


def converted(**result: object) -> Answer:
    answer = item_pb2.Answer(item_id="7", result=item_pb2.Result(**result))  # type: ignore[arg-type]
    return conversion.answers_of(service_pb2.AnalyzeResponse(answers=[answer]), REQUEST)[0]


def classification(head: str, *probabilities: float) -> item_pb2.Classification:
    scores = [
        item_pb2.LabelScore(label=str(number), probability=one) for number, one in enumerate(probabilities or [1])
    ]
    return item_pb2.Classification(head=head, scores=scores)


@pytest.mark.parametrize(
    ("encoding", "dtype"),
    [(item_pb2.EMBEDDING_ENCODING_FLOAT32_LE, "<f4"), (item_pb2.EMBEDDING_ENCODING_FLOAT16_LE, "<f2")],
)
def test_float_embeddings_become_float32(encoding: item_pb2.EmbeddingEncoding.ValueType, dtype: str) -> None:
    values = np.array(NUMBERS, dtype)
    wire = item_pb2.Embedding(values=values.tobytes(), encoding=encoding, dimensions=4)
    embedding = converted(embedding=wire).unwrap().embedding
    assert embedding is not None
    assert embedding.dtype == np.float32
    assert (embedding.shape, embedding.flags.writeable) == ((4,), False)
    np.testing.assert_array_equal(embedding, values.astype(np.float32))


def test_int8_embeddings_are_scaled() -> None:
    encoding = item_pb2.EMBEDDING_ENCODING_INT8
    wire = item_pb2.Embedding(values=bytes([5, 256 - 127]), encoding=encoding, dimensions=2, scale=0.5)
    embedding = converted(embedding=wire).unwrap().embedding
    assert embedding is not None
    assert embedding.tolist() == [2.5, -63.5]
    assert embedding.dtype == np.float32
    assert not embedding.flags.writeable


def test_binary_embeddings_become_signs() -> None:
    encoding = item_pb2.EMBEDDING_ENCODING_BINARY
    wire = item_pb2.Embedding(values=bytes([0b10100001, 0b10000000]), encoding=encoding, dimensions=9)
    embedding = converted(embedding=wire).unwrap().embedding
    assert embedding is not None
    assert embedding.tolist() == [1, -1, 1, -1, -1, -1, -1, 1, 1]
    assert embedding.dtype == np.float32


@pytest.mark.parametrize("dimensions", [0, -1, 2**32])
def test_invalid_number_of_dimensions_is_rejected(dimensions: int) -> None:
    with pytest.raises(InvalidRequestError, match="dimensions"):
        conversion.embedding_options("float32", dimensions)


@pytest.mark.parametrize(
    ("wire", "problem"),
    [
        (item_pb2.Embedding(values=b"1234567", encoding=1, dimensions=2), "2 float32 dimensions cannot have 7 bytes"),  # type: ignore[arg-type]
        (item_pb2.Embedding(values=b"1234", encoding=99, dimensions=4), "unknown embedding encoding 99"),  # type: ignore[arg-type]
        (item_pb2.Embedding(values=b"12", encoding=4, dimensions=17), "17 uint8 dimensions cannot have 2 bytes"),  # type: ignore[arg-type]
        (item_pb2.Embedding(values=b"", dimensions=0), "unknown embedding encoding 0"),
    ],
)
def test_malformed_embedding_is_a_server_error(wire: item_pb2.Embedding, problem: str) -> None:
    with pytest.raises(ServerError, match=problem):
        converted(embedding=wire)


def test_answer_without_an_outcome_is_a_server_error() -> None:
    with pytest.raises(ServerError, match="neither"):
        conversion.answers_of(service_pb2.AnalyzeResponse(answers=[item_pb2.Answer(item_id="7")]), REQUEST)


def test_outputs_that_were_not_requested_are_none() -> None:
    result = converted().unwrap()
    assert (result.embedding, result.classification, result.sentiment, result.timings) == (None, None, None, None)


def test_additional_heads_keep_their_order() -> None:
    result = converted(
        additional_classifications=[classification("a"), classification("b")],
        additional_sentiments=[item_pb2.Sentiment(head="c", probability=0.25, label="no")],
    ).unwrap()
    assert [one.head for one in result.additional_classifications] == ["a", "b"]
    assert [(one.head, one.probability, one.label) for one in result.additional_sentiments] == [("c", 0.25, "no")]


def test_truncation_at_the_first_character_differs_from_no_truncation() -> None:
    cut = item_pb2.Truncation(truncated=True, tokens_seen=9, tokens_used=2, cut_at_code_point=0)
    assert converted(truncation=cut).unwrap().truncation.cut_at_code_point == 0
    assert converted(truncation=item_pb2.Truncation()).unwrap().truncation.cut_at_code_point is None


def test_timings_are_seconds() -> None:
    wire = item_pb2.Timings(
        tokenization=duration_pb2.Duration(nanos=1_500),
        queue=duration_pb2.Duration(nanos=250_000_000),
        compute=duration_pb2.Duration(seconds=1, nanos=500_000_000),
        total=duration_pb2.Duration(seconds=2),
        batch_items=3,
        batch_tokens=64,
        admission=duration_pb2.Duration(nanos=500_000_000),
        delivery=duration_pb2.Duration(seconds=3),
    )
    timings = converted(timings=wire).unwrap().timings
    assert timings is not None
    assert (timings.tokenization_s, timings.queue_s) == pytest.approx((1.5e-6, 0.25))
    assert (timings.compute_s, timings.total_s) == (1.5, 2.0)
    assert (timings.admission_s, timings.delivery_s) == (0.5, 3.0)
    assert (timings.batch_items, timings.batch_tokens) == (3, 64)


def test_windows_default_to_one() -> None:
    assert converted(truncation=item_pb2.Truncation(windows=3)).unwrap().truncation.windows == 3
    assert converted(truncation=item_pb2.Truncation()).unwrap().truncation.windows == 1


def test_model_limits_include_the_windows_of_a_text() -> None:
    model = model_pb2.ModelInfo(limits=model_pb2.Limits(max_windows=16))
    assert conversion.model_info_of(service_pb2.GetModelInfoResponse(model=model)).limits.max_windows == 16


def test_expected_fingerprints_may_come_from_a_result_or_a_model() -> None:
    wire = item_pb2.Fingerprints(
        embedding_space="00112233445566aa",
        heads=[item_pb2.HeadFingerprint(head="topic", fingerprint="0123456789abcdef")],
    )
    model = conversion.model_info_of(service_pb2.GetModelInfoResponse(model=model_pb2.ModelInfo(fingerprints=wire)))
    for expected in (model, model.fingerprints):
        assert conversion.item_options("window", False, expected).expected_fingerprints == wire
    options = conversion.item_options("window", False, None)
    assert (options.HasField("expected_fingerprints"), options.truncation) == (False, 3)


def test_prompts_of_a_model_are_its_texts_by_name() -> None:
    prompts = [model_pb2.Prompt(name="passage", text="passage: "), model_pb2.Prompt(name="query", text="query: ")]
    response = service_pb2.GetModelInfoResponse(model=model_pb2.ModelInfo(prompts=prompts))
    assert conversion.model_info_of(response).prompts == {"passage": "passage: ", "query": "query: "}
    assert conversion.model_info_of(service_pb2.GetModelInfoResponse()).prompts == {}


def test_item_error_has_the_retry_delay() -> None:
    status = status_pb2.Status(code=8, message="busy")
    status.details.add().Pack(
        error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
    )
    wire = item_pb2.Answer(item_id="7", error=status)
    (answer,) = conversion.answers_of(service_pb2.AnalyzeResponse(answers=[wire]), REQUEST)
    assert answer.error is not None
    assert answer.error.retry_after_s == 1.5


def test_item_error_with_an_unknown_code_is_unknown() -> None:
    wire = item_pb2.Answer(item_id="7", error=status_pb2.Status(code=99, message="odd"))
    (answer,) = conversion.answers_of(service_pb2.AnalyzeResponse(answers=[wire]), REQUEST)
    assert answer.error is not None
    assert (answer.error.code, answer.error.reason, answer.error.message) == ("UNKNOWN", "", "odd")


def test_head_of_an_unknown_kind_is_unknown() -> None:
    model = model_pb2.ModelInfo(heads=[model_pb2.HeadInfo(name="new", kind=99)])  # type: ignore[arg-type]
    assert conversion.model_info_of(service_pb2.GetModelInfoResponse(model=model)).heads[0].kind == "unknown"


NAN, INFINITY = float("nan"), float("inf")
LIES: list[tuple[dict[str, Any], str]] = [
    ({"embedding": item_pb2.Embedding(values=np.array([1, NAN], "<f4").tobytes(), encoding=1, dimensions=2)}, "NaN"),  # type: ignore[arg-type]
    ({"embedding": item_pb2.Embedding(values=np.array([-INFINITY], "<f2").tobytes(), encoding=2, dimensions=1)}, "NaN"),  # type: ignore[arg-type]
    ({"embedding": item_pb2.Embedding(values=b"\1\0", encoding=3, dimensions=2, scale=INFINITY)}, "NaN or infinity"),  # type: ignore[arg-type]
    ({"classification": item_pb2.Classification(head="a")}, "head 'a' has no labels"),
    ({"classification": classification("a", 0.5, NAN)}, "not between 0 and 1"),
    ({"classification": classification("a", 1.5, -0.5)}, "not between 0 and 1"),
    ({"classification": classification("a", 0.25, 0.75)}, "not ordered by probability"),
    ({"classification": classification("a", 0.5, 0.25)}, "add up to 0.75"),
    ({"additional_classifications": [classification("a", 0.75, 0.75)]}, "add up to 1.5"),
    (
        {"classification": item_pb2.Classification(scores=[item_pb2.LabelScore(label="x", probability=0.5)] * 2)},
        "a label twice",
    ),
    ({"sentiment": item_pb2.Sentiment(head="a", probability=NAN)}, "head 'a' has a probability that is not between"),
    ({"sentiment": item_pb2.Sentiment(probability=-0.1)}, "not between 0 and 1"),
    ({"additional_sentiments": [item_pb2.Sentiment(probability=1.1)]}, "not between 0 and 1"),
]


@pytest.mark.parametrize(("result", "problem"), LIES)
def test_impossible_output_is_a_server_error(result: dict[str, Any], problem: str) -> None:
    with pytest.raises(ServerError, match=problem) as caught:
        converted(**result)
    assert caught.value.reason == "INVALID_ANSWER"


def test_embedding_has_the_requested_number_of_dimensions() -> None:
    embedding = item_pb2.Embedding(values=bytes(8), encoding=1, dimensions=2)  # type: ignore[arg-type]
    answer = item_pb2.Answer(item_id="7", result=item_pb2.Result(embedding=embedding))
    response = service_pb2.AnalyzeResponse(answers=[answer])
    for dimensions in (0, 2):
        options = item_pb2.EmbeddingOptions(dimensions=dimensions)
        assert conversion.answers_of(response, service_pb2.AnalyzeRequest(embedding_options=options))[0].error is None
    options = item_pb2.EmbeddingOptions(dimensions=3)
    with pytest.raises(ServerError, match="3 dimensions were requested, and the embedding has 2"):
        conversion.answers_of(response, service_pb2.StreamEmbedRequest(embedding_options=options))


def test_thousands_of_float32_probabilities_add_up() -> None:
    generator = np.random.default_rng(1)
    probabilities = np.sort(generator.dirichlet(np.full(5000, 0.1)).astype(np.float32))[::-1]
    answer = converted(classification=classification("a", *map(float, probabilities)))
    assert len(answer.classification.scores) == 5000


def label_scores(*pairs: tuple[str, float]) -> list[item_pb2.LabelScore]:
    return [item_pb2.LabelScore(label=label, probability=probability) for label, probability in pairs]


def test_label_set_need_not_sum_to_one_and_may_be_empty() -> None:
    scores = label_scores(("a", 0.9), ("b", 0.8))
    result = converted(label_sets=[item_pb2.LabelSet(head="tags", scores=scores)]).unwrap()
    assert [(one.head, one.labels) for one in result.label_sets] == [("tags", ())]


@pytest.mark.parametrize(
    ("scores", "labels", "problem"),
    [
        (label_scores(("a", 0.1), ("b", 0.8)), [], "labels that are not ordered"),
        (label_scores(("a", 1.1)), [], "not between 0 and 1"),
        (label_scores(("a", 0.5), ("a", 0.5)), [], "a label twice"),
        (label_scores(("a", 0.5)), ["b"], "a label twice or without a probability"),
        (label_scores(("a", 0.5)), ["a", "a"], "a label twice or without a probability"),
        ([], [], "no labels"),
    ],
)
def test_impossible_label_set_is_a_server_error(
    scores: list[item_pb2.LabelScore], labels: list[str], problem: str
) -> None:
    with pytest.raises(ServerError, match=problem):
        converted(label_sets=[item_pb2.LabelSet(head="tags", scores=scores, labels=labels)])


@pytest.mark.parametrize(
    ("score", "problem"),
    [
        (item_pb2.Score(head="price", value=float("nan")), "the value nan"),
        (item_pb2.Score(head="stars", label="1", probabilities=label_scores(("1", 0.5))), "add up to 0.5"),
        (item_pb2.Score(head="stars", label="3", probabilities=label_scores(("1", 1))), "label without a probability"),
    ],
)
def test_impossible_score_is_a_server_error(score: item_pb2.Score, problem: str) -> None:
    with pytest.raises(ServerError, match=problem):
        converted(scores=[score])


def test_heads_have_their_kind_and_thresholds() -> None:
    kinds = [model_pb2.HEAD_KIND_MULTILABEL, model_pb2.HEAD_KIND_ORDINAL, model_pb2.HEAD_KIND_REGRESSION]
    heads = [model_pb2.HeadInfo(name="x", kind=kind) for kind in kinds]
    heads[0].thresholds.extend([0.5, 0.25])
    model = conversion.model_info_of(service_pb2.GetModelInfoResponse(model=model_pb2.ModelInfo(heads=heads)))
    assert [head.kind for head in model.heads] == ["multilabel", "ordinal", "regression"]
    assert [head.thresholds for head in model.heads] == [(0.5, 0.25), None, None]


def test_confidence_and_novelty_are_none_where_the_server_sends_none() -> None:
    plain = converted(classification=classification("topic", 0.75, 0.25)).unwrap()
    assert (plain.classification.confidence, plain.classification.abstained, plain.novelty) == (None, None, None)  # type: ignore[union-attr]
    assert "confidence" not in plain.to_dict()["classification"]
    wire = classification("topic", 0.75, 0.25)
    wire.confidence, wire.abstained = 0.75, False
    found = converted(
        classification=wire,
        sentiment=item_pb2.Sentiment(head="mood", probability=0.4, label="no", confidence=0.6, abstained=True),
        scores=[item_pb2.Score(head="price", value=1)],
        novelty=0.0,
    ).unwrap()
    assert found.novelty == 0
    fields = found.to_dict()
    assert (fields["classification"]["confidence"], fields["classification"]["abstained"]) == (0.75, False)
    assert (fields["sentiment"]["confidence"], fields["sentiment"]["abstained"]) == (0.6, True)
    assert fields["scores"][0] == {"head": "price", "value": 1.0, "label": None, "probabilities": []}
    line = json.loads(format_answer(Answer("1", found)))
    assert (line["novelty"], line["classification"]["abstained"]) == (0.0, False)


@pytest.mark.parametrize("confidence", [1.5, -0.1, float("nan")])
def test_impossible_confidence_or_novelty_is_a_server_error(confidence: float) -> None:
    wire = classification("topic", 1)
    wire.confidence = confidence
    with pytest.raises(ServerError, match="confidence that is not between 0 and 1"):
        converted(classification=wire)
    with pytest.raises(ServerError, match="not between 0 and 1"):
        converted(novelty=confidence)


def test_novelty_is_requested_by_an_option() -> None:
    options = resolve(AnalyzeOptions, {"include_novelty": True})
    del options["deadline_s"]
    assert conversion.request_template(service_pb2.AnalyzeRequest, options).options.include_novelty
    assert not conversion.item_options("truncate", False, None).include_novelty


def test_model_states_when_its_heads_abstain() -> None:
    abstention = model_pb2.Abstention(threshold=0.75, accuracy=0.95, certainty=0.9, coverage=0.5)
    heads = [model_pb2.HeadInfo(name="a", abstention=abstention), model_pb2.HeadInfo(name="b")]
    model = model_pb2.ModelInfo(heads=heads, has_novelty=True)
    found = conversion.model_info_of(service_pb2.GetModelInfoResponse(model=model))
    assert found.has_novelty
    assert found.heads[0].abstention is not None
    assert found.heads[0].abstention.to_dict() == {
        "threshold": 0.75,
        "accuracy": 0.95,
        "certainty": 0.9,
        "coverage": 0.5,
    }
    assert found.heads[1].abstention is None


def test_prediction_set_is_none_where_the_server_sends_none() -> None:
    plain = converted(classification=classification("topic", 0.75, 0.25)).unwrap()
    assert plain.classification is not None
    assert plain.classification.prediction_set is None
    assert "prediction_set" not in plain.to_dict()["classification"]
    wire = classification("topic", 0.75, 0.25)
    labels = [score.label for score in wire.scores]
    wire.prediction_set.extend(labels)
    found = converted(classification=wire).unwrap()
    assert found.to_dict()["classification"]["prediction_set"] == labels
    wire.prediction_set.append("unknown")
    with pytest.raises(ServerError, match="prediction set of head 'topic'"):
        converted(classification=wire)


def test_prediction_sets_are_requested_by_an_option() -> None:
    options = resolve(AnalyzeOptions, {"include_prediction_sets": True})
    del options["deadline_s"]
    assert conversion.request_template(service_pb2.AnalyzeRequest, options).options.include_prediction_sets
    head = model_pb2.HeadInfo(name="a", prediction_sets=model_pb2.PredictionSets(coverage=0.9, threshold=0.05))
    model = model_pb2.ModelInfo(heads=[head])
    found = conversion.model_info_of(service_pb2.GetModelInfoResponse(model=model)).heads[0].prediction_sets
    assert found is not None
    assert found.to_dict() == {"coverage": 0.9, "threshold": 0.05}
