"""Abstention and novelty on the wire: what a head that abstains adds to its answer, and novelty on request."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import TypeAlias

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead.v1 import inference_service_pb2, item_pb2
from polyhead_server.errors import NoveltyNotAvailableError
from polyhead_server.inference import head_answers
from polyhead_server.inference.model import Model
from polyhead_server.inference.novelty import Novelty
from polyhead_server.inference.types import Message, ModelOutput, RequestOptions, Result, Timings, TokenizedText
from polyhead_server.rpc import model_info
from polyhead_server.rpc.response_encoder import ResponseEncoder
from polyhead_server.rpc.serving_model import ServingModel
from polyhead_server.settings import Settings

from tests.support.all_heads import with_all_heads
from tests.support.small_bundle import ABSTENTION

Confident: TypeAlias = item_pb2.Classification | item_pb2.Sentiment | item_pb2.Score
NOVELTY = Novelty(bundle.Novelty(1, (), 1.0, (0.0, 1.0, 4.0)), np.zeros((1, 2), np.float16))
SCORES = ([0.7, 0.2, 0.1], [0.4], [0.5, 0.25, 0.125], [0.125, 0.125, 0.125, 0.375, 0.25], [-7.5])


def abstaining(manifest: bundle.Manifest, threshold: float | None = 0.65) -> bundle.Manifest:
    changed, found = with_all_heads(manifest), dataclasses.replace(ABSTENTION, threshold=threshold)
    heads = [
        dataclasses.replace(head, abstention=found) if head.kind in {"softmax", "sigmoid", "ordinal"} else head
        for head in changed.heads
    ]
    return dataclasses.replace(changed, heads=tuple(heads))


def encode(manifest: bundle.Manifest, *scores: list[float], novelty: bool = False) -> item_pb2.Result:
    encoder = ResponseEncoder(manifest, manifest.variants["fp32"].fingerprints, NOVELTY)
    rows = tuple(np.array(row, np.float32) for row in scores or SCORES)
    outcome = Result(ModelOutput(np.array([0, 1], np.float32), rows, rows), TokenizedText(([2],), 1), TIMINGS)
    data = encoder.for_options(RequestOptions(novelty=novelty)).encode("", outcome)
    (answer,) = inference_service_pb2.AnalyzeResponse.FromString(data).answers
    return answer.result


TIMINGS = Timings(1, 2, 3, 7, 4, 5, 0)


def test_head_that_abstains_adds_its_confidence(manifest: bundle.Manifest) -> None:
    result = encode(abstaining(manifest))
    found: list[Confident] = [result.classification, result.sentiment, result.scores[0]]
    assert [one.confidence for one in found] == pytest.approx([0.7, 0.6, 0.375])
    assert [one.abstained for one in found] == [False, True, True]
    # The answers themselves are those of a head that never abstains.
    for one in found:
        one.ClearField("confidence")
        one.ClearField("abstained")
    assert result == encode(with_all_heads(manifest))


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_head_without_a_threshold_adds_nothing_and_one_of_0_answers_all(
    manifest: bundle.Manifest, threshold: float | None
) -> None:
    result = encode(abstaining(manifest, threshold))
    found: list[Confident] = [result.classification, result.sentiment, result.scores[0]]
    for one in found:
        assert one.HasField("abstained") == one.HasField("confidence") == (threshold is not None)
        assert not one.abstained


def test_encoded_confidence_is_that_of_every_dialect(manifest: bundle.Manifest) -> None:
    rng, changed = np.random.default_rng(0), abstaining(manifest)
    heads: dict[str, bundle.Head] = {head.kind: head for head in changed.heads}
    for _ in range(50):
        topic, stars, mood = rng.dirichlet([1] * 3), rng.dirichlet([1] * 5), rng.random()
        rows = [topic.tolist(), [mood], [0, 0, 0], stars.tolist(), [0]]
        result = encode(changed, *rows)
        cases: list[tuple[str, Confident, list[float]]] = [
            ("softmax", result.classification, rows[0]),
            ("sigmoid", result.sentiment, rows[1]),
            ("ordinal", result.scores[0], rows[3]),
        ]
        for kind, answer, row in cases:
            confidence = head_answers.confidence(heads[kind], np.array(row, np.float32))
            assert answer.confidence == confidence
            assert answer.abstained == head_answers.abstains(heads[kind], confidence)


def test_novelty_is_added_on_request(manifest: bundle.Manifest) -> None:
    assert not encode(manifest, *SCORES[:2]).HasField("novelty")
    found = encode(manifest, *SCORES[:2], novelty=True)
    assert found.novelty == pytest.approx(0.5)  # squared distance 1, the median of the validation texts
    found.ClearField("novelty")
    assert found == encode(manifest, *SCORES[:2])


def test_largest_answer_includes_what_abstaining_and_novelty_add(manifest: bundle.Manifest) -> None:
    changed = abstaining(manifest)
    plain, full = (
        ResponseEncoder(one, one.variants["fp32"].fingerprints, NOVELTY) for one in (with_all_heads(manifest), changed)
    )
    sizes = []
    for encoder, options in ((plain, RequestOptions()), (full, RequestOptions(novelty=True))):
        encoder.max_items(options)
        sizes.append(encoder.for_options(options).max_bytes)
    # Three heads, each with a float and a boolean and their tags, and the novelty with its own.
    assert sizes[1] - sizes[0] == 3 * 7 + 5


def test_novelty_of_a_model_without_it_is_refused(model: Model) -> None:
    source = dataclasses.replace(model.source, manifest=abstaining(model.source.manifest))
    for novelty in (None, NOVELTY):
        serving = ServingModel.from_pipeline(SimpleNamespace(model=dataclasses.replace(model, novelty=novelty)))  # type: ignore[arg-type]
        checked = serving.check(Message((), RequestOptions(novelty=True)))
        assert isinstance(checked.error, NoveltyNotAvailableError) == (novelty is None)
        assert serving.check(Message((), RequestOptions())).error is None
        described = dataclasses.replace(model, source=source, novelty=novelty)
        encoder = ResponseEncoder(source.manifest, described.fingerprints, novelty)
        info = model_info.describe(described, encoder, Settings(bundle=Path("fake")))
        assert info.has_novelty == (novelty is not None)
        assert [head.HasField("abstention") for head in info.heads] == [True, True, False, True, False]
        assert info.heads[0].abstention.threshold == pytest.approx(0.65)


def with_sets(manifest: bundle.Manifest, threshold: float) -> bundle.Manifest:
    changed = abstaining(manifest)
    topic = dataclasses.replace(changed.heads[0], prediction_sets=bundle.PredictionSets(0.9, threshold, 100))
    return dataclasses.replace(changed, heads=(topic, *changed.heads[1:]))


def encode_with_sets(manifest: bundle.Manifest, *scores: list[float], wanted: bool = True) -> item_pb2.Result:
    encoder = ResponseEncoder(manifest, manifest.variants["fp32"].fingerprints, NOVELTY)
    rows = tuple(np.array(row, np.float32) for row in (*scores, *SCORES[len(scores) :]))
    outcome = Result(ModelOutput(np.array([0, 1], np.float32), rows, rows), TokenizedText(([2],), 1), TIMINGS)
    data = encoder.for_options(RequestOptions(prediction_sets=wanted)).encode("", outcome)
    (answer,) = inference_service_pb2.AnalyzeResponse.FromString(data).answers
    return answer.result


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.2, ["a", "b"]), (0.05, ["a", "b", "c"]), (0.7, ["a"]), (0.9, ["a"])]
)
def test_prediction_set_is_added_on_request(manifest: bundle.Manifest, threshold: float, expected: list[str]) -> None:
    changed = with_sets(manifest, float(np.float32(threshold)))
    found = encode_with_sets(changed)
    assert list(found.classification.prediction_set) == expected
    # Everything else is the same as without.
    found.classification.ClearField("prediction_set")
    assert found == encode_with_sets(changed, wanted=False)


def test_prediction_set_is_ordered_by_probability(manifest: bundle.Manifest) -> None:
    found = encode_with_sets(with_sets(manifest, 0.2), [0.25, 0.1, 0.65])
    assert list(found.classification.prediction_set) == ["c", "a"]


def test_head_without_prediction_sets_has_none_on_request(manifest: bundle.Manifest) -> None:
    changed = abstaining(manifest)
    assert encode_with_sets(changed) == encode_with_sets(changed, wanted=False)


def test_largest_answer_includes_the_whole_prediction_set(manifest: bundle.Manifest) -> None:
    changed = with_sets(manifest, 0.2)
    encoder = ResponseEncoder(changed, changed.variants["fp32"].fingerprints, NOVELTY)
    sizes = []
    for options in (RequestOptions(), RequestOptions(prediction_sets=True)):
        encoder.max_items(options)
        sizes.append(encoder.for_options(options).max_bytes)
    # Three labels of one letter, each with its tag and its length.
    assert sizes[1] - sizes[0] == 3 * 3


def test_model_states_its_prediction_sets(model: Model) -> None:
    source = dataclasses.replace(model.source, manifest=with_sets(model.source.manifest, 0.2))
    described = dataclasses.replace(model, source=source)
    encoder = ResponseEncoder(source.manifest, described.fingerprints)
    info = model_info.describe(described, encoder, Settings(bundle=Path("fake")))
    assert [head.HasField("prediction_sets") for head in info.heads] == [True, False, False, False, False]
    assert info.heads[0].prediction_sets.coverage == pytest.approx(0.9)
