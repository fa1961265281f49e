"""The description of the model behind a server, ``ModelInfo`` and its parts: frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .types import Fingerprints
from .value import Value


@dataclass(frozen=True)
class Abstention(Value):
    """When a head abstains, and what accuracy its other answers keep.

    Attributes:
        threshold: Lowest confidence at which the head does not abstain.
        accuracy: Promised share of correct answers among those on which it does not abstain.
        certainty: Probability that the promise holds for texts like those of validation.
        coverage: Share of the validation texts on which it does not abstain.
    """

    threshold: float
    accuracy: float
    certainty: float
    coverage: float


@dataclass(frozen=True)
class PredictionSets(Value):
    """What the prediction sets of a head promise.

    Attributes:
        coverage: Probability that the true label of a text like those of validation is in the set.
        threshold: Lowest probability of a label in a set; the most probable label is in it in any case.
    """

    coverage: float
    threshold: float


@dataclass(frozen=True)
class HeadInfo(Value):
    """One head of the model.

    Attributes:
        name: Unique name within the model.
        kind: ``"softmax"`` (exactly one label applies), ``"sigmoid"`` (a yes-or-no question), ``"multilabel"`` (any
            number of labels applies), ``"ordinal"`` (exactly one of ordered labels applies) or ``"regression"`` (a
            number).
        labels: In the order of the head's outputs; for a sigmoid head the negative label, then the positive one; for an
            ordinal head the lowest first; empty for a regression head.
        temperature: Divisor of the logits; 1 when the head was not calibrated.
        threshold: Minimum probability of a sigmoid head's positive label; None for other heads.
        thresholds: Minimum probabilities of a multilabel head's labels, in their order; None for other heads.
        abstention: When the head abstains; None for a head that never does.
        prediction_sets: What the head's prediction sets promise; None for a head without them.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    temperature: float
    threshold: float | None
    thresholds: tuple[float, ...] | None = None
    abstention: Abstention | None = None
    prediction_sets: PredictionSets | None = None


@dataclass(frozen=True)
class EmbeddingInfo(Value):
    """The sentence embedding.

    Attributes:
        dimensions: Number of values.
        pooling: Pooling of the token vectors, such as ``"mean"``; ``"+"`` joins several, as in ``"cls+mean"``.
        normalized: True when every embedding has length 1, so that a dot product is a cosine.
    """

    dimensions: int
    pooling: str
    normalized: bool


@dataclass(frozen=True)
class Limits(Value):
    """The server's limits on requests.

    Attributes:
        max_tokens: Tokens of one text that the model reads, special tokens and prompt included.
        max_characters: Code points of one text that the server tokenizes, prompt included; the rest counts as
            truncated.
        max_items_per_message: Items in one message, in streams and in unary calls.
        max_message_bytes: Bytes of one request message on the wire.
        max_windows: Windows of one text with ``truncation="window"``; 0 for a server without window support.
    """

    max_tokens: int
    max_characters: int
    max_items_per_message: int
    max_message_bytes: int
    max_windows: int = 0


@dataclass(frozen=True)
class RuntimeInfo(Value):
    """The engine that runs the model, which may differ from the configured one.

    Attributes:
        engine: ``"onnx"`` or ``"torch"``.
        device: ``"cpu"`` or ``"cuda"``.
        variant: Model variant of the bundle, for example ``"fp32"``.
        fallback_reasons: For each preferred choice that is not in use, the reason; empty when the first choice runs.
    """

    engine: str
    device: str
    variant: str
    fallback_reasons: tuple[str, ...]


@dataclass(frozen=True)
class ModelInfo(Value):
    """The model behind a server and how the server runs it.

    Attributes:
        model_id: Name of the bundle and the first 12 hexadecimal digits of its digest.
        heads: In the order of their outputs.
        embedding: The sentence embedding.
        limits: Limits on requests.
        fingerprints: The fingerprints in every result of this model.
        runtime: Engine, device and variant in use.
        bundle_format_version: Format version of the bundle.
        server_version: Version of the polyhead server.
        prompts: Text of each prompt, by its name; the option ``prompt`` takes a name.
        has_novelty: True when the option ``include_novelty`` may be set.
        name: The model's name in requests; empty for a server that has only one model and does not tell its name.
        model_names: Names of all models of the server, which the client takes as ``model``; the first is the default.
    """

    model_id: str
    heads: tuple[HeadInfo, ...]
    embedding: EmbeddingInfo
    limits: Limits
    fingerprints: Fingerprints
    runtime: RuntimeInfo
    bundle_format_version: int
    server_version: str
    prompts: Mapping[str, str] = field(default_factory=dict)
    has_novelty: bool = False
    name: str = ""
    model_names: tuple[str, ...] = ()
