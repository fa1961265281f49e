"""A checkpoint is imported as a run directory that exports to a bundle; damaged checkpoints are rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from polyhead_export.errors import SettingsError
from polyhead_export.eval_data import read_eval_data
from polyhead_export.export import export, read_heads
from polyhead_export.interop.checkpoint import CheckpointError
from polyhead_export.interop.import_checkpoint import import_checkpoint
from polyhead_export.settings import Settings
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_training.errors import BackboneError, RunError
from polyhead_training.runs.run_directory import load_run
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.checkpoints import edit_json, import_run, run_model, write_classifier, write_sentence_transformer
from tests.support.tiny_model import ignore


def test_imported_classifier_is_exported_to_a_bundle(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path, "roberta")
    import_run(checkpoint)
    manifest = export(tmp_path / "run", tmp_path / "bundle", ignore, Settings(variants=("fp32",))).manifest
    assert [(head.name, head.output, head.labels) for head in manifest.heads] == [
        ("topic", "logits", ("zebra", "apple", "mango"))
    ]
    assert all(check.passed for check in manifest.variants["fp32"].gate)


def test_imported_classifier_reads_evaluation_data(tmp_path: Path) -> None:
    run = import_run(write_classifier(tmp_path, "bert"))
    rows = [{"text": f"the courier rang {number}", "label": "apple"} for number in range(3)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_eval_data(run, read_heads(run), [tmp_path / "test.jsonl"])
    assert found.labelled_rows(0) == 3


def test_imported_sentence_transformer_is_exported_to_a_bundle_without_heads(tmp_path: Path) -> None:
    import_run(write_sentence_transformer(tmp_path, "bert", Normalize()))
    manifest = export(tmp_path / "run", tmp_path / "bundle", ignore, Settings(variants=("fp32",))).manifest
    assert manifest.heads == ()
    assert [output.name for output in manifest.outputs] == ["sentence_embedding"]


def test_name_defaults_to_the_checkpoints_name(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    assert import_run(checkpoint).name == "checkpoint"
    assert load_run(import_checkpoint(str(checkpoint), tmp_path / "run", "mine", ignore)).name == "mine"
    with pytest.raises(CheckpointError, match=r"name 'not mine'.*another name"):
        import_checkpoint(str(checkpoint), tmp_path / "other", "not mine", ignore)
    assert not (tmp_path / "other").exists()


def test_backbone_without_head_is_rejected(tmp_path: Path) -> None:
    write_sentence_transformer(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither a SentenceTransformer .* \(BertModel\); train heads on it"):
        import_run(tmp_path / "backbone")


def test_damaged_weights_are_reported(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    (checkpoint / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00damaged")
    with pytest.raises(BackboneError, match=r"model\.safetensors is truncated or damaged"):
        import_run(checkpoint)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="pickled"):
        import_run(checkpoint)


def test_destination_of_another_kind_is_left_unchanged(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    (checkpoint.parent / "run").mkdir()
    (checkpoint.parent / "run" / "thesis.txt").write_text("draft")
    with pytest.raises(RunError, match="run"):
        import_run(checkpoint)
    assert (checkpoint.parent / "run" / "thesis.txt").read_text() == "draft"


def add_tokens(checkpoint: Path, *tokens: str) -> None:
    """Adds special tokens to a checkpoint as transformers does, with random embeddings."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.save_pretrained(checkpoint)


TEXTS = ["[USER] where is my refund [URL]", "[USER][USER] the courier rang", "a[URL]b", "nobody was at home"]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_classifier_keeps_its_added_tokens(tmp_path: Path, family: str) -> None:
    checkpoint = write_classifier(tmp_path, family)
    add_tokens(checkpoint, "[USER]", "[URL]")
    lines: list[str] = []
    run = import_run(checkpoint, lines.append)
    assert any("its added tokens stay single tokens: [USER], [URL]" in line for line in lines)
    original = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    served = Tokenizer(run.tokenizer_path, run.model.config.max_tokens, 1000)
    for text in TEXTS:
        batch = tokenizer(text, return_tensors="pt")
        # The server reads the same file with its own code.
        assert served.encode([text])[0].windows == (batch["input_ids"][0].tolist(),)
        with torch.inference_mode():
            expected = original(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        np.testing.assert_allclose(run_model(run, [text]).logits["topic"], expected, atol=1e-5)
    served.close()


def test_sentence_transformer_keeps_its_added_tokens(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path)
    add_tokens(checkpoint, "[USER]", "[URL]")
    expected = SentenceTransformer(str(checkpoint), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(run_model(import_run(checkpoint), TEXTS).sentence_embedding, expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 40])
def test_comparison_covers_every_added_token(tmp_path: Path, count: int) -> None:
    checkpoint = write_classifier(tmp_path)
    tokens = [f"[T{number}]" for number in range(count)]
    add_tokens(checkpoint, *tokens)
    settings = json.loads((checkpoint / "tokenizer.json").read_bytes())
    # As if a tool had written tokenizer.json without the last token, which tokenizer_config.json still names.
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] != tokens[-1]]
    (checkpoint / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"different tokens for .*\[T"):
        import_run(checkpoint)


@pytest.mark.parametrize("write", [write_classifier, write_sentence_transformer])
def test_prefixes_of_wrappers_are_removed(tmp_path: Path, write: Any) -> None:
    checkpoint = write(tmp_path)
    expected = run_model(import_run(checkpoint), TEXTS)
    weights = load_file(checkpoint / "model.safetensors")
    save_file({f"module._orig_mod.{name}": value for name, value in weights.items()}, checkpoint / "model.safetensors")
    found = run_model(import_run(checkpoint), TEXTS)
    assert torch.equal(found.sentence_embedding, expected.sentence_embedding)
    assert found.logits.keys() == expected.logits.keys()


@pytest.mark.parametrize("write", [write_classifier, write_sentence_transformer])
def test_outputs_that_do_not_depend_on_the_text_are_refused(tmp_path: Path, write: Any) -> None:
    checkpoint = write(tmp_path)
    weights = load_file(checkpoint / "model.safetensors")
    for name, values in weights.items():
        # Equal rows give every token the same vector.
        if name.endswith(("word_embeddings.weight", "position_embeddings.weight")):
            values[:] = 0.5
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"its (logits|embeddings) are the same for every text"):
        import_run(checkpoint)


def test_tokenizer_that_reads_few_texts_is_reported(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    content = json.loads((checkpoint / "tokenizer.json").read_bytes())
    special = {token: number for token, number in content["model"]["vocab"].items() if token.startswith("[")}
    content["model"]["vocab"] = {**special, "\u0438": 9}
    (checkpoint / "tokenizer.json").write_text(json.dumps(content))
    lines: list[str] = []
    import_run(checkpoint, lines.append)
    assert any("as unknown tokens alone; use it only for texts in the language" in line for line in lines)


def test_head_is_named(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    run = load_run(import_checkpoint(str(checkpoint), tmp_path / "run", None, ignore, "mood"))
    assert [head["name"] for head in run.heads] == ["mood"]
    assert run.content["config"]["model"]["heads"][0]["name"] == "mood"
    assert run_model(run, TEXTS).logits.keys() == {"mood"}


def test_invalid_name_of_a_head_is_refused(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    with pytest.raises(CheckpointError, match=r"'My head' is not a valid name of a head.*choose another with --head"):
        import_checkpoint(str(checkpoint), tmp_path / "run", None, ignore, "My head")


def test_name_of_a_head_requires_a_classifier(tmp_path: Path) -> None:
    checkpoint = write_sentence_transformer(tmp_path)
    with pytest.raises(CheckpointError, match="which has no heads; leave out --head"):
        import_checkpoint(str(checkpoint), tmp_path / "run", None, ignore, "mood")


def test_configuration_without_architecture_is_refused(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    edit_json(checkpoint / "config.json", architectures=None)
    with pytest.raises(CheckpointError, match=r'does not name its architecture; add "architectures"'):
        import_run(checkpoint)


@pytest.mark.parametrize("length", [None, 1e30])
def test_limit_of_the_tokenizer_may_be_absent_or_huge(tmp_path: Path, length: float | None) -> None:
    checkpoint = write_classifier(tmp_path)
    edit_json(checkpoint / "tokenizer_config.json", model_max_length=length)
    assert import_run(checkpoint).model.config.max_tokens == 40


@pytest.mark.parametrize("length", [-1, 7])
def test_limit_of_the_tokenizer_must_leave_room_for_a_text(tmp_path: Path, length: int) -> None:
    checkpoint = write_classifier(tmp_path)
    edit_json(checkpoint / "tokenizer_config.json", model_max_length=length)
    with pytest.raises(CheckpointError, match=r"correct model_max_length of tokenizer_config\.json, at least 8"):
        import_run(checkpoint)


def test_evaluation_data_that_the_tokenizer_cannot_read_is_refused(tmp_path: Path) -> None:
    run = import_run(write_classifier(tmp_path))
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"text": f"你好 {number}", "label": "apple"}) + "\n" for number in range(9)))
    settings = Settings(variants=("fp32",)).with_overrides((), [path])
    message = r"reads 9 of 9 texts as special and unknown tokens alone, the first in line 1; pass rows in the language"
    with pytest.raises(SettingsError, match=message):
        export(run.path, tmp_path / "bundle", ignore, settings)
