from __future__ import annotations

from pathlib import Path

import pytest
from polyhead_training.config_file import read_config
from polyhead_training.data.dataset import read_data
from polyhead_training.embedding_config import EmbeddingSourceConfig, RetrievalConfig, source_names, task_names
from polyhead_training.errors import ConfigError

MINIMAL = 'name = "x"\n[data]\ntrain = "rows.jsonl"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").touch()
    return tmp_path / "config.toml"


def test_defaults_follow_the_kind() -> None:
    kinds = {
        "scored_pairs": (("a", "b", "score"), ("a", "b"), "cosent"),
        "pairs": (("a", "b"), ("a", "b"), "ranking"),
        "triplets": (("anchor", "positive", "negative"), ("anchor", "positive", "negative"), "ranking"),
    }
    for kind, expected in kinds.items():
        source = EmbeddingSourceConfig.model_validate({"files": "x.jsonl", "kind": kind})
        assert source.files == ("x.jsonl",)
        assert (source.all_fields, source.text_fields, source.objective) == expected


@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_ranking_may_be_symmetric(kind: str) -> None:
    table = {"files": "x.jsonl", "kind": kind, "loss": "symmetric_ranking"}
    assert EmbeddingSourceConfig.model_validate(table).objective == "symmetric_ranking"


def test_names_come_from_the_files_and_differ() -> None:
    files = ["${DATA}/stsb_train.jsonl.gz", "hub:owner/pairs@v1:all#train", "other/pairs.csv"]
    sources = tuple(EmbeddingSourceConfig(files=(one,), kind="pairs") for one in files)
    assert source_names(sources) == ["stsb_train", "pairs-2", "pairs-3"]
    named = tuple(RetrievalConfig(name=one, corpus=("c",), queries=("q",), qrels=("r",)) for one in ("x", "x", "x-1"))
    assert task_names(named) == ["x-1-1", "x-2", "x-1"]
    tasks = (RetrievalConfig(corpus=("a/scifact_corpus.jsonl.gz",), queries=("q",), qrels=("r",)),)
    assert task_names(tasks) == ["scifact"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("files = 'rows.jsonl'", r"config\.toml:4: data\.embedding\.0\.kind: is missing: Content of a row"),
        ("files = 'rows.jsonl'\nkind = 'pair'", r"data\.embedding\.0\.kind: 'pair': .*did you mean 'pairs'\?"),
        (
            "files = 'rows.jsonl'\nkind = 'pairs'\nloss = 'cosent'",
            "loss 'cosent' does not apply to kind 'pairs': use 'ran",
        ),
        ("files = 'rows.jsonl'\nkind = 'pairs'\nfields = ['a']", r"fields \['a'\]: kind 'pairs' requires 2 different"),
        (
            "files = 'rows.jsonl'\nkind = 'pairs'\nscore_range = [0, 1]",
            "score_range applies to kind 'scored_pairs' alone",
        ),
        (
            "files = 'rows.jsonl'\nkind = 'scored_pairs'\nscore_range = [5, 0]",
            "the first value must be below the second",
        ),
        (
            "files = 'rows.jsonl'\nkind = 'pairs'\nprompts = ['query']",
            r"prompts \['query'\]: name 2, one for each text",
        ),
        (
            "files = 'rows.jsonl'\nkind = 'pairs'\nprompts = ['qury', '']",
            r"data\.embedding\.0\.prompts names 'qury', but model\.prompts has only query; did you mean 'query'",
        ),
        ("files = 'row.jsonl'\nkind = 'pairs'", r"data\.embedding\.0\.files: the file .*; did you mean 'rows\.jsonl'"),
        (
            "file = 'rows.jsonl'\nkind = 'pairs'",
            r"data\.embedding\.0\.file: is not a valid field: did you mean files\?",
        ),
    ],
)
def test_mistakes_are_named(path: Path, table: str, message: str) -> None:
    path.write_text(f"{MINIMAL}[[data.embedding]]\n{table}\n[model.prompts]\nquery = 'q: '\n")
    with pytest.raises(ConfigError, match=message):
        read_config(path).sources()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "[model]\nheads = []\n", r"data has labelled rows, but model\.heads is empty"),
        (
            MINIMAL + "[training]\nmatryoshka = [64]\n",
            r"training\.matryoshka applies to data\.embedding, which is empty",
        ),
    ],
)
def test_contradicting_sections_are_named(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(path)


def test_heads_require_labelled_rows(path: Path) -> None:
    path.write_text('name = "x"\n[data]\n')
    with pytest.raises(ConfigError, match=r"data\.train: is missing: name the files .*, or set model\.heads = \[\]"):
        read_data(read_config(path))
