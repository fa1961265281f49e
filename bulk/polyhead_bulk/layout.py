"""The columns of the answers of one model: names, Arrow types and NumPy types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polyhead_bundle as bundle
import pyarrow as pa
from polyhead_server.inference import head_answers

from .errors import UsageError
from .options import AnswerOptions

# The task of each kind of head, as the options name it.
_TASKS = {kind: task.name.lower() for kind, task in head_answers.TASKS.items()}
_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
    "binary": np.dtype(np.uint8),
}


@dataclass(frozen=True)
class ModelFacts:
    """What the output depends on, for a model in this process or behind a server.

    Attributes:
        model_id: Name of the bundle and the first digits of its digest.
        digest: SHA-256 of the bundle; empty for a model behind a server, which states only ``model_id``.
        variant: Variant of the bundle that computes.
        runtime: Engine, device and variant, for messages.
        fingerprints: Those of the variant.
        heads: Heads in the model's order.
        dimensions: Numbers of an embedding.
        normalized: Whether embeddings have length 1.
        max_tokens: Token limit of a text, special tokens included.
        prompts: Text of each prompt, by its name.
        has_novelty: Whether the model has the novelty of texts.
    """

    model_id: str
    digest: str
    variant: str
    runtime: str
    fingerprints: bundle.Fingerprints
    heads: tuple[bundle.Head, ...]
    dimensions: int
    normalized: bool
    max_tokens: int
    prompts: Mapping[str, str] = field(default_factory=dict)
    has_novelty: bool = False


@dataclass(frozen=True)
class Layout:
    """The answer columns of a model with some options.

    Raises:
        UsageError: The model has no head for a task, no such prompt, no novelty, or fewer dimensions than wanted.
    """

    facts: ModelFacts
    options: AnswerOptions

    def __post_init__(self) -> None:
        """Compares the options with the model."""
        tasks = {"embedding", *(_TASKS[head.kind] for head in self.facts.heads)}
        for task in self.options.tasks:
            if task not in tasks:
                heads = ", ".join(f"{head.name} ({head.kind})" for head in self.facts.heads) or "none"
                raise UsageError(f"tasks: the model has no head for {task}; its heads are: {heads}")
        prompt, prompts = self.options.prompt, self.facts.prompts
        if prompt is not None and prompt not in prompts:
            known = f"its prompts are: {', '.join(prompts)}" if prompts else "it has none"
            raise UsageError(f"prompt: the model has no prompt {prompt!r}; {known}")
        if self.options.novelty and not self.facts.has_novelty:
            raise UsageError("novelty: the model has none: train it with training.novelty")
        dimensions = self.options.dimensions
        if dimensions is not None and dimensions > self.facts.dimensions:
            raise UsageError(f"dimensions: {dimensions} is more than the model's {self.facts.dimensions}")
        if len(set(self.names)) < len(self.names):
            raise UsageError(f"two heads have the same columns: {', '.join(self.names)}")

    @property
    def prefix(self) -> str:
        """Text that is put before every text."""
        return "" if self.options.prompt is None else self.facts.prompts[self.options.prompt]

    @cached_property
    def has_embedding(self) -> bool:
        """Whether the embedding is wanted."""
        return not self.options.tasks or "embedding" in self.options.tasks

    @cached_property
    def heads(self) -> tuple[tuple[int, bundle.Head], ...]:
        """The wanted heads, each with its index among all heads of the model."""
        tasks = self.options.tasks or tuple(_TASKS.values())
        return tuple((index, head) for index, head in enumerate(self.facts.heads) if _TASKS[head.kind] in tasks)

    @cached_property
    def dimensions(self) -> int:
        """Numbers of an embedding that are kept."""
        return self.options.dimensions or self.facts.dimensions

    @cached_property
    def embedding_dtype(self) -> np.dtype[Any]:
        """Type of the embedding's stored numbers."""
        return _DTYPES[self.options.embedding_encoding]

    @cached_property
    def embedding_width(self) -> int:
        """Stored numbers of an embedding: bytes of eight signs each with ``binary``."""
        return -(-self.dimensions // 8) if self.options.embedding_encoding == "binary" else self.dimensions

    @cached_property
    def has_scale(self) -> bool:
        """Whether the embedding has a scale."""
        return self.has_embedding and self.options.embedding_encoding == "int8"

    @cached_property
    def fields(self) -> list[pa.Field]:
        """Arrow fields of the answers, in order."""
        fields = []
        if self.has_embedding:
            element = pa.from_numpy_dtype(self.embedding_dtype)
            fields.append(pa.field("embedding", self._list(element, self.embedding_width)))
        if self.has_scale:
            fields.append(pa.field("embedding_scale", pa.float32()))
        for _, head in self.heads:
            fields += self._head_fields(head)
        if self.options.novelty:
            fields.append(pa.field("novelty", pa.float32()))
        fields += [pa.field("truncated", pa.bool_()), pa.field("tokens", pa.int32()), pa.field("error", pa.string())]
        return fields

    @property
    def names(self) -> list[str]:
        """Names of the columns, in order."""
        return [field.name for field in self.fields]

    def _head_fields(self, head: bundle.Head) -> list[pa.Field]:
        fields = []
        if head.kind == "multilabel":
            # A list of any length, whatever ``list_type`` says.
            fields.append(pa.field(f"{head.name}_labels", pa.list_(pa.string())))
        elif head.kind != "regression":
            fields.append(pa.field(f"{head.name}_label", pa.string()))
        if head.kind in {"ordinal", "regression"}:
            fields.append(pa.field(f"{head.name}_value", pa.float32()))
        if head.labels:
            fields.append(pa.field(f"{head.name}_probabilities", self._list(pa.float32(), len(head.labels))))
        if head.abstains_below is not None:
            fields.append(pa.field(f"{head.name}_confidence", pa.float32()))
            fields.append(pa.field(f"{head.name}_abstained", pa.bool_()))
        if self.options.prediction_sets and head.prediction_sets:
            fields.append(pa.field(f"{head.name}_prediction_set", pa.list_(pa.string())))
        return fields

    def _list(self, element: pa.DataType, width: int) -> pa.DataType:
        return pa.list_(element, width) if self.options.list_type == "fixed" else pa.list_(element)
