"""The tensors of the Open Inference Protocol, and those of each kind of head."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray

from polyhead_server.inference import head_answers

# Outputs of a head by its kind.
_FORMS: Mapping[bundle.HeadKind, tuple[str, ...]] = {
    "softmax": ("probabilities", "label"),
    "sigmoid": ("probabilities", "label"),
    "multilabel": ("probabilities", "labels"),
    "ordinal": ("probabilities", "value", "label"),
    "regression": ("value",),
}
# Datatypes of these outputs; the others are texts.
DATATYPES = {"probabilities": "FP32", "value": "FP32", "confidence": "FP32", "abstained": "BOOL"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of a tensor; -1 stands for the number of texts."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An output of one call.

    Attributes:
        values: (n, k) numbers or booleans; for BYTES the list of n texts.
    """

    name: str
    datatype: str
    shape: tuple[int, int]
    values: NDArray[Any] | list[str]

    def raw(self) -> bytes:
        """Returns the tensor in the protocol's binary layout: little-endian, in row-major order."""
        if isinstance(self.values, list):
            return b"".join(struct.pack("<I", len(text)) + text for text in map(str.encode, self.values))
        return self.values.tobytes()

    def flat(self) -> list[Any]:
        """Returns the elements in row-major order."""
        return self.values if isinstance(self.values, list) else self.values.ravel().tolist()


def forms_of(head: bundle.Head) -> tuple[str, ...]:
    """Returns the forms of a head's outputs."""
    return _FORMS[head.kind] + (() if head.abstains_below is None else ("confidence", "abstained"))


def head_tensor(name: str, form: str, head: bundle.Head, rows: NDArray[np.float32]) -> OutputTensor:
    """Makes an output of a head.

    Args:
        name: Name of the output.
        form: One of ``forms_of(head)``.
        head: The head.
        rows: (n, numbers) of the head; NaN for a text without an answer.
    """
    match form:
        case "value":
            return column(name, "FP32", head_answers.value_of(head, rows))
        case "probabilities":
            rows = head_answers.by_label(head, rows)
            return OutputTensor(name, "FP32", (len(rows), rows.shape[1]), rows)
        case "confidence":
            return column(name, "FP32", head_answers.confidence(head, rows))
        case "abstained":
            return column(name, "BOOL", head_answers.abstains(head, head_answers.confidence(head, rows)))
    texts = (_label if form == "label" else _labels)(head, rows)
    missing = np.isnan(rows[:, 0]).tolist()
    texts = ["" if is_missing else text for text, is_missing in zip(texts, missing, strict=True)]
    return OutputTensor(name, "BYTES", (len(texts), 1), texts)


def column(name: str, datatype: str, values: NDArray[Any]) -> OutputTensor:
    """Makes an output with one number or boolean for each text, (n,)."""
    return OutputTensor(name, datatype, (len(values), 1), values[:, None])


def _label(head: bundle.Head, rows: NDArray[np.float32]) -> list[str]:
    return [head.labels[index] for index in head_answers.predicted(head, rows)]


def _labels(head: bundle.Head, rows: NDArray[np.float32]) -> list[str]:
    """Returns the labels that apply to each text, as JSON lists: a label may contain any character."""
    sets = []
    for row, applies in zip(rows, head_answers.applying(head, rows), strict=True):
        sets.append([head.labels[index] for index in head_answers.best_first(row) if applies[index]])
    return [json.dumps(labels, ensure_ascii=False) for labels in sets]
