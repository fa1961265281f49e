"""Chooses texts to collect, and states the probability with which each was chosen.

Three reasons share the rate of ``--collect-share``: a text is drawn at random, a head is less confident in it than in
almost all others, or its novelty is higher than that of almost all others. The last two examine a random part of the
texts, the candidates, and compare each with the candidates before it alone. What is known before a text arrives thus
determines its probability, so that weights of 1 / probability make an estimate from the rows unbiased
(Horvitz and Thompson 1952).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polyhead_bundle as bundle

RANDOM: Final = "random"
LOW_CONFIDENCE: Final = "low_confidence"
NOVEL: Final = "novel"
REASONS: Final = (RANDOM, LOW_CONFIDENCE, NOVEL)

# Kinds of heads whose confidence says how likely the answer is right.
_CONFIDENT_KINDS = {"softmax", "sigmoid", "ordinal"}
# Candidates per collected text: enough to choose from, few enough that examining them costs next to nothing.
_CANDIDATES_PER_TEXT = 10
# Earlier values with which one is compared. The rarest 1 in 30, as with the default share, are some tens of them.
_WINDOW = 1024
# Collected texts that are remembered, so that a client that repeats a text does not fill the files with it.
_REMEMBERED_TEXTS = 4096


@dataclass(frozen=True)
class Shares:
    """The share of all texts that each reason contributes, 0 to 1.

    Attributes:
        random: Share drawn at random.
        confidences: Share of the lowest confidences of each head, by name.
        novelty: Share of the highest novelty; 0 for a model without it.
        candidates: Share of the texts that are examined for confidence and novelty.
    """

    random: float
    confidences: Mapping[str, float]
    novelty: float
    candidates: float

    @classmethod
    def divide(cls, share: float, heads: Sequence[bundle.Head], *, has_novelty: bool) -> Shares:
        """Divides a share into three equal parts; a reason that the model cannot give leaves its part to chance.

        Args:
            share: Share of all texts, above 0 and at most 1.
            heads: The model's heads, among which the part of low confidence is divided equally.
            has_novelty: Whether the model computes the novelty of texts.
        """
        names = [head.name for head in heads if head.kind in _CONFIDENT_KINDS]
        part = share / 3
        confidences = {name: part / len(names) for name in names}
        novelty = part if has_novelty else 0.0
        return cls(
            share - sum(confidences.values()) - novelty, confidences, novelty, min(1.0, _CANDIDATES_PER_TEXT * share)
        )


class LowestValues:
    """Chooses about a share of values, those that are the lowest among the last ones."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def probability(self, value: float) -> float:
        """Returns the probability with which to choose a value: mostly 0 or 1, less for one of many equal values."""
        wanted = self._share * len(self._sorted)
        below = bisect_left(self._sorted, value)
        equal = bisect_right(self._sorted, value) - below
        return min(max((wanted - below) / max(equal, 1), 0.0), 1.0)

    def observe(self, value: float) -> None:
        """Adds a value to those that later ones are compared with, in place of the oldest."""
        if len(self._latest) == _WINDOW:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(value)
        insort(self._sorted, value)


@dataclass(frozen=True)
class Choice:
    """Why a text was chosen.

    Attributes:
        reasons: Those of ``REASONS`` that chose it.
        probability: Probability with which any of them chooses such a text, above 0 and at most 1.
    """

    reasons: tuple[str, ...]
    probability: float


class Selection:
    """Chooses among the texts that one model answers. One thread at a time."""

    def __init__(self, shares: Shares, draw: Callable[[], float]) -> None:
        """Starts without earlier texts to compare with.

        Args:
            shares: The shares of the reasons.
            draw: Returns a random number from 0 to 1, 1 excluded.
        """
        self._shares = shares
        self._draw = draw
        candidates = shares.candidates
        self._confidences = {name: LowestValues(share / candidates) for name, share in shares.confidences.items()}
        self._novelty = LowestValues(shares.novelty / candidates)
        self._remembered: dict[int, None] = {}

    def choose(
        self,
        text: str,
        confidences: Mapping[str, float],
        novelty: float | None,
        *,
        is_drawn: bool,
        is_candidate: bool,
    ) -> Choice | None:
        """Decides whether to collect a text.

        Args:
            text: The text.
            confidences: Confidence of each head of ``Shares.confidences``.
            novelty: Novelty of the text; None for a model without it.
            is_drawn: Whether it was drawn at random.
            is_candidate: Whether it was drawn to be examined for the other reasons.

        Returns:
            The choice; None not to collect it.
        """
        key = hash(text)
        is_known = key in self._remembered
        by_confidence = 0.0
        if not is_known:
            by_confidence = _any(self._confidences[name].probability(value) for name, value in confidences.items())
        by_novelty = 0.0 if is_known or novelty is None else self._novelty.probability(-novelty)
        reasons = [RANDOM] if is_drawn else []
        if is_candidate:
            reasons += [LOW_CONFIDENCE] if self._draw() < by_confidence else []
            reasons += [NOVEL] if self._draw() < by_novelty else []
            if not is_known:
                self._observe(confidences, novelty)
        if not reasons:
            return None
        self._remember(key)
        examined = self._shares.candidates * _any([by_confidence, by_novelty])
        return Choice(tuple(reasons), _any([self._shares.random, examined]))

    def _observe(self, confidences: Mapping[str, float], novelty: float | None) -> None:
        for name, value in confidences.items():
            self._confidences[name].observe(value)
        if novelty is not None:
            self._novelty.observe(-novelty)

    def _remember(self, key: int) -> None:
        self._remembered.pop(key, None)
        self._remembered[key] = None
        if len(self._remembered) > _REMEMBERED_TEXTS:
            del self._remembered[next(iter(self._remembered))]


def _any(probabilities: Iterable[float]) -> float:
    """Returns the probability that at least one of independent events occurs."""
    return 1.0 - math.prod(1.0 - probability for probability in probabilities)
