"""A model that matches its graph and makes no sense fails its gate, or is reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from polyhead_bundle import Check, Head
from polyhead_export import gate, plausibility
from polyhead_export.errors import ImplausibleModelError
from polyhead_export.eval_data import EvalData
from polyhead_export.runners import Outputs, torch_runner
from polyhead_export.settings import Settings
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.model import PolyheadModel

from tests.support.tiny_model import make_model

LIMITS = Settings().limits_of("fp32")
HEADS = (
    Head("topic", "softmax", "logits", ("app", "billing", "support")),
    Head("sentiment", "sigmoid", "sentiment_logits", ("negative", "positive"), threshold=0.5),
)
GOLDEN = [[2, 3], [2, 9, 10, 3], [2, *range(20, 50), 3]]


def outputs(rows: list[list[float]], name: str = "logits") -> list[Outputs]:
    return [{name: np.array([row], np.float32)} for row in rows]


def values(checks: object) -> dict[str, float]:
    assert isinstance(checks, tuple | list)
    return {check.name: check.value for check in checks}


def eval_data(targets: list[int], logits: Sequence[Sequence[float]]) -> EvalData:
    reference = {"logits": np.array(logits, np.float32)}
    return EvalData([[2, 3]] * len(targets), (np.array(targets),), reference, 0)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 2, 3], [1, 2, 4], [0, 2, 3]], 0),
        ([[1, 2, 3], [1, 2, 3], [0, 2, 3]], 0.5),
        ([[1, 2, 3], [1, 2, 3], [1, 2, 3 + 1e-7]], 1),
        ([[1e6, 0, 0], [1e6, 0, 0.1], [1e6, 0, 0.2]], 1),
    ],
)
def test_share_of_identical_outputs(rows: list[list[float]], expected: float) -> None:
    found = values(list(plausibility.measure(outputs(rows), (), LIMITS)))
    assert found == {"identical_outputs.logits": expected}


def _constant_head(model: PolyheadModel) -> None:
    torch.nn.init.zeros_(model.get_parameter("heads.topic.layers.4.weight"))


def _constant_backbone(model: PolyheadModel) -> None:
    for table in (model.backbone.embeddings.word_embeddings, model.backbone.embeddings.position_embeddings):
        torch.nn.init.zeros_(table.weight)


def _not_a_number(model: PolyheadModel) -> None:
    model.backbone.embeddings.word_embeddings.weight.data[9] = float("nan")


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (_constant_head, r"identical_outputs\.logits is 1 \(limit 0\.5\)"),
        (_constant_backbone, r"identical_outputs\.sentence_embedding is 1 \(limit 0\.5\)"),
        (_not_a_number, r"identical_outputs\.sentence_embedding is nan"),
    ],
)
def test_model_without_sense_fails_its_gate(graph_file: Path, damage: object, check: str) -> None:
    assert callable(damage)
    model = make_model()
    damage(model)
    # A graph with the outputs of the model, without the seconds that it takes to trace one.
    checks = gate.measure(graph_file, model, GOLDEN, HEADS, graph=torch_runner(model), reference=torch_runner(model))
    with pytest.raises(ImplausibleModelError, match=check):
        gate.require_passed("fp32", checks)


def test_predictions_are_judged_on_evaluation_data() -> None:
    data = eval_data([0] * 15 + [1] * 5 + [UNLABELLED] * 9, [[1, 0, 0]] * 10 + [[0, 1, 0]] * 19)
    found = tuple(plausibility.measure(outputs([[1, 0, 0]]), HEADS[:1], LIMITS, data))
    assert values(found) == {
        "identical_outputs.logits": 0,
        "label_share.topic": 0.5,
        # 15 of 20 rows have the label 0; 10 + 5 predictions are correct.
        "majority_gap.topic": 0,
    }
    assert plausibility.warnings(found) == [
        "head 'topic' is no better on the evaluation data than its most frequent label"
    ]


@pytest.mark.parametrize("targets", [[0] * 10 + [1] * 9, [0] * 40, [UNLABELLED] * 40])
def test_too_few_rows_or_labels_are_not_judged(targets: list[int]) -> None:
    data = eval_data(targets, [[1, 0, 0]] * len(targets))
    found = values(list(plausibility.measure(outputs([[1, 0, 0], [0, 1, 0]]), HEADS[:1], LIMITS, data)))
    assert found["label_share.topic"] == 0.5
    assert "majority_gap.topic" not in found


def test_single_predicted_label_is_reported() -> None:
    share, gap = Check("label_share.topic", 1, 1), Check("majority_gap.topic", 0.1, 1)
    golden = "head 'topic' predicts the same label for all golden texts; check it on your own texts with --eval-data"
    assert plausibility.warnings([share]) == [golden]
    # Promises are compared with few rows of evaluation data, too.
    promises = [Check("promise_gap.topic", 0, 1), Check("set_coverage_gap.topic", 0, 1)]
    assert plausibility.warnings([share, *promises]) == [golden]
    assert plausibility.warnings([share, gap]) == [
        "head 'topic' predicts the same label for every row of the evaluation data",
        "head 'topic' is no better on the evaluation data than its most frequent label",
    ]
    assert plausibility.warnings([Check("label_share.topic", 0.9, 1), Check("majority_gap.topic", -0.1, 1)]) == []


def test_limits_can_be_set() -> None:
    limits = Settings(limits={"fp32": {"label_share": 0.9, "majority_gap": -0.1}}).limits_of("fp32")
    data = eval_data([0, 1] * 20, [[1, 0, 0]] * 40)
    checks = tuple(plausibility.measure(outputs([[1, 0, 0]]), HEADS[:1], limits, data))
    assert {check.name for check in checks if not check.passed} == {"label_share.topic", "majority_gap.topic"}
