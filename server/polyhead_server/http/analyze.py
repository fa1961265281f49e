"""``POST /v1/analyze``: all answers to texts from one pass, as JSON or as a stream of JSON lines."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import polyhead_bundle as bundle

from polyhead_server.inference.types import Message
from polyhead_server.serving.backend import deadline_after

from .analyze_answer import record
from .analyze_lines import NDJSON, LineStream
from .analyze_request import document_options, query_options, read_items
from .calls import Call, respond, string
from .exchange import Response

_LINES = {NDJSON, "application/jsonl"}


async def analyze(call: Call) -> Response | LineStream:
    """Answers a JSON document, or a body of JSON lines with a stream of JSON lines."""
    if (call.header(b"content-type") or "").partition(";")[0].strip().lower() in _LINES:
        call.select(call.exchange.query.get("model"))
        return LineStream(call, query_options(call))
    document = await call.json()
    call.select(string(document, "model"))
    options = document_options(document, call.backend.model())
    items = read_items(document, call.backend)
    call.texts = len(items)
    model, outcomes = await call.backend.service.answer(Message(items, options), deadline_after(call.timeout_s()))
    pairs = zip(items, outcomes, strict=True)
    return respond(
        {
            "model": model.source.model_id,
            "fingerprints": {
                "embedding_space": model.fingerprints.embedding_space,
                "heads": dict(model.fingerprints.heads),
            },
            "answers": [record(model, item.item_id, outcome, options) for item, outcome in pairs],
        }
    )


async def info(call: Call) -> Response:
    """``GET /v1/info``: the model, its heads, its limits, and how it runs; and the names of all models."""
    backend = call.select(call.exchange.query.get("model"))
    model, settings = backend.model(), backend.settings
    manifest, runtime = model.source.manifest, model.engine.runtime
    return respond(
        {
            "name": backend.served_name(),
            "model_names": call.models.names(),
            "model_id": model.source.model_id,
            "heads": [
                {
                    "name": head.name,
                    "kind": head.kind,
                    "labels": head.labels,
                    "temperature": head.temperature,
                    "threshold": head.threshold,
                    "thresholds": head.thresholds,
                    "abstention": _abstention(head),
                    "prediction_sets": _prediction_sets(head),
                    "fingerprint": model.fingerprints.heads[head.name],
                }
                for head in manifest.heads
            ],
            "embedding": {
                "dimensions": manifest.embedding.dimensions,
                "pooling": manifest.embedding.pooling,
                "normalized": manifest.embedding.normalized,
                "fingerprint": model.fingerprints.embedding_space,
            },
            "prompts": manifest.prompts,
            "has_novelty": model.novelty is not None,
            "limits": {
                "max_tokens": manifest.max_tokens,
                "max_characters": backend.max_characters(),
                "max_items_per_message": backend.max_items,
                "max_message_bytes": settings.max_message_bytes,
                "max_windows": settings.max_windows,
            },
            "runtime": {"engine": runtime.engine, "device": runtime.device, "variant": runtime.variant},
            "server_version": metadata.version("polyhead"),
        }
    )


def _prediction_sets(head: bundle.Head) -> dict[str, float] | None:
    found = head.prediction_sets
    return None if found is None else {"coverage": found.coverage, "threshold": found.threshold}


def _abstention(head: bundle.Head) -> dict[str, Any] | None:
    found = head.abstention
    if found is None or found.threshold is None:
        return None
    return {name: getattr(found, name) for name in ("threshold", "accuracy", "certainty", "coverage")}
