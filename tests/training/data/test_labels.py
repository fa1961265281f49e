from __future__ import annotations

from decimal import Decimal

import pytest
from polyhead_training.data.labels import read_label
from polyhead_training.model_config import HeadConfig

TOPIC = HeadConfig(name="topic", kind="softmax", field="label", labels=("Sports", "World"))
OPEN = HeadConfig(name="topic", kind="softmax", field="label")
SENTIMENT = HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive"))


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "true", "TRUE", "positive"])
def test_sigmoid_label_has_many_spellings(value: object) -> None:
    assert read_label(SENTIMENT, value) == "positive"


@pytest.mark.parametrize("value", [0, 0.0, False, "0", "False", "negative"])
def test_sigmoid_label_of_zero_is_the_first(value: object) -> None:
    assert read_label(SENTIMENT, value) == "negative"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("3", [3, 3.0, "3", "3.0", "3.00", Decimal(3), Decimal("3.00"), Decimal("0.3E1")]),
        ("0", [0, 0.0, -0.0, "0", "0.0", "-0.0", Decimal("0E-10")]),
        ("-2", [-2, -2.0, "-2.0", Decimal("-2.0")]),
        ("1.5", [1.5, "1.5", Decimal("1.5")]),
        ("0.001", [0.001, "0.001", Decimal("0.001"), Decimal("1E-3")]),
        ("100", [100, 1e2, Decimal("1E+2")]),
        ("v1.0", ["v1.0"]),
        ("007", ["007"]),
        ("1.0.0", ["1.0.0"]),
        ("1e5", ["1e5"]),
        ("true", [True, "true", "True", "TRUE"]),
        ("false", [False, "false", "False"]),
    ],
)
def test_equal_values_have_one_name_in_every_format(name: str, values: list[object]) -> None:
    assert {read_label(OPEN, value) for value in values} == {name}


def test_configured_labels_keep_their_spelling() -> None:
    head = HeadConfig(name="version", kind="softmax", labels=("1.0", "1.5", "True"))
    assert [read_label(head, value) for value in (1, "1", "1.0", Decimal("1.00"), 1.5, "true", True)] == [
        "1.0",
        "1.0",
        "1.0",
        "1.0",
        "1.5",
        "True",
        "True",
    ]


@pytest.mark.parametrize(
    ("head", "value", "message"),
    [
        (
            TOPIC,
            "Sport",
            r"field 'label': 'Sport' is not a valid label of head 'topic': did you mean 'Sports'\?.*Sports, World",
        ),
        (TOPIC, "WORLD", "did you mean 'World'"),
        (TOPIC, "  ", "the label '  ' is blank"),
        (OPEN, "\u3000", r"the label '\\u3000' is blank"),
        (TOPIC, "zebra", r"head 'topic': \(labels: Sports, World\)"),
        (TOPIC, "Sports\u200b", r"'Sports\\u200b' is not a valid label of head 'topic': did you mean 'Sports'"),
        (OPEN, ["Sports"], "is a list"),
        (OPEN, b"Sports", "is a bytes"),
        (OPEN, float("inf"), "inf is a float"),
        (OPEN, ["x" * 1000], r"field 'label': \['xxx.{10,40}xxx'\] is a list"),
        (SENTIMENT, 2, r"field 'sentiment': '2' is not a valid label.*negative, positive, 0, 1, false, true"),
        (SENTIMENT, "positiv", "did you mean 'positive'"),
        (SENTIMENT, 0.5, "'0.5' is not a valid label"),
    ],
)
def test_invalid_label_error_names_field_value_and_labels(head: HeadConfig, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_label(head, value)
