from __future__ import annotations

import pytest
from polyhead_training.config import HeadConfig
from polyhead_training.data.labels import read_label

TOPIC = HeadConfig(name="topic", kind="softmax", field="label", labels=("Sports", "World"))
OPEN = HeadConfig(name="topic", kind="softmax", field="label")
SENTIMENT = HeadConfig(name="sentiment", kind="sigmoid", labels=("negative", "positive"))


@pytest.mark.parametrize("head", [TOPIC, OPEN, SENTIMENT])
def test_missing_value_means_no_label(head: HeadConfig) -> None:
    assert read_label(head, None) is None


@pytest.mark.parametrize("value", [1, 1.0, True, "1", "true", "TRUE", "positive"])
def test_sigmoid_label_has_many_spellings(value: object) -> None:
    assert read_label(SENTIMENT, value) == "positive"


@pytest.mark.parametrize("value", [0, 0.0, False, "0", "False", "negative"])
def test_sigmoid_label_of_zero_is_the_first(value: object) -> None:
    assert read_label(SENTIMENT, value) == "negative"


def test_softmax_label_may_be_an_integer() -> None:
    assert read_label(OPEN, 3) == "3"


@pytest.mark.parametrize(
    ("head", "value", "message"),
    [
        (
            TOPIC,
            "Sport",
            r"field 'label': 'Sport' is not a valid label of head 'topic': did you mean 'Sports'\?.*Sports, World",
        ),
        (TOPIC, "WORLD", "did you mean 'World'"),
        (TOPIC, "", "the label is empty"),
        (TOPIC, "zebra", r"head 'topic': \(labels: Sports, World\)"),
        (OPEN, "good \ud83d", r"field 'label': '\\ud83d' is a lone surrogate; write the complete character"),
        (OPEN, 1.5, "1.5 is a float"),
        (OPEN, True, "True is a bool"),
        (OPEN, ["Sports"], "is a list"),
        (SENTIMENT, 2, r"field 'sentiment': '2' is not a valid label.*negative, positive, 0, 1, true, false"),
        (SENTIMENT, "positiv", "did you mean 'positive'"),
        (SENTIMENT, 0.5, "'0.5' is not a valid label"),
    ],
)
def test_invalid_label_error_names_field_value_and_labels(head: HeadConfig, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_label(head, value)
