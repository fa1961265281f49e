from __future__ import annotations

import json
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from polyhead_training.cli import main
from polyhead_training.config import Config
from polyhead_training.data.dataset import read_data
from polyhead_training.errors import ConfigError, ResumeError, StoppedError
from polyhead_training.evaluation.evaluate import Split
from polyhead_training.evaluation.out_of_fold import fold_scores
from polyhead_training.model import PolyheadModel, TextVectors
from polyhead_training.model_config import HeadConfig
from polyhead_training.repeats import Repeats, table
from torch import Tensor

from tests.support.every_kind import OVERRIDE
from tests.support.search_data import write_search_data
from tests.support.tiny_tokenizers import SENTENCES
from tests.support.tiny_training import LABELS, ignore, run_files

Configure = Callable[..., Config]
WriteJsonl = Callable[[str, Sequence[object]], Path]
SENTIMENT = "{name='sentiment', kind='sigmoid', labels=['negative', 'positive'], hidden_size=0}"
# One step per run, on all rows: the fit of the heads.
FIT = (
    "data.test=[]",
    f"model.heads=[{{name='topic', kind='softmax', field='label', hidden_size=0}}, {SENTIMENT}]",
    "training.stages=[{name='fit', train=['heads'], solver='lbfgs'}]",
)


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """24 rows in six classes, none of which nearly equals another."""
    return [
        {"text": " ".join(text.split()[start : start + 4]), "label": label, "sentiment": start % 2}
        for start in range(4)
        for text, label in zip(SENTENCES, LABELS, strict=True)
    ]


@pytest.fixture
def folds_config(
    configure: Configure, config_file: Path, rows: list[dict[str, Any]], write_jsonl: WriteJsonl
) -> Config:
    """A configuration without a share of validation, which folds exclude."""
    write_jsonl("train.jsonl", rows)
    config_file.write_text(config_file.read_text().replace("validation_fraction = 0.25", ""))
    return configure(*FIT)


def repeats(config: Config, destination: Path, **options: Any) -> Repeats:
    return Repeats(config, destination, read_data(config), **{"report": ignore, **options})


def content(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def stop_at(call: int) -> Callable[[], bool]:
    """A ``stop`` callback that requests a stop from its n-th call on, counted from 1."""
    calls = iter([False] * (call - 1))
    return lambda: next(calls, True)


def test_seeds_keep_the_best_run_with_mean_and_spread(configure: Configure, tmp_path: Path) -> None:
    config = configure("training.seed=3", "training.stages=[{name='all', train=['all'], learning_rate=0.01}]")
    repeats(config, tmp_path / "run").train_seeds(2)
    found = content(tmp_path / "run", "repeats.json")
    assert found["seeds"] == [3, 4]
    scores = found["spread"]["validation"]
    means = [statistics.fmean(scores[head]["macro_f1"]["values"][n] for head in scores) for n in range(2)]
    assert found["kept"] == 3 + means.index(max(means))
    assert scores["topic"]["macro_f1"]["mean"] == pytest.approx(statistics.fmean(scores["topic"]["macro_f1"]["values"]))
    assert "accuracy" in found["spread"]["test"]["topic"]
    run = content(tmp_path / "run", "run.json")
    assert run["config"]["training"]["seed"] == found["kept"]
    kept = content(tmp_path / "run", "evaluation.json")["validation"]["topic"]["accuracy"]
    assert kept == scores["topic"]["accuracy"]["values"][found["kept"] - 3]
    report = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Seeds</h2>" in report
    assert "2 runs with the seeds 3, 4" in report
    assert not (tmp_path / "run.repeats").exists()


def test_runs_of_several_seeds_share_the_validation_rows(configure: Configure, tmp_path: Path) -> None:
    """Otherwise the best seed would be the one with the easiest validation rows."""
    config = configure(*FIT)
    with pytest.raises(StoppedError):
        repeats(config, tmp_path / "run", stop=stop_at(3)).train_seeds(3)
    digests = {content(path, "run.json")["data_sha256"] for path in (tmp_path / "run.repeats").glob("seed-[0-9]")}
    assert len(digests) == 1


def test_stopped_seeds_resume_with_the_run_in_progress(configure: Configure, tmp_path: Path) -> None:
    config = configure("training.stages=[{name='all', train=['all'], learning_rate=0.01}]")
    repeats(config, tmp_path / "complete").train_seeds(2)
    with pytest.raises(StoppedError):
        repeats(config, tmp_path / "run", stop=stop_at(7)).train_seeds(2)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ResumeError, match="continue them with --resume, or discard them with --restart"):
        repeats(config, tmp_path / "run").train_seeds(2)
    with pytest.raises(ResumeError, match="was started with seeds = 2, this start has 3"):
        repeats(config, tmp_path / "run", policy="resume").train_seeds(3)
    messages: list[str] = []
    repeats(config, tmp_path / "run", policy="resume", report=messages.append).train_seeds(2)
    assert any(message.endswith("seed-0 is complete; nothing to resume") for message in messages)
    assert "resumed after step 2" in messages
    assert run_files(tmp_path / "run") == run_files(tmp_path / "complete")
    messages.clear()
    repeats(config, tmp_path / "run", policy="resume", report=messages.append).train_seeds(2)
    assert messages == [f"{tmp_path / 'run'} is complete; nothing to resume"]


def test_folds_predict_every_row_once_and_train_on_all_rows(folds_config: Config, tmp_path: Path) -> None:
    repeats(folds_config, tmp_path / "run").train_folds(4)
    lines = [json.loads(line) for line in (tmp_path / "run" / "out_of_fold.jsonl").read_text().splitlines()]
    assert [line["line"] for line in lines] == list(range(1, 25))
    assert Counter(line["fold"] for line in lines).keys() == {1, 2, 3, 4}
    assert lines[0]["topic"].keys() == {"label", "predicted", "probability"}
    evaluation = content(tmp_path / "run", "evaluation.json")["validation"]["topic"]
    assert evaluation["rows"] == 24
    correct = sum(line["topic"]["label"] == line["topic"]["predicted"] for line in lines)
    assert evaluation["accuracy"] == pytest.approx(correct / 24)
    # The temperature comes from the out-of-fold predictions.
    (head, _) = content(tmp_path / "run", "run.json")["heads"]
    assert head["temperature"] == evaluation["temperature"] != 1.0
    assert content(tmp_path / "run", "data.json")["splits"]["train"]["rows"] == 24
    found = content(tmp_path / "run", "repeats.json")
    assert found["folds"] == 4
    assert len(found["spread"]["validation"]["topic"]["accuracy"]["values"]) == 4
    report = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Cross-validation</h2>" in report
    assert "Labels of head topic that are likely mistakes" in report


def test_threshold_of_a_fold_is_not_fitted_on_it(configure: Configure, folds_config: Config, tmp_path: Path) -> None:
    assert folds_config.data.validation_fraction is None
    head = configure(*FIT, "model.heads.1.threshold=best").model.heads[1]
    repeats(configure(*FIT, "model.heads.1.threshold=best"), tmp_path / "run").train_folds(4)
    lines = [json.loads(line) for line in (tmp_path / "run" / "out_of_fold.jsonl").read_text().splitlines()]
    temperature = content(tmp_path / "run", "run.json")["heads"][1]["temperature"]
    labels = list(head.labels or ())
    logits = []
    for one in (line["sentiment"] for line in lines):
        second = one["probability"] if one["predicted"] == labels[1] else 1.0 - one["probability"]
        logits.append([temperature * math.log(second / (1.0 - second))])
    targets = np.array([labels.index(line["sentiment"]["label"]) for line in lines])
    split = Split([""] * 24, [(tmp_path, 1)] * 24, {head.name: targets}, {head.name: np.array(logits)})
    scores = fold_scores([head], split, [line["fold"] - 1 for line in lines], 4)
    spread = content(tmp_path / "run", "repeats.json")["spread"]["validation"]["sentiment"]
    for metric in ("macro_f1", "nll"):
        expected = [one["validation"]["sentiment"][metric] for one in scores]
        assert spread[metric]["values"] == pytest.approx(expected, abs=1e-4)


def test_folds_predict_the_answers_of_heads_of_every_kind(
    configure: Configure, folds_config: Config, tmp_path: Path, rows: list[dict[str, Any]], write_jsonl: WriteJsonl
) -> None:
    answers = [
        {"tags": [["late"], ["late", "rude"], []][number % 3], "stars": 1 + number % 3, "price": number / 10}
        for number in range(len(rows))
    ]
    assert folds_config.data.validation_fraction is None
    unlabelled = {"text": "A row that no head knows.", "label": "app"}
    write_jsonl("train.jsonl", [*({**row, **one} for row, one in zip(rows, answers, strict=True)), unlabelled])
    fit = (*FIT[::2], OVERRIDE)
    repeats(configure(*fit), tmp_path / "run").train_folds(2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "out_of_fold.jsonl").read_text().splitlines()]
    assert [line["tags"]["labels"] for line in lines] == [*(one["tags"] for one in answers), None]
    assert [line["stars"]["label"] for line in lines] == [*(str(one["stars"]) for one in answers), None]
    assert [line["price"]["value"] for line in lines] == [*(one["price"] for one in answers), None]
    evaluation = content(tmp_path / "run", "evaluation.json")["validation"]
    exact = [line["tags"]["labels"] == line["tags"]["predicted"] for line in lines[:-1]]
    assert evaluation["tags"]["accuracy"] == pytest.approx(sum(exact) / 24)
    errors = [abs(line["price"]["value"] - line["price"]["predicted"]) for line in lines[:-1]]
    assert evaluation["price"]["mae"] == pytest.approx(sum(errors) / 24, rel=1e-5)
    assert content(tmp_path / "run", "label_noise.json").keys() == {"topic", "sentiment"}
    spread = content(tmp_path / "run", "repeats.json")["spread"]["validation"]
    assert len(spread["price"]["r2"]["values"]) == len(spread["tags"]["micro_f1"]["values"]) == 2


def test_texts_selected_for_their_answers_train_and_calibrate_nothing(
    folds_config: Config, tmp_path: Path, rows: list[dict[str, Any]], write_jsonl: WriteJsonl
) -> None:
    meta = {"reasons": ["low_confidence"], "model": "m-1", "predictions": {}}
    selected = [{**row, "text": f"{row['text']} again", "_collected": meta} for row in rows[:6]]
    write_jsonl("train.jsonl", [*rows, *selected])
    repeats(folds_config, tmp_path / "run").train_folds(3)
    assert content(tmp_path / "run", "data.json")["splits"]["train"]["rows"] == 30
    assert len((tmp_path / "run/out_of_fold.jsonl").read_text().splitlines()) == 30
    assert content(tmp_path / "run", "evaluation.json")["validation"]["topic"]["rows"] == 24


def test_reference_of_folds_is_about_the_rows_of_validation(
    configure: Configure, folds_config: Config, tmp_path: Path, rows: list[dict[str, Any]], write_jsonl: WriteJsonl
) -> None:
    assert folds_config.data.validation_fraction is None
    write_jsonl("validation.jsonl", rows[:5])
    repeats(configure(*FIT, "data.validation=validation.jsonl"), tmp_path / "run").train_folds(2)
    reference = content(tmp_path / "run", "run.json")["reference"]
    assert reference["rows"] == 5
    counts = [5 * share for share in reference["heads"]["topic"]["answers"]]
    assert counts == pytest.approx([round(count) for count in counts])


def test_folds_without_validation_do_not_warn_that_it_is_empty(
    configure: Configure, folds_config: Config, tmp_path: Path
) -> None:
    """The predictions of the folds take its place, and fit temperatures and thresholds."""
    assert folds_config.data.validation_fraction is None
    messages: list[str] = []
    config = configure(*FIT, "data.validation_fraction=0")
    repeats(config, tmp_path / "run", report=messages.append).train_folds(2)
    assert not any("validation: has no rows" in message for message in messages)
    assert sum("neither novelty nor a reference for drift" in message for message in messages) == 1
    assert not any("has no rows" in warning for warning in content(tmp_path / "run", "data.json")["warnings"])


def test_teacher_of_folds_is_a_warning(configure: Configure, folds_config: Config, tmp_path: Path) -> None:
    messages: list[str] = []
    repeats(folds_config, tmp_path / "run", report=messages.append).check(3)
    assert not any("teacher" in message for message in messages)
    steps = "training.stages=[{name='heads', train=['heads'], epochs=1, learning_rate=1e-3}]"
    repeats(configure(*FIT, steps, "training.teacher=runs/large"), tmp_path / "run", report=messages.append).check(3)
    assert any("reveals their labels to the models of the folds" in message for message in messages)


def test_retrieval_has_a_spread_over_seeds_and_is_not_measured_in_folds(
    configure: Configure, folds_config: Config, tmp_path: Path
) -> None:
    write_search_data(folds_config.source.parent)
    files = "corpus='help_corpus.jsonl', queries='help_queries.jsonl', qrels='help_qrels.jsonl'"
    config = configure(*FIT, f"data.retrieval=[{{{files}}}]")
    repeats(config, tmp_path / "seeds").train_seeds(2)
    assert len(content(tmp_path / "seeds", "repeats.json")["spread"]["retrieval"]["help"]["ndcg_at_10"]["values"]) == 2
    assert "<h3>help, retrieval</h3>" in (tmp_path / "seeds" / "report.html").read_text()
    repeats(config, tmp_path / "folds").train_folds(2)
    assert "retrieval" not in content(tmp_path / "folds", "repeats.json")["spread"]
    assert "retrieval" in content(tmp_path / "folds", "evaluation.json")


def test_table_has_the_metrics_of_each_kind_of_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    heads = [
        HeadConfig(name="topic", kind="softmax"),
        HeadConfig(name="price", kind="regression"),
    ]
    metrics = {name: {"mean": 0.5, "sd": 0.25} for name in ("accuracy", "mae", "r2")}
    shown = table({"validation": {"topic": metrics, "price": metrics}, "similarity": {"spearman_after": {}}}, heads)
    topic, price = shown.split("\n split")[0], shown[shown.index("MAE") :]
    assert "accuracy, mean ± sd" in topic
    assert "price" in price
    assert shown.count("0.5000 ± 0.2500") == 3


def test_copies_of_a_text_share_a_fold(
    folds_config: Config, tmp_path: Path, rows: list[dict[str, Any]], write_jsonl: WriteJsonl
) -> None:
    write_jsonl("train.jsonl", [*rows, *rows[:6]])
    repeats(folds_config, tmp_path / "run").train_folds(3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "out_of_fold.jsonl").read_text().splitlines()]
    assert [line["fold"] for line in lines[24:]] == [line["fold"] for line in lines[:6]]


def test_wrong_label_is_in_the_label_noise_report(
    folds_config: Config, tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    words = {"a": SENTENCES[0].split(), "b": SENTENCES[4].split()}
    found = [
        {"text": " ".join(random.Random(n).sample(words[label], 5)), "label": label, "sentiment": n % 2}
        for n in range(20)
        for label in "ab"
    ]
    found[7]["label"] = "a"
    write_jsonl("train.jsonl", found)
    repeats(folds_config, tmp_path / "run").train_folds(4)
    suspects = content(tmp_path / "run", "label_noise.json")["topic"]["suspects"]
    # Not always the first: these models see a few rows.
    (wrong,) = (one for one in suspects[:3] if one["line"] == 8)
    assert (wrong["label"], wrong["predicted"]) == ("a", "b")
    assert wrong["path"].endswith("train.jsonl")


def test_stopped_folds_resume_to_the_same_bytes(folds_config: Config, tmp_path: Path) -> None:
    repeats(folds_config, tmp_path / "complete").train_folds(3)
    with pytest.raises(StoppedError):
        repeats(folds_config, tmp_path / "run", stop=stop_at(3)).train_folds(3)
    messages: list[str] = []
    repeats(folds_config, tmp_path / "run", policy="resume", report=messages.append).train_folds(3)
    assert not any(message.startswith(("fold 1", "fold 2")) for message in messages)
    assert any(message.startswith("fold 3") for message in messages)
    for name in ("out_of_fold.jsonl", "label_noise.json", "evaluation.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "complete" / name).read_bytes()
    assert run_files(tmp_path / "run") == run_files(tmp_path / "complete")


def test_label_with_fewer_rows_than_folds_is_named_and_the_run_completes(
    folds_config: Config, tmp_path: Path, rows: list[dict[str, Any]], write_jsonl: WriteJsonl
) -> None:
    write_jsonl("train.jsonl", [*rows, {"text": "I moved to another town.", "label": "address"}])
    messages: list[str] = []
    repeats(folds_config, tmp_path / "run", report=messages.append).train_folds(3)
    assert any("label 'address' has a single text" in message for message in messages)
    noise = content(tmp_path / "run", "label_noise.json")["topic"]
    assert noise["rows"] == 24
    assert "address" not in noise["thresholds"]


def test_folds_need_as_many_different_texts(
    folds_config: Config, tmp_path: Path, rows: list[dict[str, Any]], write_jsonl: WriteJsonl
) -> None:
    write_jsonl("train.jsonl", [*rows[:2], next(row for row in rows if row["sentiment"] != rows[0]["sentiment"])])
    with pytest.raises(ConfigError, match="--folds: 5 folds require as many different texts, and train has 3"):
        repeats(folds_config, tmp_path / "run").train_folds(5)
    assert list(tmp_path.glob("run*")) == []


def test_folds_need_a_head(configure: Configure, tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    write_jsonl("pairs.jsonl", [{"a": SENTENCES[0], "b": SENTENCES[1]}] * 2)
    sources = "data.embedding=[{files='pairs.jsonl', kind='pairs'}]"
    config = configure("model.heads=[]", "data.train=[]", "data.test=[]", sources)
    with pytest.raises(ConfigError, match=r"--folds: model\.heads is empty, so .* use --seeds"):
        repeats(config, tmp_path / "run").check(2)


def test_configured_share_of_validation_contradicts_folds(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.validation_fraction: 0.25 and --folds"):
        repeats(configure(*FIT), tmp_path / "run").train_folds(3)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_command_line_rejects_seeds_with_folds_and_several_processes(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = invoke(config_file, "--seeds", "2", "--folds", "2")
    assert both.exit_code == 2
    assert "--seeds and --folds: choose one of them" in both.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "run in one process" in invoke(config_file, "--seeds", "2").stderr


def test_dry_run_with_folds_reports_what_cannot_be_measured(folds_config: Config, tmp_path: Path) -> None:
    result = invoke(folds_config.source, "--dry-run", "--folds", "5", "--output-dir", tmp_path / "run")
    assert result.exit_code == 0
    assert "label 'app' has 4 different texts, fewer than 5 folds" in result.stderr
    assert invoke(folds_config.source, "--dry-run", "--folds", "50").exit_code == 2


def test_command_line_prints_the_run_directory(config_file: Path, tmp_path: Path) -> None:
    settings = [argument for override in FIT for argument in ("--set", override)]
    result = invoke(config_file, "--seeds", "2", "--output-dir", tmp_path / "out", *settings)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'out'}\n")
    assert "kept: seed" in result.stderr


@pytest.mark.parametrize("trains_backbone", [False, True])
def test_frozen_backbone_encodes_each_text_once_for_all_folds(
    configure: Configure,
    folds_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trains_backbone: bool,
) -> None:
    encoded = 0

    def count(model: PolyheadModel, input_ids: Tensor, attention_mask: Tensor) -> TextVectors:
        nonlocal encoded
        encoded += len(input_ids)
        return encode(model, input_ids, attention_mask)

    encode = PolyheadModel.encode
    monkeypatch.setattr(PolyheadModel, "encode", count)
    stages = "training.stages=[{name='all', train=['all'], learning_rate=0.01}]"
    config = configure("data.test=[]", stages) if trains_backbone else folds_config
    repeats(config, tmp_path / "run").train_folds(2)
    assert (encoded == 24) is not trains_backbone
