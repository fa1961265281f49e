"""A checkpoint is imported as a run directory that exports to a bundle; damaged checkpoints are rejected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from polyhead_export.export import export
from polyhead_export.interop.checkpoint import CheckpointError
from polyhead_export.interop.import_checkpoint import import_checkpoint
from polyhead_export.settings import Settings
from polyhead_training.errors import BackboneError, RunError
from polyhead_training.runs.run_directory import load_run
from sentence_transformers.sentence_transformer.modules import Normalize

from tests.support.checkpoints import edit_json, import_run, write_classifier, write_sentence_transformer
from tests.support.tiny_model import ignore


def test_imported_classifier_is_exported_to_a_bundle(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path, "roberta")
    import_run(checkpoint)
    manifest = export(tmp_path / "run", tmp_path / "bundle", ignore).manifest
    assert [(head.name, head.output, head.labels) for head in manifest.heads] == [
        ("topic", "logits", ("zebra", "apple", "mango"))
    ]
    assert all(check.passed for check in manifest.variants["fp32"].gate)


def test_imported_classifier_is_checked_on_evaluation_data(tmp_path: Path) -> None:
    import_run(write_classifier(tmp_path, "bert"))
    rows = [{"text": f"the courier rang {number}", "label": "apple"} for number in range(3)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Settings(variants=("fp32",)).with_overrides((), [tmp_path / "test.jsonl"])
    manifest = export(tmp_path / "run", tmp_path / "bundle", ignore, settings).manifest
    assert "accuracy_drop.topic" in {check.name for check in manifest.variants["fp32"].gate}


def test_imported_sentence_transformer_is_exported_to_a_bundle_without_heads(tmp_path: Path) -> None:
    import_run(write_sentence_transformer(tmp_path, "bert", Normalize()))
    manifest = export(tmp_path / "run", tmp_path / "bundle", ignore).manifest
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


def test_inconsistent_tokenizer_files_are_rejected(tmp_path: Path) -> None:
    checkpoint = write_classifier(tmp_path)
    # For this class, transformers rebuilds the tokenizer from the settings and ignores tokenizer.json.
    edit_json(checkpoint / "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=False)
    with pytest.raises(BackboneError, match=r"different tokens for capital letters: .* true, .* do_lower_case false"):
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
