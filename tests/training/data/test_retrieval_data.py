from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from polyhead_training.config import Config
from polyhead_training.data.dataset import read_data
from polyhead_training.data.retrieval_data import RetrievalTask
from polyhead_training.errors import ConfigError, DataError

WriteJsonl = Callable[[str, Sequence[object]], Path]
Read = Callable[..., RetrievalTask]
CORPUS = [{"id": "d1", "title": "Head", "text": "body"}, {"id": 2, "text": "plain"}]
QUERIES = [
    {"id": "q1", "text": "first", "split": "dev"},
    {"id": "q2", "text": "second", "split": "train"},
    {"id": "q3", "text": "third", "split": "dev"},
]
QRELS = [
    {"query": "q1", "doc": "2", "score": 2},
    {"query": "q1", "doc": "d1", "score": 0},
    {"query": "q2", "doc": "d1", "score": 1},
]


@pytest.fixture
def read(configure: Callable[..., Config], write_jsonl: WriteJsonl) -> Read:
    """Writes the files of a task and reads it."""

    def read(
        settings: str = "",
        corpus: Sequence[object] = CORPUS,
        queries: Sequence[object] = QUERIES,
        qrels: Sequence[object] = QRELS,
    ) -> RetrievalTask:
        for name, rows in (("my_corpus", corpus), ("queries", queries), ("qrels", qrels)):
            write_jsonl(f"{name}.jsonl", rows)
        files = "corpus='my_corpus.jsonl', queries='queries.jsonl', qrels='qrels.jsonl'"
        (task,) = read_data(configure(f"data.retrieval=[{{{files}{settings}}}]")).retrieval
        return task

    return read


def test_documents_have_their_title_and_ids_match_whatever_their_type(read: Read) -> None:
    task = read()
    assert task.name == "my"
    assert task.documents == ("Head body", "plain")
    assert task.queries == ("first", "second")
    assert task.relevance == ({1: 2.0}, {0: 1.0})
    assert task.unjudged == 1


@pytest.mark.parametrize("text", [None, "", " "])
def test_title_alone_is_a_document(read: Read, text: str | None) -> None:
    assert read(corpus=[*CORPUS, {"id": "d3", "title": "Alone", "text": text}]).documents[2] == "Alone"


def test_split_selects_queries_and_others_may_be_judged(read: Read) -> None:
    task = read(", split='dev'")
    assert task.queries == ("first",)
    assert task.unjudged == 1


def test_split_without_queries_is_a_config_error(read: Read) -> None:
    with pytest.raises(ConfigError, match=r"data\.retrieval\.0\.queries: no query with split 'tset' has a relevant"):
        read(", split='tset'")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"corpus": [*CORPUS, {"id": "d1", "text": "again"}]}, r"corpus\.jsonl:3: the id 'd1' occurs twice, first in"),
        ({"corpus": [*CORPUS, {"id": "d3", "text": " "}]}, r"corpus\.jsonl:3: field 'text': ' ' is not a valid text"),
        (
            {"corpus": [{"id": "d3", "title": "Head", "text": ["body"]}]},
            r"corpus\.jsonl:1: field 'text': \['body'\] of type list is not a valid text",
        ),
        ({"corpus": [{"name": "d1", "text": "x"}]}, r"corpus\.jsonl:1: has no field 'id', only 'name', 'text': rename"),
        (
            {"qrels": [*QRELS, {"query": "q1", "doc": "d9", "score": 1}]},
            r"qrels\.jsonl:4: field 'doc': corpus has no id",
        ),
        (
            {"qrels": [{"query": "q9", "doc": "d1", "score": 1}]},
            r"qrels\.jsonl:1: field 'query': queries has no id 'q9'",
        ),
        (
            {"qrels": [{"query": "q1", "doc": "d1", "score": "x"}]},
            r"qrels\.jsonl:1: field 'score': 'x' is not a finite",
        ),
    ],
)
def test_invalid_rows_are_errors_with_file_and_line(
    read: Read, files: dict[str, Sequence[object]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(**files)
