"""Every system of the comparisons learns a head of each kind, and is scored by the same code."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.training import domains, head_systems
from bench.training.head_tasks import METRICS, HeadSet, Task, as_ordinal_logits, number_as_ordinal_logits, open_task
from tests.support.tiny_checkpoints import WRITERS
from tests.support.tiny_tokenizers import SENTENCES

SETS = {
    "tags": HeadSet("multilabel", "labels", 32, 1),
    "stars": HeadSet("ordinal", "stars", 32, 1, source="tags", labels_beside="beside"),
    "score": HeadSet("regression", "score", 32, 1, source="tags"),
    "topic": HeadSet("softmax", "label", 32, 1, source="tags"),
    "mood": HeadSet("sigmoid", "sentiment", 32, 1, source="tags"),
}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    (path / "bert").mkdir()
    WRITERS["bert"](path / "bert")
    rows = [
        {
            "text": f"{text} {'Really. ' * number}",
            "labels": ["late"] if number % 2 else ["late", "kind"] if number % 3 else [],
            "score": number / 10,
            "label": "abc"[number % 3],
            "sentiment": None if number == 5 else number % 2,
        }
        for number in range(6)
        for text in SENTENCES
    ]
    for split, found in (("train", rows), ("dev", [*rows[::4], {**rows[0], "labels": ["new"], "label": "new"}])):
        write(path / f"tags_{split}.jsonl.gz", found)
        write(path / f"beside_{split}.jsonl.gz", [{"stars": number % 5 + 1} for number in range(len(found))])
    return path


@pytest.fixture
def opened(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Task:
    overrides = [f"model.backbone={folder / 'bert'}", "training.batch_size=16"]
    return open_task(folder, request.param, SETS[request.param], tmp_path, overrides=overrides)


CASES = [(name, system) for name, one in SETS.items() for system in head_systems.systems_of(one.kind)]


@pytest.mark.parametrize(("opened", "system"), CASES, indirect=["opened"])
def test_system_learns_and_is_scored(opened: Task, system: str, tmp_path: Path) -> None:
    learned = head_systems.SYSTEMS[system](opened, tmp_path)
    scores = opened.scores(learned.logits)
    tuned = {"tuned_micro_f1", "tuned_macro_f1"} if opened.kind == "multilabel" else set()
    assert set(scores) == {*METRICS[opened.kind], *tuned}
    assert len(learned.logits["test"]) == len(opened.data.test)
    assert np.isfinite(learned.logits["validation"]).all()


@pytest.mark.parametrize("opened", ["score"], indirect=True)
def test_trainer_predicts_in_the_order_of_the_rows(opened: Task, tmp_path: Path) -> None:
    turned = replace(opened, data=replace(opened.data, test=opened.data.test[::-1]))
    first, second = (head_systems.transformers_trainer(task, tmp_path).logits["test"] for task in (opened, turned))
    assert np.ptp(first) > 0
    np.testing.assert_allclose(first, second[::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("opened", "system"),
    [(name, system) for name in ("topic", "mood") for system in domains.SYSTEMS],
    indirect=["opened"],
)
def test_domain_systems_are_scored(opened: Task, system: str, tmp_path: Path) -> None:
    figures = domains.SYSTEMS[system](opened, tmp_path, True)
    assert 0 <= figures["scores"]["accuracy"] <= 1
    assert ("window_scores" in figures) == (system != domains.SVM)


@pytest.mark.parametrize("opened", ["tags", "topic"], indirect=True)
def test_labels_without_training_rows_are_left_out_of_the_test(opened: Task) -> None:
    if opened.kind == "multilabel":
        assert opened.data.test[-1].labels == ((),)
    else:
        assert {row.labels[0] for row in opened.data.test} <= {"a", "b", "c"}


@pytest.mark.parametrize("opened", ["topic"], indirect=True)
def test_short_text_has_one_window(opened: Task, tmp_path: Path) -> None:
    model, _ = head_systems.fine_tune(opened, tmp_path)
    task = replace(opened, data=replace(opened.data, test=opened.data.test[:2]))
    plain = head_systems.head_logits(model, task.prepared.splits["test"])
    np.testing.assert_allclose(domains.window_logits(model, task, tmp_path), plain, atol=1e-5)


def test_probabilities_of_a_classifier_predict_their_median() -> None:
    logits = as_ordinal_logits(np.array([[0.4, 0.3, 0.3], [0.6, 0.2, 0.2]]))
    assert ((logits > 0).sum(axis=1) == [1, 0]).all()


def test_number_predicts_the_nearest_label() -> None:
    logits = number_as_ordinal_logits(np.array([0.0, 2.4, 2.6, 9.0]), ["1", "2", "3"])
    assert (logits > 0).sum(axis=1).tolist() == [0, 1, 2, 2]
