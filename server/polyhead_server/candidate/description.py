"""What became of the start of a candidate's process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

# A supervisor imports this and has no model.
if TYPE_CHECKING:
    from polyhead_server.inference.model import Model


@dataclass(frozen=True, slots=True)
class Description:
    """A candidate that was loaded, or why it was not.

    Attributes:
        error: Why it cannot be a candidate; empty if it can.
        model_id: Its name.
        digest: SHA-256 of its manifest.
        embedding_space: Fingerprint of its embedding space.
        heads: Fingerprint of each head, by name.
        served_model_id: Name of the model that it is compared with, in a shadow.
    """

    error: str = ""
    model_id: str = ""
    digest: str = ""
    embedding_space: str = ""
    heads: dict[str, str] = field(default_factory=dict)
    served_model_id: str = ""


def describe(model: Model, served_model_id: str = "") -> Description:
    """Describes a loaded candidate."""
    found = model.fingerprints
    return Description(
        "", model.source.model_id, model.source.digest, found.embedding_space, dict(found.heads), served_model_id
    )
