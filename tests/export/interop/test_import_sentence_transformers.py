"""A SentenceTransformer is imported with the same embeddings; one that cannot be represented is rejected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from polyhead_export.interop.checkpoint import CheckpointError
from polyhead_training.model import Pooling as ModelPooling
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from tests.support.checkpoints import (
    TEXTS,
    assert_same_embeddings,
    edit_json,
    import_run,
    run_model,
    write_sentence_transformer,
)


@pytest.mark.parametrize(
    ("family", "pooling", "normalize"),
    [("bert", "mean", True), ("bert", "cls", False), ("roberta", "mean", True), ("distilbert", "cls", True)],
)
def test_sentence_transformer_keeps_its_embeddings(tmp_path: Path, family: str, pooling: str, normalize: bool) -> None:
    checkpoint = write_sentence_transformer(tmp_path, family, *([Normalize()] if normalize else []), pooling=pooling)
    assert "pooling_mode_cls_token" not in (checkpoint / "1_Pooling" / "config.json").read_text()
    run = import_run(checkpoint)
    assert run.heads == []
    assert run.model.config.max_tokens == 24
    assert_same_embeddings(checkpoint, run)


@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_older_sentence_transformer_keeps_its_embeddings(tmp_path: Path, mode: str) -> None:
    checkpoint = write_sentence_transformer(tmp_path, "bert", Normalize())
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    modes = {f"pooling_mode_{key}_token{'s' * (key != 'cls')}": key == mode for key in ("cls", "mean", "max")}
    (checkpoint / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    (checkpoint / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, "do_lower_case": False}))
    shutil.rmtree(checkpoint / "2_Normalize")
    run = import_run(checkpoint)
    assert run.model.config.embedding_pooling == mode
    assert_same_embeddings(checkpoint, run)


def test_backbone_in_a_subfolder_is_found(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path)
    modules = json.loads((checkpoint / "modules.json").read_bytes())
    modules[0]["path"] = "0_Transformer"
    (checkpoint / "0_Transformer").mkdir()
    for path in list(checkpoint.iterdir()):
        if path.is_file() and path.name != "modules.json":
            path.rename(checkpoint / "0_Transformer" / path.name)
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    run = import_run(checkpoint)
    assert run.model.config.max_tokens == 24
    assert_same_embeddings(checkpoint, run)


def test_lowercasing_outside_the_tokenizer_is_kept(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path, "roberta")
    before = run_model(import_run(checkpoint), TEXTS).sentence_embedding
    edit_json(checkpoint / "sentence_bert_config.json", max_seq_length=24, do_lower_case=True)
    run = import_run(checkpoint)
    assert_same_embeddings(checkpoint, run)
    assert (run_model(run, TEXTS).sentence_embedding - before).abs().max() > 1e-3


def test_token_limit_is_capped_at_the_number_of_positions(tmp_path: Path) -> None:
    lines: list[str] = []
    run = import_run(write_sentence_transformer(tmp_path, "roberta", length=512), lines.append)
    assert run.model.config.max_tokens == 40
    assert any("exceeds its 40 positions, which become the token limit" in line for line in lines)


def test_embeddings_that_differ_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_sentence_transformer(tmp_path)
    forward = ModelPooling.forward
    monkeypatch.setattr(ModelPooling, "forward", lambda *args: forward(*args) + torch.arange(32) * 1e-2)
    with pytest.raises(CheckpointError, match="its embeddings and those of the run differ by"):
        import_run(checkpoint)


@pytest.mark.parametrize("pooling", ["max", ("cls", "mean")])
def test_unsupported_pooling_is_rejected(tmp_path: Path, pooling: Any) -> None:
    with pytest.raises(CheckpointError, match=r"its pooling is (max|cls and mean)"):
        import_run(write_sentence_transformer(tmp_path, pooling=pooling))


def test_pooling_without_the_prompt_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path)
    edit_json(checkpoint / "1_Pooling" / "config.json", include_prompt=False)
    with pytest.raises(CheckpointError, match="include_prompt"):
        import_run(checkpoint)


def test_unsupported_module_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has the module Dense"):
        import_run(write_sentence_transformer(tmp_path, "bert", Dense(32, 16)))


@pytest.mark.parametrize(
    "kinds", [["Transformer"], ["Pooling", "Transformer"], ["Transformer", "Normalize", "Pooling"]]
)
def test_modules_in_another_order_are_rejected(tmp_path: Path, kinds: list[str]) -> None:
    checkpoint = write_sentence_transformer(tmp_path)
    modules = [{"path": "", "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=f"its modules are {', '.join(kinds)}"):
        import_run(checkpoint)


def test_modules_outside_the_checkpoint_are_rejected(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path)
    modules = json.loads((checkpoint / "modules.json").read_bytes())
    modules[1]["path"] = "../elsewhere"
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="points outside"):
        import_run(checkpoint)


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("config_sentence_transformers.json", {"truncate_dim": 8}, "truncates its embeddings to 8"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "is a SparseEncoder"),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {"max_length": 4}}}, "processing_kwargs"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "fill-mask"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "module_input_name"),
    ],
)
def test_settings_that_change_the_embedding_are_rejected(
    tmp_path: Path, file: str, changes: dict[str, Any], reason: str
) -> None:
    checkpoint = write_sentence_transformer(tmp_path, "bert", Normalize())
    edit_json(checkpoint / file, **changes)
    with pytest.raises(CheckpointError, match=reason):
        import_run(checkpoint)


def test_default_prompt_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path, prompts={"query": "query: "}, default_prompt_name="query")
    with pytest.raises(CheckpointError, match="prepends the prompt 'query: '"):
        import_run(checkpoint)


def test_optional_prompts_are_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    checkpoint = write_sentence_transformer(tmp_path, prompts={"query": "query: ", "document": ""})
    assert_same_embeddings(checkpoint, import_run(checkpoint, report=lines.append))
    assert any("its prompts (query) are not imported" in line for line in lines)


def test_too_small_token_limit_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"max_tokens 4 \(from .*_length.*\) leave no room for a text; correct"):
        import_run(write_sentence_transformer(tmp_path, length=4))


@pytest.mark.parametrize("content", ["[{}]", "3", "no json", '{"0": 1}'])
def test_damaged_modules_file_is_named(tmp_path: Path, content: str) -> None:
    checkpoint = write_sentence_transformer(tmp_path)
    (checkpoint / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"modules\.json is not a valid sentence-transformers file"):
        import_run(checkpoint)
