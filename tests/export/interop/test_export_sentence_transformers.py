"""A run is written as a folder that sentence-transformers loads, with the same embeddings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polyhead_export.interop.export_sentence_transformers as module
import pytest
import tokenizers
import torch
from numpy.typing import NDArray
from polyhead_export.interop.export_sentence_transformers import InterchangeError, write_sentence_transformer
from polyhead_training.runs.run_directory import Run, load_run
from polyhead_training.tokenization import encode, load_tokenizer, pad
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from tests.support.tiny_model import make_model, write_run_directory

TEXTS = [
    "",
    "where is my refund",
    "Lovely FABRIC, and a perfect fit -- but the zip jammed!",
    "Crème brûlée, Łódź 🙂 配送很快",
    "  spaces \t and \n lines  ",
    "the courier rang twice and nobody was at home " * 20,
]
FILES = {
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    "1_Pooling/config.json",
    "2_Normalize/config.json",
}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    def make(family: str = "bert", **settings: Any) -> Run:
        return load_run(write_run_directory(tmp_path / "run", make_model(family, **settings)))

    return make


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with the default settings; read-only."""
    return load_run(write_run_directory(tmp_path_factory.mktemp("runs") / "run", make_model()))


@pytest.fixture(scope="module")
def written(run: Run) -> Path:
    """The folder that is written from ``run``; read-only."""
    write_sentence_transformer(run, run.path.with_name("st"))
    return run.path.with_name("st")


def _embed(run: Run, texts: list[str]) -> NDArray[np.float32]:
    """Returns the run's embeddings, (N, H)."""
    config = run.model.config
    ids = list(encode(load_tokenizer(run.tokenizer_path), texts, config.max_tokens))
    with torch.inference_mode():
        return np.asarray(run.model(*map(torch.from_numpy, pad(ids, config.pad_token_id))).sentence_embedding)


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", {}),
        ("bert", {"embedding_pooling": "cls", "normalize": False}),
        ("bert", {"embedding_pooling": "shared", "pooling": "mean"}),
        ("bert", {"embedding_pooling": "shared", "pooling": "cls"}),
        ("bert", {"max_tokens": 9}),
        ("roberta", {}),
        ("roberta", {"embedding_pooling": "cls"}),
        ("distilbert", {}),
        ("distilbert", {"normalize": False}),
    ],
)
def test_sentence_transformers_gives_the_same_embeddings(
    make_run: Callable[..., Run], tmp_path: Path, family: str, settings: dict[str, Any]
) -> None:
    run = make_run(family, **settings)
    write_sentence_transformer(run, tmp_path / "st")
    found = SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(found, _embed(run, TEXTS), atol=1e-5)


def test_prompts_are_those_of_the_model_and_none_is_the_default(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run(prompts={"passage": "the box: ", "query": "where is "})
    write_sentence_transformer(run, tmp_path / "st")
    found = SentenceTransformer(str(tmp_path / "st"), device="cpu")
    written_out = _embed(run, [f"where is {text}" for text in TEXTS])
    np.testing.assert_allclose(found.encode(TEXTS, prompt_name="query"), written_out, atol=1e-5)
    np.testing.assert_allclose(found.encode(TEXTS), _embed(run, TEXTS), atol=1e-5)


def test_folder_holds_the_files_of_the_format(written: Path) -> None:
    assert {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()} == FILES
    assert _read(written / "sentence_bert_config.json")["max_seq_length"] == 48
    assert not list(written.parent.glob(".st.tmp-*"))


def test_pooling_uses_keys_that_every_reader_supports(make_run: Callable[..., Run], tmp_path: Path) -> None:
    write_sentence_transformer(make_run(embedding_pooling="cls"), tmp_path / "st")
    config = _read(tmp_path / "st" / "1_Pooling" / "config.json")
    assert config["word_embedding_dimension"] == 32
    assert [key for key, value in config.items() if value is True] == ["pooling_mode_cls_token", "include_prompt"]


def test_unnormalized_embedding_has_no_normalize_module(make_run: Callable[..., Run], tmp_path: Path) -> None:
    write_sentence_transformer(make_run(normalize=False), tmp_path / "st")
    types = [entry["type"] for entry in _read(tmp_path / "st" / "modules.json")]
    assert types == ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    assert not (tmp_path / "st" / "2_Normalize").exists()


def test_weights_are_only_those_of_the_backbone(run: Run, written: Path) -> None:
    with safe_open(written / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(run.model.backbone.state_dict())
    _, report = AutoModel.from_pretrained(written, output_loading_info=True)
    # Only the unused pooler is missing; transformers initializes it randomly.
    assert {name.partition(".")[0] for name in report["missing_keys"]} == {"pooler"}
    assert not report["unexpected_keys"]


def test_tokenizer_has_padding_and_truncation_disabled_and_no_further_token(run: Run, written: Path) -> None:
    found = tokenizers.Tokenizer.from_file(str(written / "tokenizer.json"))
    assert (found.padding, found.truncation) == (None, None)
    tokenizer = AutoTokenizer.from_pretrained(written)
    assert len(tokenizer) == load_tokenizer(run.tokenizer_path).get_vocab_size()
    assert tokenizer.model_max_length == 48
    assert (tokenizer.cls_token, tokenizer.sep_token, tokenizer.pad_token) == ("[CLS]", "[SEP]", "[PAD]")


def test_same_run_gives_the_same_bytes(run: Run, written: Path, tmp_path: Path) -> None:
    write_sentence_transformer(load_run(run.path), tmp_path / "again")
    for file in FILES:
        assert (tmp_path / "again" / file).read_bytes() == (written / file).read_bytes(), file


def test_no_file_contains_a_trace_of_its_origin(run: Run, written: Path) -> None:
    assert b"/remembered/by/transformers" in (run.path / "model" / "config.json").read_bytes()
    for file in FILES:
        content = (written / file).read_bytes()
        assert b"/remembered/by" not in content, file
        assert str(written.parent).encode() not in content, file


def test_readme_names_the_difference(written: Path) -> None:
    text = (written / "README.md").read_text("utf-8")
    assert text.startswith("---\nlibrary_name: sentence-transformers\n")
    assert "`[CLS]`, `[SEP]`" in text


def test_shared_cls_mean_pooling_is_rejected(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run(embedding_pooling="shared")
    with pytest.raises(InterchangeError, match=r'model\.embedding_pooling = "mean" or "cls"'):
        write_sentence_transformer(run, tmp_path / "st")
    assert not (tmp_path / "st").exists()


def test_padding_token_missing_from_the_tokenizer_is_rejected(make_run: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(InterchangeError, match="lacks the model's padding token 5000"):
        write_sentence_transformer(make_run(pad_token_id=5000), tmp_path / "st")


def test_tokenizer_without_special_tokens_is_rejected(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run()
    content = _read(run.tokenizer_path)
    run.tokenizer_path.write_text(json.dumps({**content, "post_processor": None}), "utf-8")
    with pytest.raises(InterchangeError, match="adds 0 special tokens to a text"):
        write_sentence_transformer(run, tmp_path / "st")


def test_other_directory_at_the_destination_is_left_unchanged(run: Run, tmp_path: Path) -> None:
    kept = tmp_path / "st" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("draft")
    with pytest.raises(InterchangeError, match="left unchanged"):
        write_sentence_transformer(run, tmp_path / "st")
    assert kept.read_text() == "draft"
    with pytest.raises(InterchangeError, match="left unchanged"):
        write_sentence_transformer(run, kept)


def test_folder_of_an_earlier_export_is_replaced(run: Run, written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path / "st")
    (tmp_path / "st" / "modules.json").write_text("[]")
    write_sentence_transformer(run, tmp_path / "st")
    assert len(json.loads((tmp_path / "st" / "modules.json").read_bytes())) == 3
    (tmp_path / "st" / "notes.txt").write_text("mine")
    with pytest.raises(InterchangeError, match="left unchanged"):
        write_sentence_transformer(run, tmp_path / "st")


def test_empty_destination_is_filled(run: Run, tmp_path: Path) -> None:
    (tmp_path / "st").mkdir()
    write_sentence_transformer(run, tmp_path / "st")
    assert (tmp_path / "st" / "modules.json").is_file()


def test_failure_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(OSError, match="no space left"):
        write_sentence_transformer(run, tmp_path / "st")
    assert list(tmp_path.iterdir()) == []
