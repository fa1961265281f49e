"""Answers of ``/v1/analyze`` as JSON, in the form in which the ``polyhead`` command prints them."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from polyhead_server.errors import ServerError
from polyhead_server.inference import head_answers
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import Encoding, ItemOutcome, RequestOptions, Result, Task, Timings
from polyhead_server.serving.embeddings import encodable, encode_embedding, shorten
from polyhead_server.serving.option_names import ENCODINGS

from .errors import error_fields

_Numbers = NDArray[np.float32]


def record(model: Model, item_id: str, outcome: ItemOutcome, options: RequestOptions) -> dict[str, Any]:
    """Returns an answer as the ``polyhead`` command prints it."""
    if Task.EMBEDDING in options.tasks:
        outcome = encodable(outcome, options.encoding)
    if isinstance(outcome, ServerError):
        return {"id": item_id, "error": error_fields(outcome)}
    fields: dict[str, Any] = {"id": item_id}
    manifest = model.source.manifest
    if Task.EMBEDDING in options.tasks:
        values = shorten(outcome.output.embedding, options.dimensions, normalized=manifest.embedding.normalized)
        fields["embedding"] = values if options.encoding is Encoding.FLOAT32_LE else _encoded(values, options.encoding)
    answers = _answers_by_field(model, outcome, options)
    for name in ("classification", "sentiment"):
        _add(fields, name, answers.get(name, ()))
    for name in ("label_sets", "scores"):
        if name in answers:
            fields[name] = answers[name]
    tokens = outcome.tokens
    fields["truncation"] = {
        "truncated": tokens.cut_at is not None,
        "tokens_seen": tokens.seen,
        "tokens_used": tokens.used,
        "cut_at_code_point": tokens.cut_at,
        "windows": len(tokens.windows),
    }
    if options.novelty and model.novelty:
        fields["novelty"] = model.novelty.score(outcome.output.embedding[None])[0]
    if options.timings:
        fields["timings"] = _timings(outcome.timings)
    return fields


def _encoded(values: Any, encoding: Encoding) -> dict[str, Any]:
    data, scale = encode_embedding(values, encoding)
    names = {member: name for name, member in ENCODINGS.items()}
    fields = {"encoding": names[encoding], "dimensions": len(values), "values": base64.b64encode(data).decode()}
    return fields | ({"scale": scale} if encoding is Encoding.INT8 else {})


def _answers_by_field(model: Model, result: Result, options: RequestOptions) -> dict[str, list[dict[str, Any]]]:
    answers: dict[str, list[dict[str, Any]]] = {}
    for head, numbers in zip(model.source.manifest.heads, result.output.probabilities, strict=True):
        if head_answers.TASKS[head.kind] in options.tasks:
            field, answer = _ANSWERS[head.kind]
            fields = {"head": head.name, **answer(head, numbers), **_confidence(head, numbers)}
            if options.prediction_sets and head.prediction_sets:
                labels = head_answers.prediction_set(head, numbers)
                fields["prediction_set"] = [head.labels[label] for label in labels]
            answers.setdefault(field, []).append(fields)
    return answers


def _confidence(head: bundle.Head, probabilities: _Numbers) -> dict[str, Any]:
    if head.abstains_below is None:
        return {}
    confidence = head_answers.confidence(head, probabilities)
    return {"confidence": np.float32(confidence), "abstained": bool(head_answers.abstains(head, confidence))}


def _softmax(head: bundle.Head, probabilities: _Numbers) -> dict[str, Any]:
    # Python's numbers compare in a fraction of the time of numpy's.
    return {"scores": _label_scores(head, probabilities, head_answers.best_first(probabilities.tolist()))}


def _sigmoid(head: bundle.Head, probabilities: _Numbers) -> dict[str, Any]:
    positive = probabilities.item() >= cast(float, head.threshold)
    return {"probability": probabilities[0], "label": head.labels[positive]}


def _multilabel(head: bundle.Head, probabilities: _Numbers) -> dict[str, Any]:
    order, applies = head_answers.best_first(probabilities), head_answers.applying(head, probabilities)
    labels = [head.labels[index] for index in order if applies[index]]
    return {"scores": _label_scores(head, probabilities, order), "labels": labels}


def _ordinal(head: bundle.Head, probabilities: _Numbers) -> dict[str, Any]:
    return {
        "value": np.float32(head_answers.value_of(head, probabilities)),
        "label": head.labels[head_answers.predicted(head, probabilities)],
        "probabilities": _label_scores(head, probabilities, range(len(probabilities))),
    }


def _regression(head: bundle.Head, value: _Numbers) -> dict[str, Any]:
    return {"value": np.float32(head_answers.value_of(head, value)), "label": None, "probabilities": []}


# The field of the answers of each kind, and the function that makes one.
_ANSWERS: dict[bundle.HeadKind, tuple[str, Callable[[bundle.Head, _Numbers], dict[str, Any]]]] = {
    "softmax": ("classification", _softmax),
    "sigmoid": ("sentiment", _sigmoid),
    "multilabel": ("label_sets", _multilabel),
    "ordinal": ("scores", _ordinal),
    "regression": ("scores", _regression),
}


def _label_scores(head: bundle.Head, probabilities: _Numbers, order: Iterable[int]) -> list[dict[str, Any]]:
    return [{"label": head.labels[index], "probability": probabilities[index]} for index in order]


def _add(fields: dict[str, Any], name: str, answers: Sequence[dict[str, Any]]) -> None:
    """Adds the answer of the first head, and those of the others as a list."""
    if answers:
        fields[name] = answers[0]
    if len(answers) > 1:
        fields[f"additional_{name}s"] = answers[1:]


def _timings(timings: Timings) -> dict[str, Any]:
    stages = ("admission", "tokenization", "queue", "compute", "total")
    seconds = {f"{stage}_s": getattr(timings, f"{stage}_ns") / 1e9 for stage in stages}
    delivery_s = (time.monotonic_ns() - timings.finished_ns) / 1e9
    return {
        **seconds,
        "delivery_s": delivery_s,
        "batch_items": timings.batch_items,
        "batch_tokens": timings.batch_tokens,
    }
