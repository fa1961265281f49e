"""Decides whether a model may replace another one without breaking clients that do not know about the change."""

from __future__ import annotations

from polyhead_server.inference.model import Model
from polyhead_server.process_reports import HeadIdentity, ModelIdentity


def identity_of(model: Model) -> ModelIdentity:
    """Returns the identity of a loaded model."""
    heads = model.source.manifest.heads
    return ModelIdentity(
        model.fingerprints.embedding_space, tuple(HeadIdentity(head.name, head.kind, head.labels) for head in heads)
    )


def incompatibility(old: ModelIdentity, new: ModelIdentity) -> str | None:
    """Returns the reason why ``new`` must not replace ``old``; None if it may.

    A head may have been retrained, and new heads may follow the existing ones.
    """
    if new.embedding_space != old.embedding_space:
        return (
            f"its embedding space {new.embedding_space} differs from that of the serving model, {old.embedding_space}; "
            "embeddings of the two cannot be compared"
        )
    if len(new.heads) < len(old.heads):
        return f"it has {len(new.heads)} heads; the serving model has {len(old.heads)}"
    for existing, replacement in zip(old.heads, new.heads, strict=False):
        if existing != replacement:
            return f"it has the head {replacement} where the serving model has {existing}"
    return None
