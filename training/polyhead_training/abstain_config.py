"""Sections of the training configuration about doubtful answers, for one head or for all of them."""

from __future__ import annotations

from pydantic import Field

from .config_section import Section


class AbstainConfig(Section):
    """An accuracy that a head keeps by abstaining from texts in which its confidence is low."""

    accuracy: float = Field(gt=0, lt=1)
    """Accuracy of the texts on which the head does not abstain, 0 to 1."""
    certainty: float = Field(default=0.95, gt=0, lt=1)
    """Probability that the head keeps this accuracy on texts like those of validation, 0 to 1."""


class PredictionSetsConfig(Section):
    """Sets of labels among which the true one is with a chosen probability, in place of one uncertain label."""

    coverage: float = Field(gt=0, lt=1)
    """Share of texts like those of validation whose true label is in the set, 0 to 1."""
