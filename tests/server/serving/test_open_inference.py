"""Tensors of the Open Inference Protocol: what a request means, and what its outcomes become."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import polyhead_bundle as bundle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhead_server.errors import InternalError, InvalidRequestError
from polyhead_server.inference.types import ModelOutput, Result, Timings, TokenizedText
from polyhead_server.serving.open_inference import (
    ModelView,
    element_count,
    require_datatype,
    split_bytes_tensor,
)

OUTPUTS = ["embedding", "topic_probabilities", "sentiment_probabilities", "topic_label", "sentiment_label", "truncated"]


@pytest.fixture
def view(manifest: bundle.Manifest) -> ModelView:
    return ModelView(manifest, max_items=4, max_text_bytes=100)


def result(embedding: list[float], topic: list[float], sentiment: float, cut_at: int | None = None) -> Result:
    probabilities = (np.asarray(topic, np.float32), np.asarray([sentiment], np.float32))
    output = ModelOutput(np.asarray(embedding, np.float32), (), probabilities)
    return Result(output, TokenizedText(([2, 5, 3],), 3, cut_at), Timings(1, 1, 1, 3, 1, 3, 3))


RESULTS = [result([1, 2], [0.2, 0.7, 0.1], 0.9), result([3, 4], [0.5, 0.3, 0.2], 0.1, cut_at=7)]


def raw(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def test_outputs_hold_every_answer(view: ModelView) -> None:
    request = view.request([b"a", b"b"], [], {})
    tensors = {one.name: one for one in view.respond(request, RESULTS)}
    assert list(tensors) == OUTPUTS
    assert tensors["embedding"].flat() == [1, 2, 3, 4]
    assert tensors["topic_probabilities"].shape == (2, 3)
    assert tensors["sentiment_probabilities"].flat() == pytest.approx([0.1, 0.9, 0.9, 0.1])
    assert tensors["topic_label"].raw() == raw(b"b", b"a")
    assert tensors["sentiment_label"].flat() == ["positive", "negative"]
    assert tensors["truncated"].raw() == b"\0\1"


def test_described_tensors_are_those_of_an_answer(view: ModelView) -> None:
    answered = view.respond(view.request([b"a", b"b"], [], {}), RESULTS)
    assert [(one.name, one.datatype, (-1, one.shape[1])) for one in answered] == [
        (spec.name, spec.datatype, spec.shape) for spec in view.outputs
    ]


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


def test_first_error_fails_the_call_and_names_the_text(view: ModelView) -> None:
    error = InternalError("abc")
    with pytest.raises(InternalError, match="text 1: internal error, incident abc"):
        view.respond(view.request([b"a", b"b"], [], {}), [RESULTS[0], error])
    # The error may be shared by several texts, and keeps its own message.
    assert str(error) == "internal error, incident abc"
    with pytest.raises(InternalError, match=r"^internal error"):
        view.respond(view.request([b"b"], [], {}), [error])


def test_partial_request_gets_an_error_for_a_text_and_answers_for_its_neighbours(view: ModelView) -> None:
    request = view.request([b"a", b"\xff"], [], {"partial": True})
    tensors = {one.name: one for one in view.respond(request, [RESULTS[0], InternalError("abc")])}
    assert tensors["error"].flat() == ["", "internal error, incident abc"]
    assert np.isnan(tensors["embedding"].values[1]).all()
    assert np.isnan(tensors["topic_probabilities"].values[1]).all()
    assert tensors["topic_label"].flat() == ["b", ""]
    assert tensors["embedding"].flat()[:2] == [1, 2]


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
    plain, full = view.request([b"a"], [], {}), view.request([b"a"], [], {"priority": 1, "timeout": 1_500_000})
    assert plain.message == full.message
    assert full.timeout_s == 1.5


def test_text_that_is_not_utf8_is_an_invalid_item(view: ModelView) -> None:
    first, second = view.request([b"\xff", b"b"], [], {}).message.items
    assert getattr(first, "error").reason == "TEXT_NOT_UTF8"  # noqa: B009
    assert getattr(second, "text") == "b"  # noqa: B009


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_raw_content_is_split_into_what_was_joined(texts: list[bytes]) -> None:
    assert split_bytes_tensor(raw(*texts), len(texts)) == texts


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_are_split_or_refused(data: bytes, count: int) -> None:
    try:
        texts = split_bytes_tensor(data, count)
    except InvalidRequestError:
        return
    assert raw(*texts) == data
    assert len(texts) == count


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (raw(b"ab")[:-1], 1, "gives element 0 2 bytes, and 1 are left"),
        (raw(b"ab") + b"\1", 2, "ends before element 1 of 2"),
        (raw(b"ab", b"c"), 1, "has 5 bytes after its 1 elements"),
        (b"\xff\xff\xff\xff", 1, "4294967295 bytes, and 0 are left"),
    ],
)
def test_wrong_length_prefix_is_named(data: bytes, count: int, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        split_bytes_tensor(data, count)


@pytest.mark.parametrize(("shape", "count"), [([3], 3), ([3, 1], 3), ([0], 0)])
def test_shape_gives_the_number_of_texts(shape: list[int], count: int) -> None:
    assert element_count(shape) == count


@pytest.mark.parametrize("shape", [[], [-1], [1, 3], [3, 1, 1], [1] * 1000])
def test_any_other_shape_is_refused(shape: list[int]) -> None:
    with pytest.raises(InvalidRequestError, match=r"send \[n,1\] or \[n\]") as caught:
        element_count(shape)
    assert len(str(caught.value)) < 200


def test_tensor_of_numbers_is_refused() -> None:
    require_datatype("BYTES")
    with pytest.raises(InvalidRequestError, match="datatype 'FP32'; send the texts as datatype BYTES"):
        require_datatype("FP32")
