from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pytest
import torch
from polyhead_training.data.labels import UNLABELLED
from polyhead_training.data.target_tensors import Targets
from polyhead_training.data.targets import Target, label_values, read_target, target_labels
from polyhead_training.model_config import HeadConfig

TAGS = HeadConfig(name="tags", kind="multilabel", labels=("late", "broken", "rude|angry"))
OPEN_TAGS = HeadConfig(name="tags", kind="multilabel")
STARS = HeadConfig(name="stars", kind="ordinal")
GRADES = HeadConfig(name="grade", kind="ordinal", labels=("low", "medium", "high"))
HALVES = HeadConfig(name="stars", kind="ordinal", labels=("0", "0.5", "1"))
PRICE = HeadConfig(name="price", kind="regression")
TOPIC = HeadConfig(name="topic", kind="softmax")
EVERY_KIND = (TAGS, STARS, GRADES, PRICE, TOPIC, HeadConfig(name="yes", kind="sigmoid", labels=("no", "yes")))


@pytest.mark.parametrize("head", EVERY_KIND)
@pytest.mark.parametrize("value", [None, "", float("nan")])
def test_missing_value_is_no_answer(head: HeadConfig, value: object) -> None:
    assert read_target(head, value) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["late", "broken"], ("broken", "late")),
        (("broken",), ("broken",)),
        ([], ()),
        ("[]", ()),
        ('["late", "broken"]', ("broken", "late")),
        ("late|broken", ("broken", "late")),
        ("late | broken", ("broken", "late")),
        ("late", ("late",)),
        ("rude|angry", ("rude|angry",)),
        (["late", "late"], ("late",)),
    ],
)
def test_list_of_labels_has_many_spellings(value: object, expected: tuple[str, ...]) -> None:
    assert read_target(TAGS, value) == expected


def test_separator_of_text_lists_can_be_set() -> None:
    head = HeadConfig(name="tags", kind="multilabel", separator=", ")
    assert read_target(head, "late, broken") == ("broken", "late")
    assert read_target(head, "late|broken") == ("late|broken",)


def test_elements_of_a_list_are_named_as_labels() -> None:
    assert read_target(OPEN_TAGS, [1.0, "2.0", True]) == ("1", "2", "true")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["late", "brokn"], r"field 'tags': 'brokn' is not a valid label of head 'tags': did you mean 'broken'\?"),
        ("late|brokn", "'brokn' is not a valid label"),
        (["late", None], r"\['late', None\] has an element without a label \(None\); remove the element"),
        ("late||broken", r"has an element without a label \(''\)"),
        ("late, broken", r"'late, broken' is not a valid label .* but a list of them; set its separator = \",\", or"),
        ('["late"', r"is not a valid JSON list .*; write \[\"a\", \"b\"\]"),
        ([["late"]], "a list; labels must be strings, numbers or booleans"),
        ({"late": 1}, "a dict; labels must be"),
    ],
)
def test_invalid_list_is_rejected(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_target(TAGS, value)


@pytest.mark.parametrize("value", [4, 4.0, "4", "4.0", Decimal("4.00"), " 4 ", "04"])
def test_number_is_one_label_in_every_spelling(value: object) -> None:
    assert read_target(STARS, value) == "4"


def test_configured_numbers_are_labels_as_they_are_written() -> None:
    assert [read_target(HALVES, value) for value in (0, "0.50", 1.0)] == ["0", "0.5", "1"]


def test_ordered_names_are_labels() -> None:
    assert read_target(GRADES, "medium") == "medium"


@pytest.mark.parametrize(
    ("head", "value", "message"),
    [
        (STARS, "five", "field 'stars': 'five' is not a number.*write a number such as 5, or name the labels in their"),
        (STARS, True, "True is not a number"),
        (STARS, "inf", "'inf' is not a number"),
        (HALVES, "half", r"'half' is not a number.*write a number such as 5 \(labels: 0, 0.5, 1\)"),
        (HALVES, 2, r"2 is not a valid label.*correct it, or add it to labels \(labels: 0, 0.5, 1\)"),
        (GRADES, "hgh", r"did you mean 'high'\?"),
        (STARS, [5], r"\[5\] is not a number"),
        (GRADES, ["low"], r"is a list, but head 'grade' \(ordinal\) has one label per row; .*kind = \"multilabel\""),
        (TOPIC, ["a"], r"is a list, but head 'topic' \(softmax\)"),
        (PRICE, "cheap", "field 'price': 'cheap' is not a finite number for head 'price'; write a finite number"),
        (PRICE, "1e999", "is not a finite number"),
        (PRICE, False, "False is not a finite number"),
    ],
)
def test_invalid_answer_is_rejected_with_the_fix(head: HeadConfig, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_target(head, value)


@pytest.mark.parametrize("value", [19.5, "19.5", Decimal("19.5")])
def test_number_of_a_regression_head_has_many_spellings(value: object) -> None:
    assert read_target(PRICE, value) == 19.5


@pytest.mark.parametrize(
    ("target", "labels"), [("a", ("a",)), (("a", "b"), ("a", "b")), ((), ()), (0.0, ()), (None, ())]
)
def test_labels_of_an_answer(target: Target | None, labels: tuple[str, ...]) -> None:
    assert target_labels(target) == labels


@pytest.mark.parametrize(
    ("labels", "values"), [(("1", "10", "2.5"), [1, 10, 2.5]), (("low", "high"), [1, 2]), (("1", "many"), [1, 2])]
)
def test_values_of_ordered_labels(labels: Sequence[str], values: list[float]) -> None:
    assert label_values(labels) == values


def _encode() -> Targets:
    heads = (TAGS, GRADES, PRICE)
    return Targets.encode([(("broken",), "high", 1.5), ((), None, None), (None, "low", 0.0)], heads)


def test_answers_are_one_tensor_per_head() -> None:
    tags, grades, prices = _encode().heads
    assert tags.tolist() == [[0, 1, 0], [0, 0, 0], [UNLABELLED] * 3]
    assert grades.tolist() == [2, UNLABELLED, 0]
    assert prices[[0, 2]].tolist() == [1.5, 0.0]
    assert prices[1].isnan()


def test_empty_list_and_zero_are_answers() -> None:
    assert _encode().labelled().tolist() == [[True, True, True], [True, False, False], [False, True, True]]


def test_rows_are_selected_in_order() -> None:
    chosen = _encode().rows([2, 0])
    assert len(chosen) == 2
    assert chosen.heads[1].tolist() == [0, 2]


def test_rows_without_heads_are_counted() -> None:
    assert Targets((), 3).labelled().shape == torch.Size([3, 0])
