from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import polyhead_bundle as bundle
import pyarrow as pa
import pytest
from polyhead_bulk import Annotator, EngineError, RowError, UsageError
from polyhead_bulk import annotator as annotator_module
from polyhead_server.errors import StartupError
from polyhead_server.inference.model import Model
from polyhead_server.inference.novelty import Novelty

from tests.support.fake_engine import embedding_of

from .conftest import MakeAnnotator, embeddings, expected_embeddings, words

COLUMNS = [
    "embedding",
    "topic_label",
    "topic_probabilities",
    "sentiment_label",
    "sentiment_probabilities",
    "truncated",
    "tokens",
    "error",
]


def test_a_table_keeps_its_columns_and_metadata(make_annotator: MakeAnnotator) -> None:
    texts = words(3000)
    table = pa.table({"text": texts, "id": range(3000)}).replace_schema_metadata({"origin": "here"})
    annotated = make_annotator()(table)
    assert isinstance(annotated, pa.Table)
    assert annotated.column_names == ["text", "id", *COLUMNS]
    assert annotated.schema.metadata == {b"origin": b"here"}
    assert annotated.schema.equals(make_annotator().output_schema(table.schema))
    np.testing.assert_array_equal(embeddings(annotated), expected_embeddings(texts))


def test_a_record_batch_stays_one(make_annotator: MakeAnnotator) -> None:
    batch = pa.RecordBatch.from_pydict({"body": ["w1", None]})
    annotated = make_annotator(text_column="body")(batch)
    assert isinstance(annotated, pa.RecordBatch)
    assert annotated.to_pylist()[1]["error"] == "the text is null"


@pytest.mark.parametrize("kind", ["table", "batch", "arrays"])
def test_an_empty_batch_gets_its_columns(make_annotator: MakeAnnotator, kind: str) -> None:
    table = pa.table({"text": pa.array([], pa.string())})
    batch: Any = {
        "table": table,
        "batch": pa.RecordBatch.from_pydict({"text": pa.array([], pa.string())}),
        "arrays": {"text": np.array([], dtype=object)},
    }[kind]
    annotated: Any = make_annotator()(batch)
    assert list(annotated if kind == "arrays" else annotated.schema.names) == ["text", *COLUMNS]


def test_arrays_get_embeddings_as_a_matrix(make_annotator: MakeAnnotator) -> None:
    batch = {"text": np.array(["w1 w2", None, "w3"], dtype=object), "id": np.arange(3)}
    annotated: Any = make_annotator()(batch)
    assert list(annotated) == ["text", "id", *COLUMNS]
    assert annotated["embedding"].shape == (3, 2)
    np.testing.assert_array_equal(annotated["embedding"][[0, 2]], expected_embeddings(["w1 w2", "w3"]))
    assert np.isnan(annotated["embedding"][1]).all()
    assert annotated["topic_label"][1] is None


def test_arrays_get_the_labels_of_each_text_as_an_object(make_annotator: MakeAnnotator, model: Model) -> None:
    manifest = model.source.manifest
    topic = dataclasses.replace(manifest.heads[0], prediction_sets=bundle.PredictionSets(0.9, 0.2, 100))
    changed = dataclasses.replace(manifest, heads=(topic, *manifest.heads[1:]))
    object.__setattr__(model, "source", dataclasses.replace(model.source, manifest=changed))
    texts = ["w1", None, "w50", "w199 w199"]
    annotated: Any = make_annotator(prediction_sets=True)({"text": np.array(texts, dtype=object)})
    found = annotated["topic_prediction_set"]
    # As many labels as would fill a matrix of two columns.
    assert [None if labels is None else list(labels) for labels in found] == [["a", "b", "c"], None, ["a", "b"], ["a"]]


def test_batches_of_an_iterator_are_computed_together_and_stay_apart(make_annotator: MakeAnnotator) -> None:
    texts = words(1000)

    def batches() -> Iterator[pa.RecordBatch]:
        for begin in range(0, 1000, 10):
            yield pa.RecordBatch.from_pydict({"text": texts[begin : begin + 10]})

    annotated = list(make_annotator().annotate(batches()))
    assert [batch.num_rows for batch in annotated] == [10] * 100
    np.testing.assert_array_equal(embeddings(pa.Table.from_batches(annotated)), expected_embeddings(texts))


def test_a_missing_text_column_is_refused_with_the_columns(make_annotator: MakeAnnotator) -> None:
    with pytest.raises(UsageError, match="no column 'text'; the columns are: body, id"):
        make_annotator()(pa.table({"body": ["w1"], "id": [1]}))


def test_a_column_of_the_name_of_an_answer_is_refused(make_annotator: MakeAnnotator) -> None:
    with pytest.raises(UsageError, match="'tokens'"):
        make_annotator()(pa.table({"text": ["w1"], "tokens": [1]}))


def test_a_row_without_an_answer_fails_the_batch_if_wanted(make_annotator: MakeAnnotator) -> None:
    annotator = make_annotator(on_error="fail")
    assert len(annotator(pa.table({"text": ["w1"]}))) == 1
    with pytest.raises(RowError, match="row 1001: the text is null") as caught:
        annotator(pa.table({"text": [*["w1"] * 1001, None]}))
    assert caught.value.row == 1001


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"tasks": ["sentiments"]}, "tasks: 'sentiments' is not one of"),
        ({"dimensions": 3}, "dimensions: 3 is more than the model's 2"),
        ({"dimensions": 0}, "dimensions: 0 is less than 1"),
        ({"embedding_encoding": "int4"}, "embedding_encoding"),
        ({"truncation": "left"}, "truncation"),
        ({"prompt": "queries"}, "no prompt 'queries'; its prompts are: passage, query"),
        ({"list_type": "array"}, "list_type"),
        ({"on_error": "skip"}, "on_error"),
    ],
)
def test_options_that_do_not_fit_are_refused(make_annotator: MakeAnnotator, arguments: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        make_annotator(**arguments)


def test_the_prompt_is_put_before_every_text(make_annotator: MakeAnnotator) -> None:
    annotator = make_annotator(tasks=["embedding"], prompt="query")
    found = annotator(pa.table({"text": ["w1", None, "w2 w3", ""]}))
    assert found["embedding"].to_pylist() == [embedding_of("w7 w1"), None, embedding_of("w7 w2 w3"), embedding_of("w7")]
    assert found["tokens"].to_pylist() == [4, None, 5, 3]


def test_a_pickled_copy_answers_alike(make_annotator: MakeAnnotator) -> None:
    annotator = make_annotator(tasks=["embedding"], dimensions=1)
    copy: Annotator = pickle.loads(pickle.dumps(annotator))
    table = pa.table({"text": words(5)})
    assert copy(table).equals(annotator(table))
    assert len(pickle.dumps(annotator)) < 2000  # the model is not in it


def test_a_pickled_copy_refuses_another_bundle(
    make_annotator: MakeAnnotator, monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    content = pickle.dumps(make_annotator())
    other = dataclasses.replace(model, source=dataclasses.replace(model.source, digest="f" * 64))
    monkeypatch.setattr(annotator_module, "load_model", lambda _: other)
    with pytest.raises(EngineError, match=f"is another bundle: its digest is {'f' * 64}"):
        pickle.loads(content)


def test_a_damaged_bundle_is_an_engine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise StartupError("bundle.json is missing")

    monkeypatch.setattr(annotator_module, "load_model", refuse)
    with pytest.raises(EngineError, match="is missing"):
        Annotator("nowhere")


def test_novelty_is_that_of_each_text(make_annotator: MakeAnnotator, model: Model) -> None:
    novelty = Novelty(bundle.Novelty(1, (), 1e4, (0.0, 50.0)), np.zeros((1, 2), np.float16))
    object.__setattr__(model, "novelty", novelty)
    texts = [*words(200), " ".join(["w1"] * 40)]
    for truncation in ("truncate", "window"):
        annotated = make_annotator(novelty=True, truncation=truncation)(pa.table({"text": texts}))
        expected = novelty.score(embeddings(annotated))
        np.testing.assert_allclose(annotated.column("novelty").to_numpy(), expected, rtol=1e-6)
        assert len(set(expected.tolist())) > 20
