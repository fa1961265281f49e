"""The model card describes the outputs, the evaluation, the gate results, and how to serve the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polyhead_bundle as bundle
import pytest
from polyhead_export.card import render_card
from polyhead_training.errors import RunError
from polyhead_training.runs.run_directory import Run, load_run


def _run(run_dir: Path, evaluation: str | None, tmp_path: Path) -> Run:
    if evaluation is not None:
        (tmp_path / "evaluation.json").write_text(evaluation)
    return dataclasses.replace(load_run(run_dir), path=tmp_path)


def test_card_in_the_bundle_shows_heads_scores_and_gate(bundle_dir: Path) -> None:
    card = (bundle_dir / "README.md").read_text("utf-8")
    assert card.startswith("# tiny\n")
    assert "- Embedding: 32 numbers, pooling `mean`, scaled to unit length." in card
    assert "- Token limit: 48, special tokens included" in card
    assert "| `topic` | softmax | `app`, `billing`, `support` | 1 |  |" in card
    assert "| `sentiment` | sigmoid | `negative`, `positive` | 1 | 0.5 |" in card
    assert "| test | `topic` | 120 | 0.9500 [0.9100, 0.9800] | 0.9375 | 0.0125 | 0.2500 |" in card
    assert "| `padding_invariance` |" in card
    assert "polyhead-serve" in card


def test_card_leaves_out_scores_without_rows(bundle_dir: Path) -> None:
    assert "| test | `sentiment` |" not in (bundle_dir / "README.md").read_text("utf-8")


def test_card_of_a_run_without_evaluation_has_no_such_section(run_dir: Path, bundle_dir: Path, tmp_path: Path) -> None:
    card = render_card(_run(run_dir, None, tmp_path), bundle.load(bundle_dir).manifest)
    assert "## Evaluation" not in card
    assert "## Gate" in card


def test_card_shows_similarity_before_and_after_training(run_dir: Path, bundle_dir: Path, tmp_path: Path) -> None:
    similarity = '{"similarity": {"pairs": 1500, "spearman_before": 0.867, "spearman_after": 0.855}}'
    card = render_card(_run(run_dir, similarity, tmp_path), bundle.load(bundle_dir).manifest)
    assert "with human scores, 1,500 text pairs:\n0.8670 before training, 0.8550 after training." in card


@pytest.mark.parametrize("evaluation", ["{", "[]", '{"test": 1}', '{"test": {"topic": {}}}'])
def test_damaged_evaluation_is_a_run_error(run_dir: Path, bundle_dir: Path, tmp_path: Path, evaluation: str) -> None:
    with pytest.raises(RunError, match=r"evaluation\.json: is not (valid JSON|a JSON object|a valid evaluation)"):
        render_card(_run(run_dir, evaluation, tmp_path), bundle.load(bundle_dir).manifest)


def test_card_states_what_a_useful_model_rarely_does(run_dir: Path, bundle_dir: Path, tmp_path: Path) -> None:
    manifest = bundle.load(bundle_dir).manifest
    gate = (*manifest.variants["fp32"].gate, bundle.Check("majority_gap.topic", 0.25, 1))
    variants = {"fp32": dataclasses.replace(manifest.variants["fp32"], gate=gate)}
    card = render_card(_run(run_dir, None, tmp_path), dataclasses.replace(manifest, variants=variants))
    assert "- **Warning**: head 'topic' is no better on the evaluation data than its most frequent label.\n" in card


def test_bar_in_a_label_is_escaped(run_dir: Path, bundle_dir: Path, tmp_path: Path) -> None:
    manifest = bundle.load(bundle_dir).manifest
    head = dataclasses.replace(manifest.heads[0], labels=("a|b", "c", "d"))
    card = render_card(_run(run_dir, None, tmp_path), dataclasses.replace(manifest, heads=(head, manifest.heads[1])))
    assert "`a\\|b`" in card


def test_card_states_prediction_sets(run_dir: Path, bundle_dir: Path, tmp_path: Path) -> None:
    manifest = bundle.load(bundle_dir).manifest
    head = dataclasses.replace(manifest.heads[0], prediction_sets=bundle.PredictionSets(0.9, 0.125, 300))
    card = render_card(_run(run_dir, None, tmp_path), dataclasses.replace(manifest, heads=(head, manifest.heads[1])))
    assert "| `topic` | 0.9 | 0.125 | 300 |" in card
