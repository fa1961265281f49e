"""The serving model as a ``polyhead.v1.ModelInfo`` message."""

from __future__ import annotations

from importlib import metadata

import polyhead_bundle as bundle
from polyhead.v1 import model_pb2

from polyhead_server.inference.model import Model
from polyhead_server.inference.types import RequestOptions
from polyhead_server.settings import Settings

from .response_encoder import ResponseEncoder


def describe(model: Model, encoder: ResponseEncoder, settings: Settings) -> model_pb2.ModelInfo:
    """Builds the response of ``GetModelInfo``.

    Args:
        model: The serving model.
        encoder: Encoder of the model's answers.
        settings: The server's, which hold the limits on requests.
    """
    manifest, runtime = model.source.manifest, model.engine.runtime
    return model_pb2.ModelInfo(
        model_id=model.source.model_id,
        heads=[
            model_pb2.HeadInfo(
                name=head.name,
                kind=model_pb2.HeadKind.Value(f"HEAD_KIND_{head.kind.upper()}"),
                labels=head.labels,
                temperature=head.temperature,
                threshold=head.threshold,
                thresholds=head.thresholds,
                abstention=_abstention(head),
                prediction_sets=_prediction_sets(head),
            )
            for head in manifest.heads
        ],
        embedding=model_pb2.EmbeddingInfo(
            dimensions=manifest.embedding.dimensions,
            pooling=manifest.embedding.pooling,
            normalized=manifest.embedding.normalized,
        ),
        limits=model_pb2.Limits(
            max_tokens=manifest.max_tokens,
            max_characters=manifest.max_tokens * settings.max_characters_per_token,
            # Answers with everything that a client may request.
            max_items_per_message=min(
                settings.max_items_per_message,
                encoder.max_items(RequestOptions(timings=True, novelty=encoder.has_novelty, prediction_sets=True)),
            ),
            max_message_bytes=settings.max_message_bytes,
            max_windows=settings.max_windows,
        ),
        fingerprints=encoder.fingerprints,
        runtime=model_pb2.RuntimeInfo(
            engine=runtime.engine,
            device=runtime.device,
            variant=runtime.variant,
            fallback_reasons=model.fallback_reasons,
        ),
        prompts=[model_pb2.Prompt(name=name, text=text) for name, text in manifest.prompts.items()],
        bundle_format_version=model.source.format_version,
        server_version=metadata.version("polyhead"),
        has_novelty=encoder.has_novelty,
    )


def _prediction_sets(head: bundle.Head) -> model_pb2.PredictionSets | None:
    found = head.prediction_sets
    return None if found is None else model_pb2.PredictionSets(coverage=found.coverage, threshold=found.threshold)


def _abstention(head: bundle.Head) -> model_pb2.Abstention | None:
    found = head.abstention
    if found is None or found.threshold is None:
        return None
    return model_pb2.Abstention(
        threshold=found.threshold, accuracy=found.accuracy, certainty=found.certainty, coverage=found.coverage
    )
