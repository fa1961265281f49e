"""May a model take over from another? Only where clients that know nothing of it can go on with their answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from polyhead_server.inference.model import Model


@dataclass(frozen=True, slots=True)
class Identity:
    """What clients build on, and what must not change behind their backs.

    Attributes:
        embedding_space: Fingerprint; only embeddings of one space can be compared.
        heads: Name, kind and labels of each head, in order.
    """

    embedding_space: str
    heads: tuple[tuple[str, str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, model: Model) -> Self:
        """The identity of a model that is ready to answer."""
        heads = model.source.manifest.heads
        return cls(model.fingerprints.embedding_space, tuple((head.name, head.kind, head.labels) for head in heads))

    def to_json(self) -> dict[str, Any]:
        """As values that JSON knows."""
        return {"embedding_space": self.embedding_space, "heads": self.heads}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """What ``to_json`` made."""
        heads = tuple((name, kind, tuple(labels)) for name, kind, labels in values["heads"])
        return cls(values["embedding_space"], heads)


def problem(old: Identity, new: Identity) -> str | None:
    """Why ``new`` must not take over from ``old``; None where it may.

    A head may have been trained again, and heads may have been added after those that there were.
    """
    if new.embedding_space != old.embedding_space:
        return (
            f"its embedding space {new.embedding_space} is not that of the model that serves, {old.embedding_space}; "
            "embeddings of both cannot be compared"
        )
    if len(new.heads) < len(old.heads):
        return f"it has {len(new.heads)} heads, the model that serves has {len(old.heads)}"
    for one, other in zip(old.heads, new.heads, strict=False):
        if one != other:
            return f"its head {_described(other)} stands where the model that serves has {_described(one)}"
    return None


def _described(head: tuple[str, str, tuple[str, ...]]) -> str:
    name, kind, labels = head
    return f"{name} ({kind}: {', '.join(labels)})"
