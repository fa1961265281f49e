"""The choice of texts: its shares, its reasons, and that weights of 1 / probability make estimates unbiased."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from statistics import mean

import polyhead_bundle as bundle
import pytest
from polyhead_server.collection.selection import (
    LOW_CONFIDENCE,
    NOVEL,
    RANDOM,
    Choice,
    LowestValues,
    Selection,
    Shares,
)

SHARE = 0.05
TOPIC = bundle.Head("topic", "softmax", "logits", ("a", "b"))
SENTIMENT = bundle.Head("sentiment", "sigmoid", "sentiment_logits", ("no", "yes"), threshold=0.5)
TAGS = bundle.Head("tags", "multilabel", "tags_logits", ("a", "b"), thresholds=(0.5, 0.5))


class Traffic:
    """Texts of random confidence and novelty, and the choices among them; the less confident, the more often wrong."""

    def __init__(self, count: int, seed: int) -> None:
        self.draw = random.Random(seed).random
        self.shares = Shares.divide(SHARE, [TOPIC], has_novelty=True)
        self.selection = Selection(self.shares, self.draw)
        self.errors = 0
        self.count = count

    def collect(self) -> Iterator[tuple[Choice, float, float, bool]]:
        """Yields the choice, confidence and novelty of each collected text, and whether its prediction is wrong."""
        for number in range(self.count):
            confidence, novelty = 0.5 + self.draw() / 2, self.draw()
            is_wrong = self.draw() > confidence
            self.errors += is_wrong
            choice = self.choose(f"text {number}", confidence, novelty)
            if choice:
                yield choice, confidence, novelty, is_wrong

    def choose(self, text: str, confidence: float, novelty: float) -> Choice | None:
        is_drawn, is_candidate = self.draw() < self.shares.random, self.draw() < self.shares.candidates
        return self.selection.choose(text, {"topic": confidence}, novelty, is_drawn=is_drawn, is_candidate=is_candidate)


def test_weighted_estimate_is_unbiased_and_the_rows_alone_are_not() -> None:
    estimates, truths, naive = [], [], []
    for seed in range(8):
        traffic = Traffic(20_000, seed)
        rows = list(traffic.collect())
        weights = [(1 / choice.probability, is_wrong) for choice, _, _, is_wrong in rows]
        estimates.append(sum(weight for weight, is_wrong in weights if is_wrong) / traffic.count)
        truths.append(traffic.errors / traffic.count)
        naive.append(sum(is_wrong for *_, is_wrong in rows) / len(rows))
    # About 330 random rows a seed: a standard error of 0.01 over 8 of them.
    assert abs(mean(estimates) - mean(truths)) < 0.03
    assert mean(naive) - mean(truths) > 0.05


def test_sum_of_the_weights_is_the_number_of_texts() -> None:
    traffic = Traffic(40_000, seed=1)
    total = sum(1 / choice.probability for choice, *_ in traffic.collect())
    assert total == pytest.approx(traffic.count, rel=0.1)


def test_each_reason_takes_about_its_third_of_the_share() -> None:
    traffic = Traffic(40_000, seed=2)
    rows = list(traffic.collect())
    found = Counter(reason for choice, *_ in rows for reason in choice.reasons)
    for reason in (RANDOM, LOW_CONFIDENCE, NOVEL):
        assert found[reason] == pytest.approx(traffic.count * SHARE / 3, rel=0.25), reason
    assert len(rows) <= traffic.count * SHARE * 1.1


def test_reasons_choose_what_they_name() -> None:
    rows = list(Traffic(20_000, seed=3).collect())
    low = [confidence for choice, confidence, _, _ in rows if choice.reasons == (LOW_CONFIDENCE,)]
    novel = [novelty for choice, _, novelty, _ in rows if choice.reasons == (NOVEL,)]
    drawn = [confidence for choice, confidence, _, _ in rows if choice.reasons == (RANDOM,)]
    assert max(low) < 0.6 < sum(drawn) / len(drawn)
    assert min(novel) > 0.8


def test_repeated_text_is_chosen_again_by_chance_alone() -> None:
    traffic = Traffic(0, seed=4)
    for number in range(2000):
        traffic.choose(f"text {number}", 0.9 + traffic.draw() / 10, 0.1)
    choices = [traffic.choose("the same", 0.5, 1.0) for _ in range(5000)]
    reasons = [choice.reasons for choice in choices if choice]
    assert sum(one != (RANDOM,) for one in reasons) == 1
    assert len(reasons) > 20
    (probability,) = {choice.probability for choice in choices if choice and choice.reasons == (RANDOM,)}
    assert probability == pytest.approx(SHARE / 3)


def test_many_equal_values_share_the_probability() -> None:
    values = LowestValues(0.1)
    for _ in range(1000):
        values.observe(-1.0)
    assert values.probability(-1.0) == pytest.approx(0.1)
    assert values.probability(-2.0) == 1.0
    assert values.probability(0.0) == 0.0


def test_old_values_are_forgotten() -> None:
    values = LowestValues(0.1)
    for _ in range(2000):
        values.observe(0.2)
    for _ in range(2000):
        values.observe(0.9)
    assert values.probability(0.5) == 1.0


def test_first_texts_are_not_all_collected() -> None:
    traffic = Traffic(100, seed=5)
    assert len(list(traffic.collect())) < 20


@pytest.mark.parametrize(
    ("heads", "has_novelty", "expected"),
    [
        ([TOPIC, SENTIMENT], True, (0.01, {"topic": 0.005, "sentiment": 0.005}, 0.01)),
        ([TOPIC], False, (0.02, {"topic": 0.01}, 0.0)),
        ([TAGS], True, (0.02, {}, 0.01)),
        ([], False, (0.03, {}, 0.0)),
    ],
)
def test_reason_that_a_model_cannot_give_leaves_its_part_to_chance(
    heads: list[bundle.Head], has_novelty: bool, expected: tuple[float, dict[str, float], float]
) -> None:
    shares = Shares.divide(0.03, heads, has_novelty=has_novelty)
    assert shares.random == pytest.approx(expected[0])
    assert shares.confidences == pytest.approx(expected[1])
    assert shares.novelty == pytest.approx(expected[2])
