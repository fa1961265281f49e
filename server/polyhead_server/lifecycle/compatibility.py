"""Decides whether a model may replace another one without breaking clients that do not know about the change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyhead_server.errors import StartupError
from polyhead_server.process_reports import HeadIdentity, ModelIdentity
from polyhead_server.settings import Settings

# A supervisor imports this and has no model.
if TYPE_CHECKING:
    from polyhead_server.inference.model import Model


def identity_of(model: Model) -> ModelIdentity:
    """Returns the identity of a loaded model."""
    manifest = model.source.manifest
    heads = tuple(HeadIdentity(head.name, head.kind, head.labels) for head in manifest.heads)
    return ModelIdentity(model.fingerprints.embedding_space, heads, dict(manifest.prompts))


def require_compatible(settings: Settings, serving: ModelIdentity | None, model: Model) -> None:
    """Returns if a model may join or follow the one that serves; None for the first model.

    Raises:
        StartupError: It may not.
    """
    if serving and (reason := incompatibility(serving, identity_of(model))):
        raise StartupError(
            f"{settings.bundle} cannot replace the serving model: {reason}. "
            "Restore the bundle that is being served, or accept this one with polyhead admin reload --force"
        )


def incompatibility(old: ModelIdentity, new: ModelIdentity) -> str | None:
    """Returns the reason why ``new`` must not replace ``old``; None if it may.

    A head may have been retrained, new heads may follow the existing ones, and there may be further prompts.
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
    for name, text in old.prompts.items():
        if new.prompts.get(name) != text:
            found = f"the text {new.prompts[name]!r}" if name in new.prompts else "no text"
            return f"it has {found} for the prompt {name}; the serving model has {text!r}"
    return None
