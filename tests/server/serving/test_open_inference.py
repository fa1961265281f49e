"""Tensors of the Open Inference Protocol: what a request means, and what its outcomes become."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_server.errors import InternalError, InvalidRequestError
from polyhead_server.inference.novelty import Novelty
from polyhead_server.inference.types import ModelOutput, Result, Timings, TokenizedText
from polyhead_server.serving.open_inference import ModelView

from tests.support.all_heads import with_all_heads
from tests.support.small_bundle import ABSTENTION

OUTPUTS = ["embedding", "topic_probabilities", "sentiment_probabilities", "topic_label", "sentiment_label", "truncated"]


@pytest.fixture
def view(manifest: bundle.Manifest) -> ModelView:
    return ModelView(manifest, max_items=4, max_text_bytes=100)


def result(embedding: list[float], topic: list[float], sentiment: float, cut_at: int | None = None) -> Result:
    probabilities = (np.asarray(topic, np.float32), np.asarray([sentiment], np.float32))
    output = ModelOutput(np.asarray(embedding, np.float32), (), probabilities)
    return Result(output, TokenizedText(([2, 5, 3],), 3, cut_at), Timings(1, 1, 1, 3, 1, 3, 3))


RESULTS = [result([1, 2], [0.2, 0.7, 0.1], 0.9), result([3, 4], [0.5, 0.3, 0.2], 0.1, cut_at=7)]


def test_outputs_hold_every_answer(view: ModelView) -> None:
    request = view.request([b"a", b"b"], [], {})
    tensors = {one.name: one for one in view.respond(request, RESULTS)}
    assert list(tensors) == OUTPUTS
    assert tensors["embedding"].flat() == [1, 2, 3, 4]
    assert tensors["topic_probabilities"].shape == (2, 3)
    assert tensors["sentiment_probabilities"].flat() == pytest.approx([0.1, 0.9, 0.9, 0.1])
    assert tensors["topic_label"].raw() == b"\1\0\0\0b\1\0\0\0a"
    assert tensors["sentiment_label"].flat() == ["positive", "negative"]
    assert tensors["truncated"].raw() == b"\0\1"


def test_requested_outputs_come_in_their_order_and_decide_the_tasks(view: ModelView) -> None:
    request = view.request([b"a"], ["sentiment_label", "topic_label"], {})
    assert {task.name for task in request.message.options.tasks} == {"CLASSIFICATION", "SENTIMENT"}
    assert [one.name for one in view.respond(request, RESULTS[:1])] == ["sentiment_label", "topic_label"]


def test_encodings_have_their_own_datatypes(view: ModelView) -> None:
    def embedding(encoding: str) -> list[tuple[str, str, list[Any]]]:
        request = view.request([b"a"], [], {"encoding": encoding})
        tensors = view.respond(request, RESULTS[:1])
        return [(one.name, one.datatype, one.flat()) for one in tensors if one.name.startswith("embedding")]

    assert embedding("float16") == [("embedding", "FP16", [1, 2])]
    assert embedding("binary") == [("embedding", "UINT8", [0b11000000])]
    (_, datatype, steps), (_, _, (scale,)) = embedding("int8")
    assert (datatype, steps) == ("INT8", [64, 127])
    assert scale == pytest.approx(2 / 127)


def test_prompt_is_a_parameter(view: ModelView) -> None:
    assert view.request([b"a"], [], {"prompt": "query"}).message.options.prompt == "query"
    assert not view.request([b"a"], [], {"prompt": None}).message.options.prompt
    with pytest.raises(InvalidRequestError, match="parameter prompt must be a string"):
        view.request([b"a"], [], {"prompt": 7})


def test_first_error_fails_the_call_and_names_the_text(view: ModelView) -> None:
    error = InternalError("abc")
    with pytest.raises(InternalError, match="text 1: internal error, incident abc"):
        view.respond(view.request([b"a", b"b"], [], {}), [RESULTS[0], error])
    # The error may be shared by several texts, and keeps its own message.
    assert str(error) == "internal error, incident abc"
    with pytest.raises(InternalError, match=r"^internal error"):
        view.respond(view.request([b"b"], [], {}), [error])


@pytest.mark.parametrize(
    ("texts", "outputs", "parameters", "refusal"),
    [
        ([], [], {}, ("EMPTY_REQUEST", "at least one text")),
        ([b"a"] * 5, [], {}, ("TOO_MANY_ITEMS", "5 elements; at most 4")),
        ([b"a"], ["logits"], {}, ("UNKNOWN_OUTPUT", "its outputs are embedding, topic_prob")),
        ([b"a"], ["embedding", "embedding"], {}, ("UNKNOWN_OUTPUT", "twice")),
        ([b"a"], ["error"], {}, ("UNKNOWN_OUTPUT", "no output 'error'")),
        ([b"a"], [], {"top_k": 3}, ("UNKNOWN_PARAMETER", "'top_k' is not known to this server; it knows dimensions")),
        ([b"a"], [], {"truncation": "left"}, ("INVALID_PARAMETER", "truncate, error, window")),
        ([b"a"], [], {"truncation": 1}, ("INVALID_PARAMETER", "truncation must be one of")),
        ([b"a"], [], {"partial": "yes"}, ("INVALID_PARAMETER", "partial must be a boolean")),
        ([b"a"], [], {"dimensions": 3}, ("INVALID_PARAMETER", "0 to 2")),
        ([b"a"], [], {"dimensions": True}, ("INVALID_PARAMETER", "0 to 2")),
        ([b"a"], [], {"timeout": -1}, ("INVALID_PARAMETER", "timeout")),
    ],
)
def test_invalid_request_is_refused_with_its_mend(
    view: ModelView, texts: list[bytes], outputs: list[str], parameters: dict[str, Any], refusal: tuple[str, str]
) -> None:
    reason, message = refusal
    with pytest.raises(InvalidRequestError, match=message) as caught:
        view.request(texts, outputs, parameters)
    assert caught.value.reason == reason


def test_error_repeats_no_more_than_the_beginning_of_a_name(view: ModelView) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        view.request([b"a"], ["x" * 100_000], {})
    assert len(str(caught.value)) < 500


def test_parameters_that_clients_send_by_themselves_change_nothing(view: ModelView) -> None:
    sent = {"priority": 1, "timeout": 1_500_000, "content_type": "str", "headers": None}
    plain, full = view.request([b"a"], [], {}), view.request([b"a"], [], sent)
    assert plain.message == full.message
    assert full.timeout_s == 1.5


def test_outputs_of_a_text_without_an_answer_are_nan_and_empty_for_every_kind_of_head(
    manifest: bundle.Manifest,
) -> None:
    view = ModelView(with_all_heads(manifest), max_items=4, max_text_bytes=100)
    numbers = ([0.2, 0.7, 0.1], [0.9], [0.1, 0.3, 0.7], [0.1, 0.1, 0.1, 0.4, 0.3], [7])
    rows = tuple(np.asarray(row, np.float32) for row in numbers)
    answered = Result(
        ModelOutput(np.zeros(2, np.float32), (), rows), TokenizedText(([2, 3],), 2), Timings(1, 1, 1, 3, 1, 3, 3)
    )
    request = view.request([b"a", b"b"], [], {"partial": True})
    tensors = {one.name: one.flat() for one in view.respond(request, [answered, InternalError("abc")])}
    assert tensors["tags_labels"] == ['["rude", "broken"]', ""]
    assert tensors["stars_label"] == ["4", ""]
    assert tensors["price_value"] == pytest.approx([7, np.nan], nan_ok=True)
    assert tensors["stars_value"] == pytest.approx([3.7, np.nan], nan_ok=True)
    assert tensors["tags_probabilities"] == pytest.approx([0.1, 0.3, 0.7, *[np.nan] * 3], nan_ok=True)


def test_head_that_abstains_has_two_more_outputs(manifest: bundle.Manifest) -> None:
    topic = dataclasses.replace(manifest.heads[0], abstention=dataclasses.replace(ABSTENTION, threshold=0.6))
    view = ModelView(dataclasses.replace(manifest, heads=(topic, manifest.heads[1])), max_items=4, max_text_bytes=100)
    request = view.request([b"a", b"b"], [], {"partial": True})
    tensors = {one.name: one for one in view.respond(request, [*RESULTS, InternalError("no")])}
    assert tensors["topic_confidence"].flat()[:2] == pytest.approx([0.7, 0.5])
    assert np.isnan(tensors["topic_confidence"].flat()[2])
    assert tensors["topic_abstained"].flat() == [False, True, False]
    assert "sentiment_confidence" not in tensors
    assert {spec.name: spec.datatype for spec in view.outputs}["topic_abstained"] == "BOOL"


def test_novelty_is_an_output_for_those_who_name_it(manifest: bundle.Manifest, view: ModelView) -> None:
    novelty = Novelty(bundle.Novelty(1, (), 1.0, (0.0, 5.0, 50.0)), np.zeros((1, 2), np.float16))
    known = ModelView(manifest, 4, 100, novelty)
    assert not known.request([b"a"], [], {}).message.options.novelty
    request = known.request([b"a"], ["novelty"], {"partial": True})
    assert request.message.options.novelty
    (found,) = known.respond(request, [RESULTS[0], InternalError("no")])
    assert (found.datatype, found.flat()[0]) == ("FP32", 0.5)
    assert np.isnan(found.flat()[1])
    with pytest.raises(InvalidRequestError, match="the model has no output 'novelty'"):
        view.request([b"a"], ["novelty"], {})
