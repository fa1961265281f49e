"""The rows that are written: the training format with empty labels, and what the model answered."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from polyhead_server.inference import head_answers
from polyhead_server.inference.model import Model

from .selection import Choice

# Field of a row with what is known about it. No head has a name that begins like this.
META = "_collected"


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A text with the answers of a model, on its way to the files.

    Attributes:
        text: The text as it was sent.
        prompt: Name of the prompt that the request put before it; empty for none.
        numbers: Numbers of each head, as in ``ModelOutput.probabilities``.
        embedding: (dimensions,) float32.
        is_drawn: Whether the text was drawn at random.
        is_candidate: Whether it was drawn to be examined for confidence and novelty.
    """

    text: str
    prompt: str
    numbers: tuple[NDArray[np.float32], ...]
    embedding: NDArray[np.float32]
    is_drawn: bool
    is_candidate: bool


def confidences(model: Model, example: Example, names: Mapping[str, float]) -> dict[str, float]:
    """Returns the confidence of each named head."""
    return {
        head.name: float(head_answers.confidence(head, numbers))
        for head, numbers in zip(model.source.manifest.heads, example.numbers, strict=True)
        if head.name in names
    }


def novelty(model: Model, example: Example) -> float | None:
    """Returns the novelty of the text; None for a model without it."""
    return float(model.novelty.score(example.embedding[None])[0]) if model.novelty else None


def encode(model: Model, example: Example, choice: Choice, redacted: tuple[str, int]) -> bytes:
    """Returns a row as a line of JSON.

    Args:
        model: The model that answered.
        example: The text and its answers.
        choice: Why it was chosen.
        redacted: The text after redaction, and the number of replacements.
    """
    heads = model.source.manifest.heads
    text, replacements = redacted
    found = novelty(model, example)
    meta: dict[str, Any] = {
        "reasons": choice.reasons,
        "probability": _short(choice.probability),
        "predictions": {
            head.name: _prediction(head, numbers) for head, numbers in zip(heads, example.numbers, strict=True)
        },
        **({} if found is None else {"novelty": _short(found)}),
        **({"prompt": example.prompt} if example.prompt else {}),
        **({"redacted": replacements} if replacements else {}),
        "model": model.source.model_id,
        "fingerprints": {"embedding_space": model.fingerprints.embedding_space, "heads": model.fingerprints.heads},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    row = {"text": text, **{head.name: None for head in heads if head.name != "text"}, META: meta}
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _prediction(head: bundle.Head, numbers: NDArray[np.float32]) -> dict[str, Any]:
    if head.kind == "regression":
        return {"value": _short(float(numbers[0]))}
    if head.kind == "multilabel":
        applies = head_answers.applying(head, numbers).tolist()
        return {"labels": [label for label, one in zip(head.labels, applies, strict=True) if one]}
    label = head.labels[int(head_answers.predicted(head, numbers))]
    return {"label": label, "confidence": _short(float(head_answers.confidence(head, numbers)))}


def _short(value: float) -> float:
    """Rounds to the digits of a float32."""
    return float(f"{value:.7g}")
