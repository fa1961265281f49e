"""A SentenceTransformer is imported with the same embeddings; one that cannot be represented is rejected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from polyhead_export.export import export
from polyhead_export.interop.checkpoint import CheckpointError
from polyhead_export.settings import Settings
from polyhead_training.model import Pooling as ModelPooling
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, LayerNorm, Normalize

from tests.support.checkpoints import (
    TEXTS,
    assert_same_embeddings,
    edit_json,
    import_run,
    run_model,
    write_sentence_transformer,
)
from tests.support.tiny_model import ignore


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


@pytest.mark.parametrize(
    "pooling",
    ["max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("cls", "mean"), ("max", "cls", "lasttoken")],
)
def test_every_pooling_keeps_its_embeddings(tmp_path: Path, pooling: Any) -> None:
    checkpoint = write_sentence_transformer(tmp_path, pooling=pooling)
    run = import_run(checkpoint)
    assert run.model.config.embedding_size() == 32 * (1 if isinstance(pooling, str) else len(pooling))
    assert_same_embeddings(checkpoint, run)


def test_unknown_pooling_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path)
    edit_json(checkpoint / "1_Pooling" / "config.json", pooling_mode="attention")
    with pytest.raises(CheckpointError, match=r"its pooling is attention; supported are cls, max, mean"):
        import_run(checkpoint)


def test_pooling_without_the_prompt_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path)
    edit_json(checkpoint / "1_Pooling" / "config.json", include_prompt=False)
    with pytest.raises(CheckpointError, match="include_prompt"):
        import_run(checkpoint)


def _layers() -> dict[str, list[Any]]:
    torch.manual_seed(1)
    norm = LayerNorm(32)
    torch.nn.init.uniform_(norm.norm.weight, 0.5, 1.5)
    torch.nn.init.uniform_(norm.norm.bias)
    return {
        "dense": [Dense(32, 16), Normalize()],
        "dense without bias": [Dense(32, 48, bias=False, activation_function=torch.nn.Identity())],
        "two dense layers": [Dense(32, 64, activation_function=torch.nn.GELU()), Dense(64, 8), Normalize()],
        "normalizations": [Normalize(), norm, Dropout(0.2), Normalize()],
    }


@pytest.mark.parametrize("name", list(_layers()))
def test_layers_after_the_pooling_keep_their_embeddings(tmp_path: Path, name: str) -> None:
    checkpoint = write_sentence_transformer(tmp_path, "bert", *_layers()[name])
    assert_same_embeddings(checkpoint, import_run(checkpoint))


def test_graph_of_imported_layers_passes_the_gate_in_int8(tmp_path: Path) -> None:
    run = import_run(
        write_sentence_transformer(
            tmp_path, "bert", Dense(96, 8, bias=False), pooling=("max", "lasttoken", "weightedmean")
        )
    )
    # Random weights, others in each process.
    settings = Settings(limits={"int8": {"difference": 0.5, "cosine_mean": 0.1, "cosine_worst": 0.3}})
    found = export(run.path, tmp_path / "bundle", ignore, settings).manifest
    assert (found.embedding.dimensions, found.embedding.pooling) == (8, "max+lasttoken+weightedmean")
    assert set(found.variants) == {"fp32", "int8"}


def test_unsupported_module_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path)
    modules = json.loads((checkpoint / "modules.json").read_bytes())
    modules.append({"path": "2_CNN", "type": "sentence_transformers.models.CNN"})
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=r"has the module CNN; supported are Transformer, Pooling, Dense"):
        import_run(checkpoint)


def test_activation_outside_torch_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path, "bert", Dense(32, 16))
    edit_json(checkpoint / "2_Dense" / "config.json", activation_function="os.system")
    with pytest.raises(CheckpointError, match=r"has the activation os\.system; supported are GELU"):
        import_run(checkpoint)


def test_pickled_layer_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path, "bert", Dense(32, 16))
    (checkpoint / "2_Dense" / "model.safetensors").rename(checkpoint / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"Dense has no 2_Dense/model\.safetensors, and pickled .* never read"):
        import_run(checkpoint)


def test_layer_of_another_width_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path, "bert", Dense(32, 16))
    save_file({"linear.weight": torch.zeros(16, 31)}, checkpoint / "2_Dense" / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"its module 1 after the pooling does not fit .*linear\.weight \(16, 31\)"
    ):
        import_run(checkpoint)


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


def test_prompt_named_in_a_request_gives_the_same_embeddings(tmp_path: Path) -> None:
    prompts = {"query": "the parcel: ", "retrieval.passage": "soup ", "document": ""}
    lines: list[str] = []
    checkpoint = write_sentence_transformer(tmp_path, prompts=prompts, default_prompt_name="query")
    run = import_run(checkpoint, report=lines.append)
    assert run.model.config.prompts == {"query": "the parcel: ", "retrieval.passage": "soup "}
    original = SentenceTransformer(str(checkpoint), device="cpu")
    for name, prefix in run.model.config.prompts.items():
        found = run_model(run, [prefix + text for text in TEXTS]).sentence_embedding
        np.testing.assert_allclose(found, original.encode(TEXTS, prompt_name=name), atol=1e-5)
    # The default prompt of sentence-transformers is put before a text only if it is named.
    found = run_model(run, ["the parcel: " + text for text in TEXTS]).sentence_embedding
    np.testing.assert_allclose(found, original.encode(TEXTS), atol=1e-5)
    assert any("its default prompt 'query' is not put before a text by default" in line for line in lines)
    assert any("its prompts without text (document) are not imported" in line for line in lines)


def test_prompt_that_a_bundle_cannot_hold_is_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    checkpoint = write_sentence_transformer(tmp_path, prompts={"my query": "query: ", "query": "the parcel: "})
    assert import_run(checkpoint, report=lines.append).model.config.prompts == {"query": "the parcel: "}
    assert any("prompts: 'my query' is not a valid name" in line for line in lines)


def test_prompt_that_leaves_no_token_for_a_text_is_rejected(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path, prompts={"query": "parcel " * 40})
    with pytest.raises(CheckpointError, match=r"its prompt query has .* tokens, which leaves none of 24 for a text"):
        import_run(checkpoint)


def test_prompts_that_are_no_texts_are_rejected(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path)
    edit_json(checkpoint / "config_sentence_transformers.json", prompts={"query": 7})
    with pytest.raises(CheckpointError, match="its prompts are not a table of texts by name"):
        import_run(checkpoint)


def test_too_small_token_limit_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"max_tokens 4 \(from .*_length.*\) leave no room for a text; correct"):
        import_run(write_sentence_transformer(tmp_path, length=4))


@pytest.mark.parametrize("content", ["[{}]", "3", "no json", '{"0": 1}'])
def test_damaged_modules_file_is_named(tmp_path: Path, content: str) -> None:
    checkpoint = write_sentence_transformer(tmp_path)
    (checkpoint / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"modules\.json is not a valid sentence-transformers file"):
        import_run(checkpoint)
