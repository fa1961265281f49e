"""What a server says about the model behind it, as plain frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from .types import Fingerprints


@dataclass(frozen=True)
class HeadInfo:
    """One head of the model.

    Attributes:
        name: Unique in the model.
        kind: ``"softmax"`` (one of the labels holds) or ``"sigmoid"`` (one question, two answers).
        labels: In the order of the head's outputs; of a sigmoid head the negative label, then the positive one.
        temperature: By which logits are divided; 1 when the head was not calibrated.
        threshold: From which a sigmoid head's probability counts as positive; None for a softmax head.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    temperature: float
    threshold: float | None


@dataclass(frozen=True)
class EmbeddingInfo:
    """The sentence embedding.

    Attributes:
        dimensions: Numbers in it.
        pooling: What makes it from the token vectors: ``"cls"``, ``"mean"`` or ``"cls_mean"``.
        normalized: True when every embedding has length 1, so that a dot product is a cosine.
    """

    dimensions: int
    pooling: str
    normalized: bool


@dataclass(frozen=True)
class Limits:
    """The bounds on what a client may send.

    Attributes:
        max_tokens: That the model reads of one text, special tokens included.
        max_characters: Of a text that are looked at, in code points; the rest counts as truncated.
        max_items_per_message: In streams and in unary calls.
        max_message_bytes: Of one request message on the wire.
        max_windows: Of one text under ``truncation="window"``; 0 from a server that knows no windows.
    """

    max_tokens: int
    max_characters: int
    max_items_per_message: int
    max_message_bytes: int
    max_windows: int = 0


@dataclass(frozen=True)
class RuntimeInfo:
    """On what the model really runs, which is not always what was asked for.

    Attributes:
        engine: ``"onnx"`` or ``"torch"``.
        device: ``"cpu"`` or ``"cuda"``.
        variant: Of the bundle's model, such as ``"fp32"``.
        fallback_reasons: Why each choice that came before was not used; empty when the first choice runs.
    """

    engine: str
    device: str
    variant: str
    fallback_reasons: tuple[str, ...]


@dataclass(frozen=True)
class ModelInfo:
    """The model that a server answers with, and how it is being run.

    Attributes:
        model_id: The bundle's name and the first 12 hexadecimal digits of its digest.
        heads: In the order in which their answers come.
        embedding: The sentence embedding.
        limits: On requests.
        fingerprints: That every result of this model carries.
        runtime: On what the model really runs.
        bundle_format_version: Of the bundle that the model was loaded from.
        server_version: Of the polyhead server.
    """

    model_id: str
    heads: tuple[HeadInfo, ...]
    embedding: EmbeddingInfo
    limits: Limits
    fingerprints: Fingerprints
    runtime: RuntimeInfo
    bundle_format_version: int
    server_version: str
