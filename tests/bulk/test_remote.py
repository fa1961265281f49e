from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from polyhead_bulk import EngineError
from polyhead_bulk.options import AnswerOptions
from polyhead_bulk.remote import RemoteAnnotator
from polyhead_bulk.texts import Texts, from_values
from polyhead_client import (
    Abstention,
    Answer,
    Classification,
    EmbeddingInfo,
    Fingerprints,
    HeadInfo,
    ItemError,
    LabelScore,
    LabelSet,
    Limits,
    ModelInfo,
    PredictionSets,
    Result,
    RuntimeInfo,
    Score,
    Sentiment,
    Truncation,
)

FINGERPRINTS = Fingerprints("e" * 16, {"topic": "t" * 16, "sentiment": "s" * 16})
INFO = ModelInfo(
    model_id="demo-0123456789ab",
    heads=(
        HeadInfo("topic", "softmax", ("a", "b"), 1.0, None),
        HeadInfo("sentiment", "sigmoid", ("negative", "positive"), 1.0, 0.5),
    ),
    embedding=EmbeddingInfo(2, "mean", normalized=False),
    limits=Limits(max_tokens=16, max_characters=50, max_items_per_message=9, max_message_bytes=9999),
    fingerprints=FINGERPRINTS,
    runtime=RuntimeInfo("onnx", "cpu", "int8", ()),
    bundle_format_version=2,
    server_version="0",
    prompts={"query": "query: "},
)


def result(text: str) -> Result:
    size = np.float32(len(text))
    # Best first, as servers send scores.
    scores = (LabelScore("b", 0.75), LabelScore("a", 0.25))
    return Result(
        Truncation(truncated=len(text) > 50, tokens_seen=len(text), tokens_used=1),
        FINGERPRINTS,
        np.array([size, -size], np.float32),
        Classification("topic", scores),
        Sentiment("sentiment", 0.5, "positive"),
    )


class FakeClient:
    """Answers each text with its length, and some texts with an error."""

    def __init__(
        self, errors: dict[str, ItemError] | None = None, info: ModelInfo = INFO, answer: Result | None = None
    ) -> None:
        self.errors = errors or {}
        self._info = info
        self._answer = answer
        self.sent: list[str] = []
        self.options: dict[str, Any] = {}

    def info(self) -> ModelInfo:
        return self._info

    def stream(self, texts: Iterator[str], **options: Any) -> Iterator[Answer]:
        self.options = options
        # Like the client, which reads ahead.
        self.sent = list(texts)
        for number, text in enumerate(self.sent):
            error = self.errors.get(text)
            yield Answer(str(number), None if error else self._answer or result(text), error)


def answered(client: FakeClient, groups: Sequence[Texts], **options: Any) -> list[dict[str, list[Any]]]:
    remote = RemoteAnnotator(client, AnswerOptions(**options))  # type: ignore[arg-type]
    found = list(remote.stream(groups))
    assert [part for part, _ in found] == list(groups)
    return [{name: column.to_pylist() for name, column in answers.columns().items()} for _, answers in found]


def test_groups_get_their_answers_also_where_they_have_nothing_to_send() -> None:
    groups = [from_values(values) for values in ([], [None], ["a", None, "bbb"], [None, 5], ["cc"], [], [None])]
    found = answered(FakeClient(), groups)
    assert [one["tokens"] for one in found] == [[], [None], [1, None, 3], [None, None], [2], [], [None]]
    assert found[2]["embedding"] == [[1, -1], None, [3, -3]]
    assert found[2]["topic_probabilities"] == [[0.25, 0.75], None, [0.25, 0.75]]
    assert found[2]["sentiment_label"] == ["positive", None, "positive"]
    assert found[3]["error"] == ["the text is null", "the text is a number, not a string"]


def test_groups_without_texts_are_not_read_all_at_once() -> None:
    held = most = 0

    def groups() -> Iterator[Texts]:
        nonlocal held, most
        for number in range(1000):
            held += 1
            most = max(most, held)
            yield from_values([None, "a"] if number % 100 == 50 else [None], payload=number)

    remote = RemoteAnnotator(FakeClient(), AnswerOptions())  # type: ignore[arg-type]
    found = []
    for part, answers in remote.stream(groups()):
        held -= 1
        found.append((part.payload, answers.columns()["tokens"].to_pylist()))
    assert found == [(number, [None, 1] if number % 100 == 50 else [None]) for number in range(1000)]
    assert most < 100


def test_the_server_is_asked_for_what_is_wanted_of_the_same_model() -> None:
    client = FakeClient()
    answered(client, [from_values(["a"])], tasks=("sentiment",), truncation="window", prompt="query")
    wanted = {"tasks": ["sentiment"], "truncation": "window", "prompt": "query"}
    assert client.options == {**wanted, "include_novelty": False, "expected_fingerprints": INFO}


def test_answers_of_every_other_kind_of_head() -> None:
    info = dataclasses.replace(
        INFO,
        heads=(
            HeadInfo("tags", "multilabel", ("late", "rude"), 1.0, None, (0.5, 0.25)),
            HeadInfo("stars", "ordinal", ("1", "2"), 1.0, None),
            HeadInfo("price", "regression", (), 1.0, None),
        ),
    )
    tags = LabelSet("tags", (LabelScore("rude", 0.75), LabelScore("late", 0.25)), ("rude",))
    stars = Score("stars", 1.75, "2", (LabelScore("1", 0.25), LabelScore("2", 0.75)))
    answer = Result(
        Truncation(truncated=False, tokens_seen=3, tokens_used=3),
        FINGERPRINTS,
        np.zeros(2, np.float32),
        label_sets=(tags,),
        scores=(stars, Score("price", -7.5)),
    )
    (found,) = answered(FakeClient(info=info, answer=answer), [from_values(["a", None])])
    assert found["tags_labels"] == [["rude"], None]
    assert found["tags_probabilities"] == [[0.25, 0.75], None]
    assert (found["stars_label"], found["stars_value"]) == (["2", None], [1.75, None])
    assert found["price_value"] == [-7.5, None]


def test_head_of_an_unknown_kind_is_refused() -> None:
    info = dataclasses.replace(INFO, heads=(HeadInfo("topic", "unknown", ("a", "b"), 1.0, None),))
    with pytest.raises(EngineError, match="the head topic is of a kind that this release does not know"):
        answered(FakeClient(info=info), [])


def test_no_more_of_a_text_is_sent_than_the_server_reads() -> None:
    client = FakeClient()
    (found,) = answered(client, [from_values(["x" * 1000])])
    assert client.sent == ["x" * 51]
    assert found["truncated"] == [True]


def test_an_error_of_a_text_is_that_of_its_row() -> None:
    client = FakeClient({"long": ItemError("OUT_OF_RANGE", "TEXT_TOO_LONG", "the text has 99 tokens")})
    (found,) = answered(client, [from_values(["a", "long", "b"])])
    assert found["error"] == [None, "the text has 99 tokens", None]
    assert found["tokens"] == [1, None, 1]


@pytest.mark.parametrize("code", ["FAILED_PRECONDITION", "INTERNAL", "UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_an_error_that_is_not_of_the_text_ends_the_job(code: str) -> None:
    client = FakeClient({"b": ItemError(code, "", "another model")})
    with pytest.raises(EngineError, match=f"{code}: another model"):
        answered(client, [from_values(["a", "b"])])


def test_the_facts_are_those_of_the_server() -> None:
    facts = RemoteAnnotator(FakeClient(), AnswerOptions()).layout.facts  # type: ignore[arg-type]
    assert (facts.digest, facts.runtime, facts.max_tokens) == ("0123456789ab", "onnx/cpu/int8", 16)
    assert [head.threshold for head in facts.heads] == [None, 0.5]


def test_abstention_and_novelty_are_those_of_the_server() -> None:
    topic = HeadInfo("topic", "softmax", ("a", "b"), 1.0, None, abstention=Abstention(0.8, 0.95, 0.9, 0.5))
    info = dataclasses.replace(INFO, heads=(topic, INFO.heads[1]), has_novelty=True)
    client = FakeClient(info=info, answer=dataclasses.replace(result("a"), novelty=0.25))
    (found,) = answered(client, [from_values(["a", None])], novelty=True)
    assert client.options["include_novelty"]
    assert (found["topic_confidence"], found["topic_abstained"]) == ([0.75, None], [True, None])
    assert found["novelty"] == [0.25, None]


def test_prediction_sets_are_computed_as_the_server_does() -> None:
    topic = HeadInfo("topic", "softmax", ("a", "b"), 1.0, None, prediction_sets=PredictionSets(0.9, 0.2))
    info = dataclasses.replace(INFO, heads=(topic, INFO.heads[1]))
    client = FakeClient(info=info, answer=result("a"))
    (found,) = answered(client, [from_values(["a", None])], prediction_sets=True)
    assert found["topic_prediction_set"] == [["b", "a"], None]
