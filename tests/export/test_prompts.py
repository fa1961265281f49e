"""The prompts of a run reach the bundle, its golden texts, its card, and the evaluation of the gate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_export.errors import ContentError
from polyhead_export.eval_data import read_eval_data
from polyhead_export.export import export, read_heads
from polyhead_export.golden import golden_texts
from polyhead_export.settings import Settings
from polyhead_export.verify import require_described
from polyhead_training.errors import RunError
from polyhead_training.runs.run_directory import Run, load_run
from polyhead_training.tokenization import encode, load_tokenizer

from tests.support.tiny_model import ignore, make_model, shared_graphs, write_run_directory

PROMPTS = {"passage": "the box: ", "query": "where is "}


def write_prompted_run(path: Path, prompts: dict[str, str] = PROMPTS) -> Run:
    """Writes the run of a model whose heads were trained with the prompt ``query``."""
    write_run_directory(path, make_model(prompts=prompts))
    content = json.loads((path / "run.json").read_bytes())
    content["config"]["data"]["prompt"] = "query"
    (path / "run.json").write_text(json.dumps(content), "utf-8")
    return load_run(path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    folder = tmp_path_factory.mktemp("prompts")
    write_prompted_run(folder / "run")
    with shared_graphs():
        return export(folder / "run", folder / "bundle", ignore, Settings(variants=("fp32",)))


def test_bundle_has_the_prompts_of_the_run(exported: bundle.Bundle) -> None:
    assert exported.manifest.prompts == PROMPTS
    golden = [one.text for one in exported.manifest.variants["fp32"].golden]
    prompted = [prefix + "How long does it take until a refund is on my account?" for prefix in PROMPTS.values()]
    assert [text for text in golden if text not in golden_texts(48)] == prompted


def test_card_lists_the_prompts_and_names_that_of_the_heads(exported: bundle.Bundle) -> None:
    card = (exported.path / "README.md").read_text("utf-8")
    assert '| `passage` | `"the box: "` |' in card
    assert "The heads were trained on texts with the prompt `query`" in card


def test_manifest_with_other_prompts_than_the_model_is_rejected(exported: bundle.Bundle) -> None:
    forged = dataclasses.replace(exported, manifest=dataclasses.replace(exported.manifest, prompts={"query": "q"}))
    with pytest.raises(ContentError, match=r"prompts: is {'query': 'q'}, but torch/config\.json says"):
        require_described(forged, make_model(prompts=PROMPTS).config)


def test_evaluation_data_is_read_with_the_prompt_of_the_labels(tmp_path: Path) -> None:
    run = write_prompted_run(tmp_path / "run")
    texts = ["where is my refund", "the courier rang twice"]
    rows = [{"text": text, "label": "app", "sentiment": "positive"} for text in texts]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_eval_data(run, read_heads(run), [tmp_path / "rows.jsonl"])
    tokenizer = load_tokenizer(run.tokenizer_path)
    assert list(found.ids) == list(encode(tokenizer, ["where is " + text for text in texts], 48))
    assert np.isfinite(found.reference["logits"]).all()


def test_prompt_that_leaves_no_token_for_a_text_is_not_exported(tmp_path: Path) -> None:
    write_prompted_run(tmp_path / "run", {"query": "box " * 60})
    with pytest.raises(RunError, match=r"prompts.query: has 62 tokens, and max_tokens is 48"):
        export(tmp_path / "run", tmp_path / "bundle", ignore, Settings(variants=("fp32",)))
