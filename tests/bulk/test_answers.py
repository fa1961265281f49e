from __future__ import annotations

import dataclasses

import numpy as np
import polyhead_bundle as bundle
import pyarrow as pa
import pytest
from polyhead_bulk import UsageError
from polyhead_bulk.answers import NOT_FINITE, Answers
from polyhead_bulk.layout import Layout
from polyhead_bulk.local import facts
from polyhead_bulk.options import AnswerOptions
from polyhead_server.inference.model import Model

from tests.support.all_heads import with_all_heads
from tests.support.small_bundle import ABSTENTION

from .conftest import MakeLayout


def filled(make_layout: MakeLayout, **options: object) -> Answers:
    answers = Answers.allocate(make_layout(**options), 4)
    answers.errors[2] = "no text"
    answers.tokens[:] = [3, 4, 5, 6]
    answers.truncated[3] = True
    rows = np.array([0, 1, 3])
    embedding = np.array([[1, -2], [3, 4], [-5, 6]], np.float32)
    scores = [np.array([[0.2, 0.5, 0.3], [0.5, 0.5, 0], [0, 0.1, 0.9]], np.float32), np.array([[0.25], [0.5], [0.75]])]
    heads = [scores[index].astype(np.float32) for index, _ in answers.layout.heads]
    answers.put(rows, embedding, heads, np.array([True, True, True]))
    return answers


def test_columns_have_the_fields_of_the_layout(make_layout: MakeLayout) -> None:
    for list_type in ("fixed", "list"):
        answers = filled(make_layout, list_type=list_type)
        columns = answers.columns()
        assert [(field.name, field.type) for field in answers.layout.fields] == [
            (name, column.type) for name, column in columns.items()
        ]


def test_labels_follow_argmax_and_threshold(make_layout: MakeLayout) -> None:
    columns = filled(make_layout).columns()
    # Of two equal probabilities the server lists the first label first; a probability at the threshold is positive.
    assert columns["topic_label"].to_pylist() == ["b", "a", None, "c"]
    assert columns["sentiment_label"].to_pylist() == ["negative", "positive", None, "positive"]
    assert columns["sentiment_probabilities"].to_pylist() == [[0.75, 0.25], [0.5, 0.5], None, [0.25, 0.75]]


@pytest.mark.parametrize("list_type", ["fixed", "list"])
def test_a_text_without_an_answer_has_nulls_and_a_reason(make_layout: MakeLayout, list_type: str) -> None:
    columns = filled(make_layout, list_type=list_type).columns()
    table = pa.table(columns)
    table.validate(full=True)
    assert {name for name, value in table.slice(2, 1).to_pylist()[0].items() if value is not None} == {"error"}
    assert table["error"].to_pylist() == [None, None, "no text", None]
    assert table["embedding"].to_pylist() == [[1, -2], [3, 4], None, [-5, 6]]
    assert table["truncated"].to_pylist() == [False, False, None, True]


def test_tasks_select_columns(make_layout: MakeLayout) -> None:
    columns = filled(make_layout, tasks=("sentiment",)).columns()
    assert list(columns) == ["sentiment_label", "sentiment_probabilities", "truncated", "tokens", "error"]


def test_int8_has_a_scale_that_restores_the_numbers(make_layout: MakeLayout) -> None:
    columns = filled(make_layout, embedding_encoding="int8").columns()
    assert columns["embedding"].type == pa.list_(pa.int8(), 2)
    scales, values = columns["embedding_scale"].to_pylist(), columns["embedding"].to_pylist()
    assert scales[2] is None
    assert [value * scales[3] for value in values[3]] == pytest.approx([-5, 6], abs=6 / 127)


def test_float16_overflow_is_an_error_of_its_row_alone(make_layout: MakeLayout) -> None:
    answers = Answers.allocate(make_layout(embedding_encoding="float16", tasks=("embedding",)), 2)
    answers.put(np.array([0, 1]), np.array([[1e6, 0], [1, 2]], np.float32), [], np.array([True, True]))
    table = pa.table(answers.columns())
    assert "float16" in table["error"][0].as_py()
    assert table["embedding"].to_pylist() == [None, [1, 2]]


def test_an_output_that_is_not_finite_is_an_error_of_its_row_alone(make_layout: MakeLayout) -> None:
    answers = Answers.allocate(make_layout(tasks=("embedding",)), 2)
    answers.put(np.array([1, 0]), np.array([[np.nan, 0], [1, 2]], np.float32), [], np.array([False, True]))
    table = pa.table(answers.columns())
    assert table["error"].to_pylist() == [None, NOT_FINITE]
    assert table["embedding"].to_pylist() == [[1, 2], None]


def test_a_slice_shares_arrays_and_moves_errors(make_layout: MakeLayout) -> None:
    table = pa.table(filled(make_layout).slice(1, 4).columns())
    assert table["error"].to_pylist() == [None, "no text", None]
    assert table["tokens"].to_pylist() == [4, None, 6]


class TestEveryKindOfHead:
    @pytest.fixture
    def model(self, model: Model) -> Model:
        manifest = with_all_heads(model.source.manifest)
        return dataclasses.replace(model, source=dataclasses.replace(model.source, manifest=manifest))

    @pytest.fixture
    def answers(self, make_layout: MakeLayout) -> Answers:
        answers = Answers.allocate(make_layout(tasks=("labels", "score")), 3)
        answers.errors[1] = "no text"
        tags = np.array([[0.6, 0.25, 0.7], [0.1, 0.1, 0.1]], np.float32)
        stars = np.array([[0.125, 0.125, 0.125, 0.375, 0.25], [1, 0, 0, 0, 0]], np.float32)
        price = np.array([[19.5], [-1]], np.float32)
        answers.put(np.array([0, 2]), np.zeros((2, 2), np.float32), [tags, stars, price], np.array([True, True]))
        return answers

    def test_columns_hold_labels_values_and_probabilities(self, answers: Answers) -> None:
        table = pa.table(answers.columns())
        table.validate(full=True)
        assert table.schema.names == [
            *("tags_labels", "tags_probabilities"),
            *("stars_label", "stars_value", "stars_probabilities", "price_value"),
            *("truncated", "tokens", "error"),
        ]
        # The thresholds are 0.5, 0.2 and 0.6; the most probable label is the first.
        assert table["tags_labels"].to_pylist() == [["rude", "late", "broken"], None, []]
        assert table["stars_label"].to_pylist() == ["4", None, "1"]
        assert table["stars_value"].to_pylist() == [3.5, None, 1]
        assert table["price_value"].to_pylist() == [19.5, None, -1]
        assert table["stars_probabilities"].to_pylist()[2] == [1, 0, 0, 0, 0]

    def test_columns_have_the_fields_of_the_layout(self, answers: Answers) -> None:
        fields = [(field.name, field.type) for field in answers.layout.fields]
        assert fields == [(name, column.type) for name, column in answers.columns().items()]

    def test_every_task_is_there_by_default(self, make_layout: MakeLayout) -> None:
        heads = [head.name for _, head in make_layout().heads]
        assert heads == ["topic", "sentiment", "tags", "stars", "price"]


def test_task_without_a_head_is_a_usage_error(make_layout: MakeLayout) -> None:
    with pytest.raises(
        UsageError, match=r"no head for labels; its heads are: topic \(softmax\), sentiment \(sigmoid\)"
    ):
        make_layout(tasks=("labels",))


def test_head_that_abstains_has_two_more_columns(model: Model) -> None:
    heads = model.source.manifest.heads
    topic = dataclasses.replace(heads[0], abstention=dataclasses.replace(ABSTENTION, threshold=0.6))
    layout = Layout(dataclasses.replace(facts(model), heads=(topic, *heads[1:])), AnswerOptions())
    columns = filled(lambda **_: layout).columns()
    assert [(field.name, field.type) for field in layout.fields] == [
        (name, column.type) for name, column in columns.items()
    ]
    assert columns["topic_confidence"].to_pylist() == pytest.approx([0.5, 0.5, None, 0.9])
    assert columns["topic_abstained"].to_pylist() == [True, True, None, False]
    assert "sentiment_abstained" not in columns


def test_novelty_is_a_column_for_those_who_want_it(model: Model) -> None:
    with pytest.raises(UsageError, match="novelty: the model has none"):
        Layout(facts(model), AnswerOptions(novelty=True))
    layout = Layout(
        dataclasses.replace(facts(model), has_novelty=True), AnswerOptions(novelty=True, tasks=("sentiment",))
    )
    answers = Answers.allocate(layout, 3)
    answers.errors[1] = "no text"
    finite, scores = np.array([True, False]), [np.array([[0.25], [0.5]], np.float32)]
    answers.put(np.array([0, 2]), np.zeros((2, 2), np.float32), scores, finite, np.array([0.75, np.nan], np.float32))
    assert answers.slice(0, 3).columns()["novelty"].to_pylist() == [0.75, None, None]


def test_prediction_set_is_a_column_for_those_who_want_it(model: Model) -> None:
    heads = model.source.manifest.heads
    topic = dataclasses.replace(heads[0], prediction_sets=bundle.PredictionSets(0.9, 0.3, 100))
    changed = dataclasses.replace(facts(model), heads=(topic, *heads[1:]))
    layout = Layout(changed, AnswerOptions(prediction_sets=True))
    columns = filled(lambda **_: layout).columns()
    assert [(field.name, field.type) for field in layout.fields] == [
        (name, column.type) for name, column in columns.items()
    ]
    assert columns["topic_prediction_set"].to_pylist() == [["b", "c"], ["a", "b"], None, ["c"]]
    assert "topic_prediction_set" not in Layout(changed, AnswerOptions()).names
