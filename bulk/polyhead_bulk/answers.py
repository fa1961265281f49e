"""The answers of some texts as NumPy arrays, filled batch by batch in place, and as Arrow columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polyhead_bundle as bundle
import pyarrow as pa
from numpy.typing import NDArray
from polyhead_server.inference import head_answers

from .encoding import OVERFLOW, encode, shorten
from .layout import Layout

NOT_FINITE = "the model's output is not finite"


@dataclass
class Answers:
    """Answers of N texts. A text with an entry in ``errors`` has no answer; its rows of the arrays mean nothing.

    Attributes:
        layout: The columns.
        embedding: (N, width) stored numbers; None where it is not wanted.
        scales: (N,) float32; None without a scale.
        probabilities: (N, numbers) float32 of each wanted head, whose meaning ``head_answers`` defines by its kind.
        tokens: (N,) int32, tokens of each text before truncation.
        truncated: (N,) whether a part of the text was not read.
        novelty: (N,) float32, how new each text is to the model; None where it is not wanted.
        errors: Reason for each text without an answer.
    """

    layout: Layout
    embedding: NDArray[Any] | None
    scales: NDArray[np.float32] | None
    probabilities: list[NDArray[np.float32]]
    tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    novelty: NDArray[np.float32] | None
    errors: dict[int, str] = field(default_factory=dict)

    @classmethod
    def allocate(cls, layout: Layout, size: int) -> Answers:
        """Returns answers for so many texts, to be filled by ``put``."""
        return cls(
            layout,
            np.zeros((size, layout.embedding_width), layout.embedding_dtype) if layout.has_embedding else None,
            np.zeros(size, np.float32) if layout.has_scale else None,
            [np.zeros((size, head_answers.numbers_of(head)), np.float32) for _, head in layout.heads],
            np.zeros(size, np.int32),
            np.zeros(size, np.bool_),
            np.zeros(size, np.float32) if layout.options.novelty else None,
        )

    def put(
        self,
        rows: NDArray[np.intp],
        embedding: NDArray[np.float32],
        probabilities: list[NDArray[np.float32]],
        finite: NDArray[np.bool_],
        novelty: NDArray[np.float32] | None = None,
    ) -> None:
        """Stores the outputs of a batch; threads may do so at once for different rows.

        Args:
            rows: (B,) positions of the batch's texts.
            embedding: (B, dimensions of the model).
            probabilities: (B, numbers) of each wanted head.
            finite: (B,) whether all outputs of the text are finite.
            novelty: (B,) how new each text is; None where it is not wanted.
        """
        if not finite.all():
            self.errors.update(dict.fromkeys(rows[~finite].tolist(), NOT_FINITE))
            rows, embedding = rows[finite], embedding[finite]
            probabilities = [values[finite] for values in probabilities]
            novelty = None if novelty is None else novelty[finite]
        if self.novelty is not None and novelty is not None:
            self.novelty[rows] = novelty
        for stored, values in zip(self.probabilities, probabilities, strict=True):
            stored[rows] = values
        if self.embedding is None or not len(rows):
            return
        layout = self.layout
        short = shorten(embedding, layout.dimensions, normalized=layout.facts.normalized)
        encoded = encode(short, layout.options.embedding_encoding)
        self.embedding[rows] = encoded.values
        if self.scales is not None and encoded.scales is not None:
            self.scales[rows] = encoded.scales
        if encoded.overflow is not None and encoded.overflow.any():
            self.errors.update(dict.fromkeys(rows[encoded.overflow].tolist(), OVERFLOW))

    def slice(self, begin: int, end: int) -> Answers:
        """Returns the answers of consecutive texts, which share the arrays."""
        part = slice(begin, end)
        return Answers(
            self.layout,
            None if self.embedding is None else self.embedding[part],
            None if self.scales is None else self.scales[part],
            [values[part] for values in self.probabilities],
            self.tokens[part],
            self.truncated[part],
            None if self.novelty is None else self.novelty[part],
            {row - begin: reason for row, reason in self.errors.items() if begin <= row < end},
        )

    def columns(self) -> dict[str, pa.Array]:
        """Returns the Arrow columns by name, in the order of ``Layout.fields``; they share the arrays' memory."""
        failed = np.zeros(len(self.tokens), np.bool_)
        failed[list(self.errors)] = True
        mask = pa.array(failed) if self.errors else None
        columns: dict[str, pa.Array] = {}
        if self.embedding is not None:
            columns["embedding"] = self._list(self.embedding, mask)
        if self.scales is not None:
            columns["embedding_scale"] = pa.array(self.scales, mask=failed)
        for (_, head), values in zip(self.layout.heads, self.probabilities, strict=True):
            columns |= self._head_columns(head, values, failed)
        if self.novelty is not None:
            columns["novelty"] = pa.array(self.novelty, mask=failed)
        columns["truncated"] = pa.array(self.truncated, mask=failed)
        columns["tokens"] = pa.array(self.tokens, mask=failed)
        columns["error"] = _sparse(self.errors, len(failed))
        return columns

    def _head_columns(
        self, head: bundle.Head, values: NDArray[np.float32], failed: NDArray[np.bool_]
    ) -> dict[str, pa.Array]:
        mask = pa.array(failed) if self.errors else None
        columns: dict[str, pa.Array] = {}
        if head.kind == "multilabel":
            columns[f"{head.name}_labels"] = _label_lists(head, values, head_answers.applying(head, values), mask)
        elif head.kind != "regression":
            indices = pa.array(head_answers.predicted(head, values).astype(np.int32), mask=failed)
            labels = pa.DictionaryArray.from_arrays(indices, pa.array(head.labels, pa.string()))
            columns[f"{head.name}_label"] = labels.cast(pa.string())
        if head.kind in {"ordinal", "regression"}:
            columns[f"{head.name}_value"] = pa.array(head_answers.value_of(head, values), mask=failed)
        if head.labels:
            columns[f"{head.name}_probabilities"] = self._list(head_answers.by_label(head, values), mask)
        if head.abstains_below is not None:
            confidences = head_answers.confidence(head, values)
            columns[f"{head.name}_confidence"] = pa.array(confidences, mask=failed)
            columns[f"{head.name}_abstained"] = pa.array(head_answers.abstains(head, confidences), mask=failed)
        if self.layout.options.prediction_sets and head.prediction_sets:
            inside = head_answers.in_prediction_sets(head, values)
            columns[f"{head.name}_prediction_set"] = _label_lists(head, values, inside, mask)
        return columns

    def _list(self, values: NDArray[Any], mask: pa.Array | None) -> pa.Array:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        if self.layout.options.list_type == "fixed":
            return pa.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=mask)
        offsets = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1])
        return pa.ListArray.from_arrays(pa.array(offsets), flat, mask=mask)


def _label_lists(
    head: bundle.Head, probabilities: NDArray[np.float32], chosen: NDArray[np.bool_], mask: pa.Array | None
) -> pa.Array:
    """Returns the chosen labels of each text, most probable first, as a column of lists.

    Args:
        head: Names the labels.
        probabilities: (N, labels).
        chosen: (N, labels).
        mask: (N,) true for a text without an answer.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")  # (N, labels)
    applies = np.take_along_axis(chosen, order, axis=1)  # (N, labels)
    offsets = np.zeros(len(order) + 1, np.int32)
    np.cumsum(applies.sum(axis=1), out=offsets[1:])
    indices = pa.array(order[applies].astype(np.int32))
    labels = pa.DictionaryArray.from_arrays(indices, pa.array(head.labels, pa.string())).cast(pa.string())
    return pa.ListArray.from_arrays(pa.array(offsets), labels, mask=mask)


def _sparse(values: Mapping[int, str], size: int) -> pa.Array:
    if not values:
        return pa.nulls(size, pa.string())
    return pa.array([values.get(row) for row in range(size)], pa.string())
