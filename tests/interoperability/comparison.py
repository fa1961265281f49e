"""Compares the answers of a client with those of ``polyhead.v1``, and tells whether an error is clear."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .calls import Server
from .servers import client_of

# Largest difference of a number. The embeddings have length 1.
TOLERANCE = 1e-6
# What the message of an error must contain to help its reader: the cause, and the fix if there is one.
CLEAR = {
    "no API key": r"(?i)api.key|unauthorized|unauthenticated",
    "wrong API key": r"(?i)api.key|unauthorized|unauthenticated",
    "API key without the scope infer": r"may not call this method",
    "unknown model": r"'demo'",
    "too many texts": r"at most [\d,]+ are allowed",
    "empty list": r"(?i)cannot be empty|send at least one",
    "token ids in place of texts": r"send (the )?texts",
    "text beyond the token limit": r"the text has \d+ tokens; the limit is \d+",
    "too many dimensions": r"an integer from 1 to \d+",
    "flat list to /predict": r"for a batch send",
    "a method that the server does not have": r"no such path|is not implemented",
    "not JSON": r"is not valid JSON",
}


class Reference:
    """The answers of ``polyhead.v1`` for the texts of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        with client_of(server) as client:
            self._labels = {head.name: head.labels for head in client.info().heads}
            answers = client.analyze(server.texts)
        self._vectors = {0: np.stack([answer.embedding for answer in answers])}  # (texts, dimensions)
        self._probabilities: dict[str, list[dict[str, float]]] = {"topic": [], "sentiment": []}
        self._decided: dict[str, list[str]] = {"topic_label": [], "sentiment_label": []}
        for answer in answers:
            topic, sentiment = answer.classification, answer.sentiment
            negative, positive = self._labels["sentiment"]
            self._probabilities["topic"].append({one.label: one.probability for one in topic.scores})
            self._probabilities["sentiment"].append(
                {negative: 1 - sentiment.probability, positive: sentiment.probability}
            )
            self._decided["topic_label"].append(topic.scores[0].label)
            self._decided["sentiment_label"].append(sentiment.label)

    def difference(self, answers: Mapping[str, Sequence[Any]]) -> float:
        """Returns the largest difference of any number.

        Args:
            answers: Those of a client, by ``embedding``, by the name of a head, or by ``HEAD_label``.

        Raises:
            ValueError: Texts, dimensions or labels differ.
        """
        largest = [0.0]
        for name, values in answers.items():
            if len(values) != len(self._server.texts):
                raise ValueError(f"{name} has {len(values)} rows for {len(self._server.texts)} texts")
            if name == "embedding":
                vectors = np.asarray(values, dtype=np.float64)
                largest.append(float(np.abs(vectors - self._expected_vectors(vectors.shape[1])).max()))
            elif name.endswith("_label"):
                if list(values) != self._decided[name]:
                    raise ValueError(f"{name} is {values}, not {self._decided[name]}")
            else:
                largest += map(self._probability_difference, [name] * len(values), range(len(values)), values)
        return max(largest)

    def _expected_vectors(self, dimensions: int) -> Any:
        if self._vectors[0].shape[1] == dimensions:
            return self._vectors[0]
        if dimensions not in self._vectors:
            with client_of(self._server) as client:
                answers = client.analyze(self._server.texts, dimensions=dimensions)
            self._vectors[dimensions] = np.stack([answer.embedding for answer in answers])
        return self._vectors[dimensions]

    def _probability_difference(self, head: str, row: int, given: Any) -> float:
        """Returns the largest difference of a text's probabilities, by label or in the order of the head's labels."""
        found = given if isinstance(given, dict) else dict(zip(self._labels[head], given, strict=True))
        expected = self._probabilities[head][row]
        if found.keys() != expected.keys():
            raise ValueError(f"{head} has the labels {sorted(found)}, not {sorted(expected)}")
        return max(abs(float(found[label]) - expected[label]) for label in expected)


def is_clear(mistake: str, message: str) -> bool:
    """Tells whether a client's message names the cause of a mistake."""
    return re.search(CLEAR[mistake], message) is not None
