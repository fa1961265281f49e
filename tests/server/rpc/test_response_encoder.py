"""Answers on the wire: embeddings, labels, truncation, timings and errors."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import polyhead_bundle as bundle
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from polyhead.v1 import inference_service_pb2, item_pb2
from polyhead_server.errors import ExpiredError, OverloadedError
from polyhead_server.inference.types import (
    Encoding,
    ItemOutcome,
    ModelOutput,
    RequestOptions,
    Result,
    Task,
    Timings,
    TokenizedText,
)
from polyhead_server.rpc.response_encoder import ResponseEncoder
from polyhead_server.serving.embeddings import encode_embedding

from tests.support.all_heads import PRICE, TAGS, with_all_heads, with_heads

EMBEDDING = np.array([0.1, -2.5], dtype=np.float32)


def result(*probabilities: list[float], tokens: TokenizedText | None = None) -> Result:
    rows = tuple(np.array(row, dtype=np.float32) for row in probabilities)
    output = ModelOutput(EMBEDDING, rows, rows)
    return Result(output, tokens or TokenizedText(([2, 7, 3],), 3), Timings(1, 2, 3, 7, 4, 5, 0))


# One text for the heads of ``with_all_heads``.
ALL_KINDS = result([1, 0, 0], [0.5], [0.5, 0.25, 0.125], [0.125, 0.125, 0.125, 0.375, 0.25], [-7.5])


def encoder_of_all_heads(manifest: bundle.Manifest) -> ResponseEncoder:
    changed = with_all_heads(manifest)
    return ResponseEncoder(changed, changed.variants["fp32"].fingerprints)


def encoded(encoder: ResponseEncoder, item_id: str, outcome: ItemOutcome, options: RequestOptions) -> item_pb2.Answer:
    """Returns the only answer of an encoded response."""
    data = encoder.for_options(options).encode(item_id, outcome)
    (answer,) = inference_service_pb2.AnalyzeResponse.FromString(data).answers
    return answer


@pytest.fixture
def encoder(manifest: bundle.Manifest) -> ResponseEncoder:
    return ResponseEncoder(manifest, manifest.variants["fp32"].fingerprints)


def test_answer_contains_every_requested_task(encoder: ResponseEncoder) -> None:
    answer = encoded(encoder, "id", result([0.2, 0.7, 0.1], [0.25]), RequestOptions())
    assert answer.item_id == "id"
    assert np.frombuffer(answer.result.embedding.values, "<f4").tolist() == EMBEDDING.tolist()
    assert (answer.result.embedding.encoding, answer.result.embedding.dimensions) == (
        item_pb2.EMBEDDING_ENCODING_FLOAT32_LE,
        2,
    )
    scores = answer.result.classification.scores
    assert [(score.label, round(score.probability, 3)) for score in scores] == [("b", 0.7), ("a", 0.2), ("c", 0.1)]
    assert (answer.result.sentiment.label, answer.result.sentiment.probability) == ("negative", 0.25)
    assert answer.result.fingerprints.embedding_space == "e" * 16
    assert [one.head for one in answer.result.fingerprints.heads] == ["topic", "sentiment"]
    assert answer.result.HasField("truncation")
    assert not answer.result.HasField("timings")


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (Task.EMBEDDING, "embedding"),
        (Task.CLASSIFICATION, "classification"),
        (Task.SENTIMENT, "sentiment"),
        (Task.LABELS, "label_sets"),
        (Task.SCORE, "scores"),
    ],
)
def test_answer_contains_no_other_task(manifest: bundle.Manifest, task: Task, field: str) -> None:
    answer = encoded(encoder_of_all_heads(manifest), "", ALL_KINDS, RequestOptions(tasks=frozenset({task})))
    assert {one.name for one, _ in answer.result.ListFields()} == {field, "truncation", "fingerprints"}


def test_text_to_which_no_label_applies_has_an_empty_set(manifest: bundle.Manifest) -> None:
    outcome = result([1, 0, 0], [0], [0, 0.1, 0], [1, 0, 0, 0, 0], [0])
    (found,) = encoded(encoder_of_all_heads(manifest), "", outcome, RequestOptions()).result.label_sets
    assert (found.scores[0].label, list(found.labels)) == ("broken", [])


def test_probability_at_the_threshold_is_positive(encoder: ResponseEncoder) -> None:
    assert encoded(encoder, "", result([1, 0, 0], [0.5]), RequestOptions()).result.sentiment.label == "positive"


def test_half_precision_embedding_is_rounded(encoder: ResponseEncoder) -> None:
    answer = encoded(encoder, "", result([1, 0, 0], [0]), RequestOptions(encoding=Encoding.FLOAT16_LE))
    assert np.frombuffer(answer.result.embedding.values, "<f2").tolist() == EMBEDDING.astype("<f2").tolist()
    assert answer.result.embedding.encoding == item_pb2.EMBEDDING_ENCODING_FLOAT16_LE


def test_int8_values_times_the_scale_are_within_half_a_step(encoder: ResponseEncoder) -> None:
    embedding = encoded(encoder, "", result([1, 0, 0], [0]), RequestOptions(encoding=Encoding.INT8)).result.embedding
    integers = np.frombuffer(embedding.values, np.int8)
    assert integers.tolist() == [5, -127]
    np.testing.assert_allclose(integers * embedding.scale, EMBEDDING, atol=embedding.scale / 2)
    assert embedding.encoding == item_pb2.EMBEDDING_ENCODING_INT8


def test_int8_encoding_of_a_zero_vector_is_zero() -> None:
    assert encode_embedding(np.zeros(3, np.float32), Encoding.INT8) == (bytes(3), 0.0)


def test_binary_encoding_packs_signs_most_significant_bit_first() -> None:
    signs = np.array([1, -1, 1, 0, -1, -1, -1, 1, 2], np.float32)
    assert encode_embedding(signs, Encoding.BINARY) == (bytes([0b10100001, 0b10000000]), 0.0)


@pytest.mark.parametrize(("normalized", "expected"), [(True, [1.0]), (False, [0.1])])
def test_truncated_embedding_is_normalized_again_if_the_model_normalizes(
    manifest: bundle.Manifest, normalized: bool, expected: list[float]
) -> None:
    embedding = dataclasses.replace(manifest.embedding, normalized=normalized)
    encoder = ResponseEncoder(
        dataclasses.replace(manifest, embedding=embedding), manifest.variants["fp32"].fingerprints
    )
    cut = encoded(encoder, "", result([1, 0, 0], [0]), RequestOptions(dimensions=1)).result.embedding
    assert cut.dimensions == 1
    np.testing.assert_allclose(np.frombuffer(cut.values, "<f4"), expected)


def test_additional_heads_follow_the_first(manifest: bundle.Manifest) -> None:
    more = dataclasses.replace(
        manifest,
        heads=(
            *manifest.heads,
            bundle.Head("urgency", "softmax", "urgency_logits", ("low", "high")),
            bundle.Head("spam", "sigmoid", "spam_logits", ("ham", "spam"), threshold=0.9),
        ),
    )
    names = {head.name: "f" * 16 for head in more.heads}
    encoder = ResponseEncoder(more, bundle.Fingerprints("e" * 16, names))
    answer = encoded(encoder, "", result([1, 0, 0], [0.6], [0.3, 0.7], [0.6]), RequestOptions()).result
    assert (answer.classification.head, answer.sentiment.head) == ("topic", "sentiment")
    assert [(one.head, one.scores[0].label) for one in answer.additional_classifications] == [("urgency", "high")]
    assert [(one.head, one.label) for one in answer.additional_sentiments] == [("spam", "ham")]


def test_truncation_and_timings_are_reported(encoder: ResponseEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic_ns", lambda: 40)
    cut = result([1, 0, 0], [0], tokens=TokenizedText(([2, 7, 3],), seen=9, cut_at=4))
    answer = encoded(encoder, "", cut, RequestOptions(timings=True)).result
    assert (answer.truncation.truncated, answer.truncation.tokens_seen, answer.truncation.tokens_used) == (True, 9, 3)
    assert answer.truncation.cut_at_code_point == 4
    assert answer.timings.queue.ToNanoseconds() == 2
    # 7 ns in total, of which stages take 1, 2 and 3 ns; the result is ready at 0 and written at 40 ns.
    assert (answer.timings.admission.ToNanoseconds(), answer.timings.delivery.ToNanoseconds()) == (1, 40)
    whole = encoded(encoder, "", result([1, 0, 0], [0]), RequestOptions()).result
    assert not whole.truncation.HasField("cut_at_code_point")


def test_error_becomes_an_answer(encoder: ResponseEncoder) -> None:
    answer = encoded(encoder, "id", ExpiredError(), RequestOptions())
    assert answer.WhichOneof("outcome") == "error"
    assert answer.error.code == 4


def output_of(embedding: list[float]) -> ModelOutput:
    rows = (np.ones(3, np.float32), np.ones(1, np.float32))
    return ModelOutput(np.array(embedding, np.float32), rows, rows)


def test_float16_embedding_beyond_its_range_is_an_error(encoder: ResponseEncoder) -> None:
    for values, fits in (([65_504.0, -1.0], True), ([1.0, -65_600.0], False)):
        output = output_of(values)
        outcome = dataclasses.replace(result([1, 0, 0], [0]), output=output)
        answer = encoded(encoder, "id", outcome, RequestOptions(encoding=Encoding.FLOAT16_LE))
        assert (answer.WhichOneof("outcome") == "result") == fits
        assert fits or (answer.item_id, answer.error.code) == ("id", 3)
        assert encoded(encoder, "id", outcome, RequestOptions()).WhichOneof("outcome") == "result"


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=9))
@example([1e-45, -1e-45, 0.0])
@example([3e-39, 1e-39, -2e-39])
def test_int8_encoding_is_within_half_a_step_of_any_embedding(values: list[float]) -> None:
    embedding = np.array(values, np.float32)
    data, scale = encode_embedding(embedding, Encoding.INT8)
    steps = np.frombuffer(data, np.int8)
    assert np.abs(steps.astype(int)).max() == (127 if embedding.any() else 0)
    np.testing.assert_allclose(steps * scale, embedding, atol=scale * 0.5001)


def test_shortened_embedding_of_tiny_numbers_is_normalized_again(manifest: bundle.Manifest) -> None:
    embedding = dataclasses.replace(manifest.embedding, normalized=True)
    encoder = ResponseEncoder(
        dataclasses.replace(manifest, embedding=embedding), manifest.variants["fp32"].fingerprints
    )
    output = output_of([3e-30, 1.0])
    outcome = dataclasses.replace(result([1, 0, 0], [0]), output=output)
    cut = encoded(encoder, "", outcome, RequestOptions(dimensions=1)).result.embedding
    assert np.frombuffer(cut.values, "<f4").tolist() == [1.0]


@pytest.mark.parametrize("dimensions", [0, 2])
def test_whole_embedding_is_returned_as_the_model_computed_it(manifest: bundle.Manifest, dimensions: int) -> None:
    """Scaling it to length 1 again would change its last digits, and take time in each answer."""
    embedding = dataclasses.replace(manifest.embedding, normalized=True)
    encoder = ResponseEncoder(
        dataclasses.replace(manifest, embedding=embedding), manifest.variants["fp32"].fingerprints
    )
    answer = encoded(encoder, "", result([1, 0, 0], [0]), RequestOptions(dimensions=dimensions))
    assert answer.result.embedding.values == EMBEDDING.tobytes()


def wide(manifest: bundle.Manifest, dimensions: int, labels: int, heads: int) -> ResponseEncoder:
    """Makes the encoder of a model with many dimensions, labels and heads of each kind."""
    embedding = dataclasses.replace(manifest.embedding, dimensions=dimensions)
    names = tuple(f"label {number}" for number in range(labels))
    every: list[bundle.Head] = []
    for one in range(heads):
        every += [
            bundle.Head(f"h{one}", "softmax", f"o{one}", names),
            bundle.Head(f"s{one}", "sigmoid", f"p{one}", ("no", "a longer label"), threshold=0.5),
            bundle.Head(f"m{one}", "multilabel", f"q{one}", names, thresholds=(0.01,) * labels),
            bundle.Head(f"d{one}", "ordinal", f"r{one}", names),
            bundle.Head(f"r{one}", "regression", f"t{one}", ()),
        ]
    changed = dataclasses.replace(manifest, embedding=embedding, heads=tuple(every))
    return ResponseEncoder(changed, bundle.Fingerprints("e" * 16, {head.name: "f" * 16 for head in every}))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dimensions=st.sampled_from([1, 384, 1024, 4096]),
    labels=st.sampled_from([2, 30, 700]),
    heads=st.integers(0, 3),
    tasks=st.sets(st.sampled_from(list(Task)), min_size=1),
    encoding=st.sampled_from(list(Encoding)),
    cut=st.booleans(),
    timings=st.booleans(),
)
def test_unary_response_of_as_many_items_as_fit_stays_below_4_mib(
    manifest: bundle.Manifest,
    *,
    dimensions: int,
    labels: int,
    heads: int,
    tasks: set[Task],
    encoding: Encoding,
    cut: bool,
    timings: bool,
) -> None:
    encoder = wide(manifest, dimensions, labels, heads)
    options = RequestOptions(
        tasks=frozenset(tasks), encoding=encoding, dimensions=dimensions // 2 if cut else 0, timings=timings
    )
    count = encoder.max_items(options)
    one_number, distribution = np.ones(1, np.float32), np.full(labels, 1 / labels, np.float32)
    # Every label of a multilabel head applies.
    rows = [distribution, one_number, np.ones(labels, np.float32), distribution[::-1], one_number] * heads
    output = ModelOutput(np.ones(dimensions, np.float32), tuple(rows), tuple(rows))
    tokens = TokenizedText(([2] * 512,) * 32, 2**31, cut_at=2**31)
    long_ns = 3600 * 10**9 + 999_999_999
    outcome = Result(output, tokens, Timings(long_ns, long_ns, long_ns, 4 * long_ns, 4096, 2**30, 0))
    largest = max(
        encoded(encoder, "i" * 256, one, options).ByteSize() for one in (outcome, OverloadedError.late(1e9, 1e9))
    )
    # Each answer has a tag and a length in the response.
    assert count * (largest + 5) <= 4 * 2**20
    # And the limit is not far below what fits.
    assert count * max(largest, 1280) * 1.3 > 4 * 2**20 - 2 * largest or count == 1


def test_responses_of_single_answers_concatenate(encoder: ResponseEncoder) -> None:
    encode = encoder.for_options(RequestOptions()).encode
    outcomes: list[ItemOutcome] = [result([0.2, 0.7, 0.1], [0.25]), ExpiredError(), result([1, 0, 0], [1])]
    data = b"".join(encode(str(number), outcome) for number, outcome in enumerate(outcomes))
    for name in ("Analyze", "StreamAnalyze", "StreamEmbed", "StreamClassify", "StreamSentiment"):
        answers = getattr(inference_service_pb2, f"{name}Response").FromString(data).answers
        assert [(one.item_id, one.WhichOneof("outcome")) for one in answers] == [
            ("0", "result"),
            ("1", "error"),
            ("2", "result"),
        ]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    probabilities=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
    item_id=st.text(max_size=200),
    scale=st.sampled_from([0.0, 1e-30, 1.0]),
    encoding=st.sampled_from(list(Encoding)),
)
def test_answer_has_as_many_bytes_as_protobuf_writes(
    manifest: bundle.Manifest, probabilities: list[float], item_id: str, scale: float, encoding: Encoding
) -> None:
    encoder = wide(manifest, 300, 300, 1)
    # So many labels that lengths take two bytes.
    many, one_number = (np.resize(np.array(probabilities, np.float32), size) for size in (300, 1))
    rows = (many, one_number, many, many, one_number)
    output = ModelOutput(np.full(300, scale, np.float32), rows, rows)
    outcome = Result(output, TokenizedText(([2] * 300,), 300), Timings(1, 2, 3, 7, 4, 5, 0))
    data = encoder.for_options(RequestOptions(encoding=encoding)).encode(item_id, outcome)
    response = inference_service_pb2.AnalyzeResponse.FromString(data)
    assert response.answers[0].item_id == item_id
    scores = response.answers[0].result.classification.scores
    assert sorted(((one.label, one.probability) for one in scores), key=lambda pair: int(pair[0].split()[1])) == [
        (f"label {number}", float(value)) for number, value in enumerate(rows[0])
    ]
    assert [one.probability for one in scores] == sorted(map(float, rows[0]), reverse=True)
    # protobuf sorts the fields and leaves out numbers that are 0; it reads them all the same.
    zeros = 0 in (many.min(), one_number.min())
    assert len(response.SerializeToString()) == len(data) or zeros


def test_score_of_labels_around_zero_counts_in_full(manifest: bundle.Manifest) -> None:
    sizes = []
    for labels in (("-1", "0", "1"), ("10", "0", "1")):
        changed = with_heads(manifest, (bundle.Head("d", "ordinal", "d_logits", labels),))
        encoder = ResponseEncoder(changed, changed.variants["fp32"].fingerprints)
        sizes.append(encoder.max_items(RequestOptions(tasks=frozenset({Task.SCORE}), timings=True)))
    assert sizes[0] == sizes[1]


def test_tasks_of_a_model_are_those_of_its_heads(manifest: bundle.Manifest) -> None:
    for heads, tasks in (
        (with_all_heads(manifest).heads, set(Task)),
        (manifest.heads, {Task.EMBEDDING, Task.CLASSIFICATION, Task.SENTIMENT}),
        (manifest.heads[:1], {Task.EMBEDDING, Task.CLASSIFICATION}),
        ((TAGS, PRICE), {Task.EMBEDDING, Task.LABELS, Task.SCORE}),
        ((), {Task.EMBEDDING}),
    ):
        changed = with_heads(manifest, heads)
        assert ResponseEncoder(changed, changed.variants["fp32"].fingerprints).tasks == tasks
