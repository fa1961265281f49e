from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from polyhead_training.sweep.space import Parameter, overrides, parse_choice, parse_range


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=0.1..0.5", FloatDistribution(0.1, 0.5)),
        ("a.b=1e-5..1:log", FloatDistribution(1e-5, 1.0, log=True)),
        ("a.b=-1..4", IntDistribution(-1, 4)),
        ("a.b=8..128:log", IntDistribution(8, 128, log=True)),
    ],
)
def test_range_has_whole_numbers_if_both_limits_are(text: str, expected: object) -> None:
    assert (parse_range(text).key, parse_range(text).distribution()) == ("a.b", expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "write KEY=LOW..HIGH"),
        ("=1..2", "write KEY=LOW..HIGH"),
        ("a=1", "write KEY=LOW..HIGH"),
        ("a=one..two", "one and two must be numbers"),
        ("a=2..1", "is empty"),
        ("a=1..1", "is empty"),
        ("a=1..nan", "is empty"),
        ("a=1..inf", "is empty"),
        ("a=0..1:log", "must start above 0"),
        ("a=1..2:linear", "must be numbers"),
    ],
)
def test_invalid_range_names_the_fix(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_range(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=none,ema, swa", ('"none"', '"ema"', '"swa"')),
        ("a=1,2.5,true", ("1", "2.5", "true")),
        ("a='x,y','z'", ('"x,y"', '"z"')),
        ("a=['heads'],['heads', 'layers:2']", ('["heads"]', '["heads", "layers:2"]')),
    ],
)
def test_choice_holds_toml_values_or_words(text: str, expected: tuple[str, ...]) -> None:
    assert parse_choice(text) == Parameter("a", choices=expected)
    assert parse_choice(text).distribution() == CategoricalDistribution(expected)


@pytest.mark.parametrize("text", ["a", "a=", "a=1", "=1,2"])
def test_invalid_choice_names_the_fix(text: str) -> None:
    with pytest.raises(ValueError, match="at least two values"):
        parse_choice(text)


def test_overrides_are_toml() -> None:
    assert overrides({"a.0.b": '"no"', "c": 0.5, "d": 3}) == ['a.0.b="no"', "c=0.5", "d=3"]
