"""The model card states intended use, evaluation, limits and usage."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from polyhead_training.abstain_config import AbstainConfig
from polyhead_training.model import PolyheadModel
from polyhead_training.reporting.model_card import code, figures, render_card, table, write_card
from polyhead_training.reporting.results import read_results

from tests.support.finished_run import HEADS, HOSTILE, OTHER_KINDS, write_finished_run


def _card(folder: Path) -> str:
    return render_card(read_results(folder))


def _front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    content = yaml.safe_load(front)
    assert isinstance(content, dict)
    return content


def _change_backbone(folder: Path, backbone: str) -> None:
    content = json.loads((folder / "run.json").read_bytes())
    content["config"]["model"]["backbone"] = backbone
    (folder / "run.json").write_text(json.dumps(content))


def test_card_is_written_beside_the_model(finished_run: Path) -> None:
    write_card(finished_run)
    assert (finished_run / "README.md").read_text("utf-8") == _card(finished_run)


def test_front_matter_follows_the_hub_format(finished_run: Path) -> None:
    found = _front_matter(_card(finished_run))
    assert found["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert found["pipeline_tag"] == "text-classification"
    assert "license" not in found
    [model] = found["model-index"]
    evaluation = json.loads((finished_run / "evaluation.json").read_bytes())
    results = {result["dataset"]["split"]: result["metrics"] for result in model["results"]}
    metrics = {metric["name"]: metric["value"] for metric in [*results["validation"], *results["test"]]}
    assert metrics["topic accuracy (test)"] == pytest.approx(evaluation["test"]["topic"]["accuracy"], abs=1e-4)
    assert metrics["sentiment f1 (validation)"] == pytest.approx(
        evaluation["validation"]["sentiment"]["macro_f1"], abs=1e-4
    )
    assert not [name for name in metrics if name.startswith("urgent")]


@pytest.mark.parametrize("backbone", ["../checkpoint", "/models/mini", "./a/b", "a/b/c"])
def test_local_folder_is_not_a_base_model(finished_run: Path, backbone: str) -> None:
    _change_backbone(finished_run, backbone)
    assert "base_model" not in _front_matter(_card(finished_run))


def test_sections_are_in_order(finished_run: Path) -> None:
    assert re.findall("^#+ (.*)$", _card(finished_run), flags=re.MULTILINE)[1:] == [
        "tiny",
        "Intended use",
        "Heads",
        "Data",
        "Evaluation",
        "Calibration",
        "Limits",
        "Usage",
    ]


def test_metrics_have_intervals_and_baselines(finished_run: Path) -> None:
    found = json.loads((finished_run / "evaluation.json").read_bytes())["test"]["topic"]
    low, high = found["intervals"]["accuracy"]
    interval = f"{found['accuracy']:.4f} [{low:.4f}, {high:.4f}]"
    others = " | ".join(f"{found[name]:.4f}" for name in ("macro_f1", "ece", "majority_baseline"))
    assert f"| test | `topic` | 120 | {interval} | {others} |" in _card(finished_run)
    assert "0.8674 before training, 0.8551 after training." in _card(finished_run)


def test_calibration_is_reported_before_and_after(finished_run: Path) -> None:
    found = json.loads((finished_run / "evaluation.json").read_bytes())["test"]["topic"]
    assert f"| {found['uncalibrated']['ece']:.4f} to {found['ece']:.4f} |" in _card(finished_run)


def test_data_section_shows_statistics_and_leaks(finished_run: Path) -> None:
    card = _card(finished_run)
    assert "| train | 1,200 | 4 | 1.2 % |" in card
    assert "| test | 0 |" not in card
    assert "3 texts occur in two splits" in card
    (finished_run / "data.json").unlink()
    assert "## Data" not in _card(finished_run)


def test_weakest_labels_are_listed(finished_run: Path) -> None:
    labels = json.loads((finished_run / "evaluation.json").read_bytes())["test"]["sentiment"]["labels"]
    f1, name = min((found["f1"], name) for name, found in labels.items())
    assert f"- The weakest labels of `sentiment` are `{name}` (F1 {f1:.2f})." in _card(finished_run)
    assert "weakest labels of `urgent`" not in _card(finished_run)


def test_head_that_learned_nothing_is_stated(finished_run: Path) -> None:
    assert "**Warning**" not in _card(finished_run)
    content = json.loads((finished_run / "evaluation.json").read_bytes())
    for label, found in content["test"]["topic"]["labels"].items():
        found["answered"] = 120 * (label == HOSTILE)
    (finished_run / "evaluation.json").write_text(json.dumps(content))
    [line] = [line for line in _card(finished_run).splitlines() if "**Warning**" in line]
    assert line.startswith("- **Warning**: test: head 'topic' predicts \"\\<script\\>")
    assert line.endswith("for each of the 120 rows.")


def test_token_limit_is_stated(finished_run: Path) -> None:
    assert "Texts are truncated to 256 tokens" in _card(finished_run)


def test_run_without_metrics_has_a_card(finished_run: Path) -> None:
    content = json.loads((finished_run / "evaluation.json").read_bytes())
    (finished_run / "evaluation.json").write_text(json.dumps({"test": {"urgent": content["test"]["urgent"]}}))
    card = _card(finished_run)
    assert "## Evaluation" not in card
    assert "## Calibration" not in card
    assert _front_matter(card).keys() == {"library_name", "pipeline_tag", "tags", "base_model"}


def test_labels_cannot_break_their_table_cell(finished_run: Path) -> None:
    [line] = [line for line in _card(finished_run).splitlines() if line.startswith("| `topic` | softmax")]
    assert "`` " + HOSTILE.replace("|", "\\|") + " ``" in line
    assert len(re.findall(r"(?<!\\)\|", line)) == 6


def test_code_quotes_backticks_and_newlines() -> None:
    assert code("a b") == "`a b`"
    assert code("`a``") == "``` `a`` ```"
    assert code("a\nb") == "`a b`"


def test_table_escapes_bars() -> None:
    assert table(["a", "b"], [["1|2", "3"]]) == ["| a | b |", "| --- | --- |", "| 1\\|2 | 3 |"]


def test_evaluation_section_is_omitted_without_metrics() -> None:
    assert figures({}, None) == []
    assert figures({"test": {"topic": {"rows": 0}}}, None) == []


def test_snippet_of_the_card_runs(
    finished_run: Path,
    checkpoints: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads = [head.layer_settings() for head in HEADS]
    model = PolyheadModel.from_backbone(
        checkpoints["bert"],
        pooling="mean",
        embedding_pooling="mean",
        normalize=True,
        max_tokens=32,
        pad_token_id=0,
        heads=heads,
    )
    (finished_run / "run").mkdir()
    model.save_pretrained(finished_run / "run" / "model")
    shutil.copy(checkpoints["bert"] / "tokenizer.json", finished_run / "run")
    monkeypatch.chdir(finished_run)
    [snippet] = re.findall("```python\n(.*?)```", _card(finished_run), flags=re.DOTALL)
    exec(snippet, {})  # noqa: S102 - what a reader of the card does
    shown = capsys.readouterr().out
    assert "'topic': tensor" in shown
    assert "'urgent': tensor" in shown


def test_heads_of_other_kinds_show_their_own_metrics(tmp_path: Path) -> None:
    results = read_results(write_finished_run(tmp_path, OTHER_KINDS))
    card = render_card(results)
    found = results.splits["test"]
    low, high = found["price"]["intervals"]["mae"]
    assert f"| test | `price` | 120 | {found['price']['mae']:.4f} [{low:.4f}, {high:.4f}] |" in card
    assert "| split | head | rows | micro-F1 | macro-F1 | mAP | ECE | majority |" in card
    assert "QWK: quadratic weighted kappa." in card
    # A regression head has no calibration.
    assert "| `stars` | test |" in card
    assert "| `price` | test |" not in card
    assert "| `price` | regression |" in card


def test_card_states_what_heads_promise(tmp_path: Path) -> None:
    promises = {"topic": AbstainConfig(accuracy=0.6), "sentiment": AbstainConfig(accuracy=0.99)}
    card = render_card(read_results(write_finished_run(tmp_path, abstain=promises)))
    rows = {
        line.split("|")[1].strip(): line for line in card[card.index("## Abstention") :].splitlines() if "|" in line
    }
    assert "| 0.6 | 0.95 | below 0." in rows["`topic`"]
    assert "| 0.99 | 0.95 | never |" in rows["`sentiment`"]


def test_card_states_prediction_sets_of_heads_that_have_some(finished_run: Path) -> None:
    results = read_results(finished_run)
    found = ({"coverage": 0.95, "threshold": 0.0234, "rows": 1200}, {"coverage": 0.99, "threshold": None, "rows": 40})
    heads = [{**head, "prediction_sets": sets} for head, sets in zip(results.heads, found, strict=False)]
    card = render_card(dataclasses.replace(results, run={**results.run, "heads": heads}))
    assert [line for line in card[card.index("## Prediction sets") :].splitlines() if line.startswith("| `")] == [
        f"| `{heads[0]['name']}` | 0.95 | 0.0234 | 1,200 |"
    ]
    assert "## Prediction sets" not in render_card(results)
