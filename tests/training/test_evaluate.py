from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from polyhead_training.backbone import find_backbone
from polyhead_training.batching import EncodedRows, encode_rows
from polyhead_training.config import Config
from polyhead_training.data import read_data
from polyhead_training.evaluate import HeadScore, evaluate, predict, score, table
from polyhead_training.loss import UNLABELLED
from polyhead_training.train import build_model


def test_softmax_score_counts_the_largest_logit_over_labelled_rows() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 5.0], [9.0, 0.0, 0.0], [2.0, 1.0, 0.0]])
    labels = torch.tensor([1, 0, 2, UNLABELLED, 1])
    assert score("softmax", logits, labels) == HeadScore(rows=4, accuracy=0.75, majority_baseline=0.5)


def test_sigmoid_score_takes_one_half_as_yes() -> None:
    logits = torch.tensor([[0.0], [-0.001], [4.0], [-4.0], [1.0]])
    labels = torch.tensor([1, 0, 1, 0, 0])
    assert score("sigmoid", logits, labels) == HeadScore(rows=5, accuracy=0.8, majority_baseline=0.6)


def test_score_without_labelled_rows_has_no_accuracy() -> None:
    assert score("sigmoid", torch.zeros(2, 1), torch.full((2,), UNLABELLED)) == HeadScore(0, None, None)


def test_predictions_do_not_depend_on_how_rows_are_grouped(configure: Callable[..., Config]) -> None:
    config = configure()
    backbone, data = find_backbone(config), read_data(config)
    model = build_model(config, backbone, data.heads)
    rows = encode_rows(data.train, data.heads, backbone.tokenizer, 32, backbone.pad_token_id)
    assert len(set(map(len, rows.ids))) > 3
    one_by_one, grouped, at_once = (predict(model, rows, size) for size in (1, 5, 100))
    for name in ("topic", "sentiment"):
        torch.testing.assert_close(grouped[name], one_by_one[name], atol=1e-5, rtol=0)
        torch.testing.assert_close(at_once[name], one_by_one[name], atol=1e-5, rtol=0)
    assert (one_by_one["topic"].std(dim=0) > 1e-4).all()


def test_evaluating_no_rows_gives_no_accuracy(configure: Callable[..., Config]) -> None:
    config = configure()
    data = read_data(config)
    model = build_model(config, find_backbone(config), data.heads)
    empty = EncodedRows([], torch.zeros(0, 2, dtype=torch.int64), pad_token_id=0)
    nothing = HeadScore(0, None, None)
    assert evaluate(model, empty, data.heads, 4) == {"topic": nothing, "sentiment": nothing}


@pytest.mark.parametrize(
    ("found", "figures"),
    [(HeadScore(1234, 0.5, 0.25), ["1,234", "0.5000", "0.2500"]), (HeadScore(0, None, None), ["0", "-", "-"])],
)
def test_table_has_a_line_for_each_split_and_head(found: HeadScore, figures: list[str]) -> None:
    lines = table({"test": {"topic": found}})
    assert [line.split() for line in lines[1:]] == [["test", "topic", *figures]]
