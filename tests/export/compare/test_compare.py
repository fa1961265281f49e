"""``polyhead-export compare``: a table, JSON and a page about two bundles on the same texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from polyhead_export.cli import main
from polyhead_export.export import export
from polyhead_export.settings import Settings

from tests.support.tiny_model import SENTENCES, ignore, make_model, write_run_directory

LABELS = ("app", "billing", "support")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    found = [
        {"text": f"{text} <{number}>", "topic": LABELS[number % 3] if number % 4 else None}
        for number in range(10)
        for text in SENTENCES
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def test_model_agrees_with_itself(bundle_dir: Path, rows: Path) -> None:
    result = invoke(bundle_dir, bundle_dir, "--eval-data", rows, "--json", "--label", "topic=topic")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["embedding"]["space"] == "same"
    for head in found["heads"].values():
        assert head["changed"]["texts"] == 0
        assert head["difference"] == 0
    accuracy = found["heads"]["topic"]["accuracy"]
    assert accuracy["old"] == accuracy["new"]
    assert accuracy["rows"] == 21
    assert found["heads"]["sentiment"]["accuracy"] is None


def test_texts_appear_only_on_request(bundle_dir: Path, other_bundle: Path, rows: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for texts in (0, 2):
        result = invoke(
            bundle_dir, other_bundle, "--eval-data", rows, "--html", page, "--json", "--show-texts", str(texts)
        )
        assert result.exit_code == 0, result.stderr
        heads = json.loads(result.stdout)["heads"]
        assert heads["topic"]["changed"]["texts"] > 2
        assert len(heads["topic"].get("texts", [])) == texts
        shown = page.read_text(encoding="utf-8")
        assert (SENTENCES[0][:20] in result.stdout + shown) == (texts > 0)
        # Texts of the data are escaped.
        assert ("&lt;0&gt;" in shown) == (texts > 0)
        assert "<0>" not in shown


def test_table_names_the_changes(bundle_dir: Path, other_bundle: Path, rows: Path) -> None:
    result = invoke(bundle_dir, other_bundle, "--eval-data", rows)
    assert result.exit_code == 0, result.stderr
    assert "another space: an index must be built again" in result.stdout
    assert " becomes " in result.stdout
    assert "30 texts" in result.stdout


def test_collected_texts_are_compared_without_labels(bundle_dir: Path, tmp_path: Path) -> None:
    meta = {"reasons": ["random"], "predictions": {"topic": {"label": "app"}}, "model": "m-1"}
    path = tmp_path / "collected.jsonl"
    lines = (json.dumps({"text": text, "topic": None, "_collected": meta}) for text in SENTENCES)
    path.write_text("\n".join(lines), encoding="utf-8")
    result = invoke(bundle_dir, bundle_dir, "--eval-data", path)
    assert result.exit_code == 0, result.stderr
    assert f"{len(SENTENCES)} texts" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label", "topic"], "'topic' is not HEAD=FIELD"),
        (["--label", "mood=topic"], "mood: is not a head that both models have; they have topic, sentiment"),
        (["--old-variant", "fp8"], "has no variant 'fp8'; it has fp32"),
        (["--text", "body"], "rows.jsonl:1: has no field 'body', only 'text', 'topic': set --text to one of these"),
        (["--label", "topic=text"], "rows.jsonl:1"),
    ],
)
def test_mistakes_are_named(bundle_dir: Path, rows: Path, options: list[str], message: str) -> None:
    result = invoke(bundle_dir, bundle_dir, "--eval-data", rows, *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_missing_file_is_named(bundle_dir: Path) -> None:
    result = invoke(bundle_dir, bundle_dir, "--eval-data", "nowhere.jsonl")
    assert result.exit_code == 2
    assert "nowhere.jsonl: no such file" in result.stderr


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    model = make_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim > 1:
                values.normal_(std=0.3, generator=generator)
    write_run_directory(folder / "run", model)
    return export(folder / "run", folder / "bundle", ignore, Settings(variants=("fp32",))).path
