from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from polyhead_training.config import Config
from polyhead_training.data.dataset import read_data
from polyhead_training.data.preparation import prepare
from polyhead_training.evaluation.probabilities import log_probabilities
from polyhead_training.loop.fit import HeadFitter
from polyhead_training.loop.loss import Objective
from polyhead_training.loop.stages import Stage
from polyhead_training.model import PolyheadModel
from polyhead_training.predict import predict
from polyhead_training.train import build_model
from sklearn.linear_model import LogisticRegression

from tests.support.tiny_training import metric_lines

HEADS = (
    "model.heads=[{name='topic', kind='softmax', field='label', hidden_size=0}, "
    "{name='sentiment', kind='sigmoid', labels=['negative', 'positive'], hidden_size=0}]"
)


def stages(penalty: float) -> str:
    return f"training.stages=[{{name='fit', train=['heads'], solver='lbfgs', penalty={penalty}}}]"


def fit(config: Config, build_objective: Callable[..., Objective] = Objective) -> tuple[PolyheadModel, Any, Any]:
    """Fits the heads; returns the model, the training rows and the accelerator."""
    prepared = prepare(config, read_data(config))
    rows, heads = prepared.splits["train"], prepared.data.heads
    torch.manual_seed(0)
    model = build_model(config, prepared.backbone, heads)
    accelerator = Accelerator(cpu=True)
    HeadFitter(
        stage=Stage(model, config.training.stages[0], 1),
        model=model,
        objective=build_objective(heads, config.training, rows.labels),
        accelerator=accelerator,
        rows=rows,
        batch_size=4,
        features=None,
    ).take(list(range(len(rows))), False, str)
    return model, rows, accelerator


@pytest.mark.parametrize("penalty", [0.1, 1.0])
def test_linear_head_on_embeddings_is_scikit_learns_logistic_regression(
    configure: Callable[..., Config], penalty: float
) -> None:
    config = configure(HEADS, stages(penalty), "model.pooling=embedding")
    model, rows, accelerator = fit(config)
    with torch.no_grad():
        batch = rows.batch(list(range(len(rows))), torch.device("cpu"))
        embedding = model(batch.input_ids, batch.attention_mask).sentence_embedding.numpy().astype(np.float64)
    logits = predict(model, rows, 4, accelerator)
    for column, (name, kind) in enumerate([("topic", "softmax"), ("sentiment", "sigmoid")]):
        # The stage's loss is the sum of both heads' means, so each head is fitted as if it were alone.
        reference = LogisticRegression(C=1.0 / penalty, tol=1e-10, max_iter=10_000)
        reference.fit(embedding, rows.labels.heads[column])
        expected = reference.predict_log_proba(embedding)
        found = log_probabilities(kind, logits[name])  # type: ignore[arg-type]  # a list of names and kinds
        # A fit in float32, of a random model; with a penalty 1.3 times as large the test fails.
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_stage_of_a_run_fits_in_one_step_and_is_logged_once(configure: Callable[..., Config], tmp_path: Path) -> None:
    from polyhead_training.train import train

    config = configure(HEADS, stages(1.0))
    messages: list[str] = []
    evaluation = train(config, tmp_path / "run", report=messages.append)
    assert evaluation is not None
    assert "stage fit: fit of the heads by L-BFGS, penalty 1" in messages
    (epoch,) = [line for line in metric_lines(tmp_path / "run") if "validation" in line]
    assert (epoch["step"], epoch["stage"]) == (1, "fit")


def test_backbone_and_pooling_stay_as_they_were(configure: Callable[..., Config]) -> None:
    config = configure(HEADS, stages(1.0))
    prepared = prepare(config, read_data(config))
    torch.manual_seed(0)
    before = build_model(config, prepared.backbone, prepared.data.heads).state_dict()
    after = fit(config)[0].state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("heads.")}


def test_fit_leaves_no_gradient_to_the_next_stage(configure: Callable[..., Config]) -> None:
    objectives: list[Objective] = []

    def build_objective(*arguments: Any) -> Objective:
        objectives.append(Objective(*arguments))
        return objectives[0]

    later = "{name='all', train=['all'], learning_rate=1e-3}"
    both = stages(1.0).removesuffix("]") + f", {later}]"
    model, _, _ = fit(configure(HEADS, both, "training.loss_weighting=uncertainty"), build_objective)
    parameters = [*model.parameters(), *objectives[0].parameters()]
    assert objectives[0].log_variances is not None
    assert all(parameter.grad is None for parameter in parameters)
