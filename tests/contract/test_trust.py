"""Training and the server compute the same confidence, abstention and novelty, although neither imports the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead_bundle import Head
from polyhead_server.inference import head_answers, postprocessing
from polyhead_server.inference.novelty import Novelty
from polyhead_training.evaluation.novelty import fit_novelty
from polyhead_training.evaluation.selective import confident_answers, fit_promise
from polyhead_training.model_types import ABSTAINING_KINDS

LABELS = ("1", "2", "3", "4")


def head_of(kind: bundle.HeadKind) -> Head:
    labels: Sequence[str] = LABELS[:2] if kind == "sigmoid" else LABELS
    threshold = 0.3 if kind == "sigmoid" else None
    return Head("any", kind, "logits", tuple(labels), temperature=1.3, threshold=threshold)


@pytest.mark.parametrize("kind", sorted(ABSTAINING_KINDS))
def test_confidence_and_abstention_are_the_same(kind: bundle.HeadKind) -> None:
    rng, head = np.random.default_rng(0), head_of(kind)
    logits = rng.normal(0, 3, (500, head.width)).astype(np.float32)
    targets = rng.integers(0, len(head.labels), 500)
    theirs = confident_answers(kind, logits, targets, 1.3, 0.3)
    probabilities = postprocessing.probabilities(head, logits)
    ours = head_answers.confidence(head, probabilities)
    assert ours.dtype == theirs.confidence.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.confidence, atol=2e-7)
    assert (head_answers.predicted(head, probabilities) == targets).tolist() == theirs.correct.tolist()
    certain = theirs._replace(correct=theirs.confidence > np.median(theirs.confidence))
    promise = fit_promise(certain, 0.9, 0.95)
    assert 0 < (promise.threshold or 0) < 1
    abstention = bundle.Abstention(0.9, 0.95, promise.threshold, 0.9, promise.coverage, 500, ())
    abstains = head_answers.abstains(dataclasses.replace(head, abstention=abstention), theirs.confidence)
    assert 1 - abstains.mean() == pytest.approx(promise.coverage)


@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_novelty_is_the_same(scale: float) -> None:
    rng = np.random.default_rng(0)
    groups = rng.normal(0, 1, (5, 32))
    train, validation, other = (
        scale * (groups[rng.integers(0, 5, rows)] + 0.3 * rng.normal(0, 1, (rows, 32))).astype(np.float32)
        for rows in (400, 200, 100)
    )
    fitted = fit_novelty(train, validation)
    found = fitted.to_json()
    novelty = Novelty(
        bundle.Novelty(found["centroids"], tuple(found["variances"]), found["noise"], tuple(found["percentiles"])),
        fitted.matrix,
    )
    for embeddings in (validation, other, 3 * other):
        np.testing.assert_allclose(novelty.score(embeddings), fitted.score(embeddings), atol=1e-4)
