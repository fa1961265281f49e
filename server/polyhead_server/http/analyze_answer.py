"""Answers of ``/v1/analyze`` as JSON, in the form in which the ``polyhead`` command prints them."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any

from polyhead_server.errors import ServerError
from polyhead_server.inference.model import Model
from polyhead_server.inference.types import Encoding, ItemOutcome, RequestOptions, Result, Task, Timings
from polyhead_server.serving.embeddings import encodable, encode_embedding, shorten

from .analyze_request import ENCODINGS
from .errors import error_fields


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
    softmax, sigmoid = _heads(model, outcome)
    if Task.CLASSIFICATION in options.tasks:
        _add(fields, "classification", softmax)
    if Task.SENTIMENT in options.tasks:
        _add(fields, "sentiment", sigmoid)
    tokens = outcome.tokens
    fields["truncation"] = {
        "truncated": tokens.cut_at is not None,
        "tokens_seen": tokens.seen,
        "tokens_used": tokens.used,
        "cut_at_code_point": tokens.cut_at,
        "windows": len(tokens.windows),
    }
    if options.timings:
        fields["timings"] = _timings(outcome.timings)
    return fields


def _encoded(values: Any, encoding: Encoding) -> dict[str, Any]:
    data, scale = encode_embedding(values, encoding)
    names = {member: name for name, member in ENCODINGS.items()}
    fields = {"encoding": names[encoding], "dimensions": len(values), "values": base64.b64encode(data).decode()}
    return fields | ({"scale": scale} if encoding is Encoding.INT8 else {})


def _heads(model: Model, result: Result) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    softmax: list[dict[str, Any]] = []
    sigmoid: list[dict[str, Any]] = []
    for head, values in zip(model.source.manifest.heads, result.output.probabilities, strict=True):
        if head.kind == "softmax":
            order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
            scores = [{"label": head.labels[index], "probability": values[index]} for index in order]
            softmax.append({"head": head.name, "scores": scores})
        elif head.threshold is not None:
            label = head.labels[bool(values[0] >= head.threshold)]
            sigmoid.append({"head": head.name, "probability": values[0], "label": label})
    return softmax, sigmoid


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
