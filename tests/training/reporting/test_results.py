"""Results are read completely, or an error names the damaged file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from polyhead_training.errors import RunError
from polyhead_training.reporting.results import implausible, read_evaluation, read_results


def test_results_contain_every_file_of_the_run(finished_run: Path) -> None:
    found = read_results(finished_run)
    assert found.run["name"] == "tiny"
    assert [head["name"] for head in found.heads] == ["topic", "sentiment", "urgent"]
    assert sorted(found.splits) == ["test", "validation"]
    assert found.similarity is not None
    assert found.similarity["pairs"] == 40
    assert found.metrics[-1]["step"] == 30
    assert found.data is not None


def test_optional_files_may_be_missing(finished_run: Path) -> None:
    (finished_run / "data.json").unlink()
    (finished_run / "metrics.jsonl").unlink()
    found = read_results(finished_run)
    assert (found.data, found.metrics) == (None, [])


def test_best_split_is_test_unless_it_has_no_labels(finished_run: Path) -> None:
    found = read_results(finished_run)
    assert found.best_split("topic") == "test"
    assert found.best_split("urgent") is None
    found.splits["test"]["topic"]["rows"] = 0
    assert found.best_split("topic") == "validation"
    del found.splits["test"]
    assert found.best_split("sentiment") == "validation"


@pytest.mark.parametrize("name", ["run.json", "evaluation.json"])
def test_missing_file_is_named(finished_run: Path, name: str) -> None:
    (finished_run / name).unlink()
    with pytest.raises(RunError, match=rf"{name}: is missing; train again"):
        read_results(finished_run)


@pytest.mark.parametrize("name", ["run.json", "evaluation.json", "data.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_file_is_named(finished_run: Path, name: str, content: str) -> None:
    (finished_run / name).write_text(content)
    with pytest.raises(RunError, match=rf"{name}: is not (valid JSON|a JSON object|a valid evaluation)"):
        read_results(finished_run)


@pytest.mark.parametrize(
    "content", [{"test": 1}, {"test": {"topic": {}}}, {"test": {"topic": 3}}, {"similarity": {}}, {"similarity": []}]
)
def test_evaluation_of_another_shape_is_rejected(tmp_path: Path, content: object) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"evaluation\.json: is not a valid evaluation"):
        read_evaluation(path)


def _found(accuracy: float, answered: list[int], rows: int = 40, majority: float | None = 0.6) -> dict[str, Any]:
    labels = {f"label {number}": {"answered": count} for number, count in enumerate(answered)}
    return {"test": {"topic": {"rows": rows, "accuracy": accuracy, "majority_baseline": majority, "labels": labels}}}


def test_head_that_learned_nothing_is_reported() -> None:
    assert list(implausible(_found(0.6, [0, 40]))) == ["test: head 'topic' predicts 'label 1' for each of the 40 rows"]
    assert list(implausible(_found(0.55, [30, 10]))) == [
        "test: head 'topic' is no better than its most frequent label (accuracy 55.0%, baseline 60.0%)"
    ]


@pytest.mark.parametrize(
    "found", [_found(0.61, [30, 10]), _found(0.5, [0, 19], 19), _found(1, [40, 0], majority=1), {"test": {}}]
)
def test_head_that_learned_something_or_cannot_be_judged_is_not_reported(found: dict[str, Any]) -> None:
    assert list(implausible(found)) == []


def _other(kind: str, **found: Any) -> dict[str, Any]:
    return {"test": {"any": {"rows": 40, "kind": kind, **found}}}


_SOME = {"a": {"answered": 20}, "b": {"answered": 5}}
_ONE = {"a": {"answered": 40}, "b": {"answered": 0}}
_NONE = {"a": {"answered": 0}, "b": {"answered": 0}}


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (_other("multilabel", labels=_NONE), "predicts no label for any of the 40 rows"),
        (
            _other("multilabel", labels=_SOME, micro_f1=0.3, majority_baseline=0.3),
            r"is no better than its most frequent label \(micro-F1 30.0%, baseline 30.0%\)",
        ),
        (_other("ordinal", labels=_ONE, majority_baseline=0.6, qwk=0.0), "predicts 'a' for each of the 40 rows"),
        (_other("ordinal", labels=_SOME, majority_baseline=0.6, qwk=-0.1), "does not follow the order of its labels"),
        (_other("regression", r2=-0.5, pearson=None), "predicts the same number for each of the 40 rows"),
        (_other("regression", r2=-0.02, pearson=0.1), r"is no better than the mean of the numbers \(R2 -0.020\)"),
    ],
)
def test_other_head_that_learned_nothing_is_reported(found: dict[str, Any], reason: str) -> None:
    (line,) = implausible(found)
    assert re.search(f"test: head 'any' {reason}", line)


@pytest.mark.parametrize(
    "found",
    [
        _other("multilabel", labels=_SOME, micro_f1=0.4, majority_baseline=0.3),
        # The median of a skewed distribution is less accurate than its most frequent label.
        _other("ordinal", labels=_SOME, majority_baseline=0.6, accuracy=0.5, qwk=0.4),
        _other("ordinal", labels=_ONE, majority_baseline=1, qwk=None),
        _other("regression", r2=0.2, pearson=0.5),
        _other("regression", r2=None, pearson=None),
    ],
)
def test_other_head_that_learned_something_is_not_reported(found: dict[str, Any]) -> None:
    assert list(implausible(found)) == []
