"""Answers on the wire: embeddings, labels, truncation, timings and errors."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead.v1 import item_pb2
from polyhead_server.errors import ExpiredError
from polyhead_server.inference.types import Encoding, ModelOutput, RequestOptions, Result, Task, Timings, TokenizedText
from polyhead_server.rpc.response_encoder import ResponseEncoder, encode_embedding

EMBEDDING = np.array([0.1, -2.5], dtype=np.float32)


def result(*probabilities: list[float], tokens: TokenizedText | None = None) -> Result:
    rows = tuple(np.array(row, dtype=np.float32) for row in probabilities)
    output = ModelOutput(EMBEDDING, rows, rows)
    return Result(output, tokens or TokenizedText(([2, 7, 3],), 3), Timings(1, 2, 3, 7, 4, 5, 0))


@pytest.fixture
def encoder(manifest: bundle.Manifest) -> ResponseEncoder:
    return ResponseEncoder(manifest, manifest.variants["fp32"].fingerprints)


def test_answer_contains_every_requested_task(encoder: ResponseEncoder) -> None:
    answer = encoder.encode("id", result([0.2, 0.7, 0.1], [0.25]), RequestOptions())
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


@pytest.mark.parametrize("task", list(Task))
def test_answer_contains_no_other_task(encoder: ResponseEncoder, task: Task) -> None:
    answer = encoder.encode("", result([0.2, 0.7, 0.1], [0.25]), RequestOptions(tasks=frozenset({task})))
    present = {name for name in ("embedding", "classification", "sentiment") if answer.result.HasField(name)}
    assert present == {task.name.lower()}


def test_probability_at_the_threshold_is_positive(encoder: ResponseEncoder) -> None:
    assert encoder.encode("", result([1, 0, 0], [0.5]), RequestOptions()).result.sentiment.label == "positive"


def test_half_precision_embedding_is_rounded(encoder: ResponseEncoder) -> None:
    answer = encoder.encode("", result([1, 0, 0], [0]), RequestOptions(encoding=Encoding.FLOAT16_LE))
    assert np.frombuffer(answer.result.embedding.values, "<f2").tolist() == EMBEDDING.astype("<f2").tolist()
    assert answer.result.embedding.encoding == item_pb2.EMBEDDING_ENCODING_FLOAT16_LE


def test_int8_values_times_the_scale_are_within_half_a_step(encoder: ResponseEncoder) -> None:
    embedding = encoder.encode("", result([1, 0, 0], [0]), RequestOptions(encoding=Encoding.INT8)).result.embedding
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
    cut = encoder.encode("", result([1, 0, 0], [0]), RequestOptions(dimensions=1)).result.embedding
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
    answer = encoder.encode("", result([1, 0, 0], [0.6], [0.3, 0.7], [0.6]), RequestOptions()).result
    assert (answer.classification.head, answer.sentiment.head) == ("topic", "sentiment")
    assert [(one.head, one.scores[0].label) for one in answer.additional_classifications] == [("urgency", "high")]
    assert [(one.head, one.label) for one in answer.additional_sentiments] == [("spam", "ham")]


def test_truncation_and_timings_are_reported(encoder: ResponseEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic_ns", lambda: 40)
    cut = result([1, 0, 0], [0], tokens=TokenizedText(([2, 7, 3],), seen=9, cut_at=4))
    answer = encoder.encode("", cut, RequestOptions(timings=True)).result
    assert (answer.truncation.truncated, answer.truncation.tokens_seen, answer.truncation.tokens_used) == (True, 9, 3)
    assert answer.truncation.cut_at_code_point == 4
    assert answer.timings.queue.ToNanoseconds() == 2
    # 7 ns in total, of which stages take 1, 2 and 3 ns; the result is ready at 0 and written at 40 ns.
    assert (answer.timings.admission.ToNanoseconds(), answer.timings.delivery.ToNanoseconds()) == (1, 40)
    whole = encoder.encode("", result([1, 0, 0], [0]), RequestOptions()).result
    assert not whole.truncation.HasField("cut_at_code_point")


def test_error_becomes_an_answer(encoder: ResponseEncoder) -> None:
    answer = encoder.encode("id", ExpiredError(), RequestOptions())
    assert answer.WhichOneof("outcome") == "error"
    assert answer.error.code == 4
