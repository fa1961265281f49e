"""Encodes the numbers of a head as a serialized field of ``polyhead.v1.Result``.

What is the same in each answer of a head is encoded once: everything but the numbers, and the labels that they select.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import polyhead_bundle as bundle
from google.protobuf.descriptor import Descriptor
from numpy.typing import NDArray
from polyhead.v1 import item_pb2

from polyhead_server.inference import head_answers
from polyhead_server.inference.types import Task

from .wire_format import delimited, tag, varint

_FLOAT_BYTES = 4
# numpy takes as long to parse the name of a type as to copy the values of a text.
_FLOAT32_LE = np.dtype("<f4")
_RESULT = item_pb2.Result.DESCRIPTOR
_CLASSIFICATION = tag(item_pb2.Classification.DESCRIPTOR, "head", "bytes")
_SCORES = tag(item_pb2.Classification.DESCRIPTOR, "scores", "message")
_SCORE_LABEL = tag(item_pb2.LabelScore.DESCRIPTOR, "label", "bytes")
_SCORE_PROBABILITY = tag(item_pb2.LabelScore.DESCRIPTOR, "probability", "float")
_PREDICTION_SET = tag(item_pb2.Classification.DESCRIPTOR, "prediction_set", "bytes")
_SENTIMENT = tag(item_pb2.Sentiment.DESCRIPTOR, "head", "bytes")
_SENTIMENT_PROBABILITY = tag(item_pb2.Sentiment.DESCRIPTOR, "probability", "float")
_SENTIMENT_LABEL = tag(item_pb2.Sentiment.DESCRIPTOR, "label", "bytes")
_LABEL_SET = tag(item_pb2.LabelSet.DESCRIPTOR, "head", "bytes")
_LABEL_SET_SCORES = tag(item_pb2.LabelSet.DESCRIPTOR, "scores", "message")
_LABEL_SET_LABELS = tag(item_pb2.LabelSet.DESCRIPTOR, "labels", "bytes")
_SCORE = tag(item_pb2.Score.DESCRIPTOR, "head", "bytes")
_SCORE_VALUE = tag(item_pb2.Score.DESCRIPTOR, "value", "float")
_MEDIAN = tag(item_pb2.Score.DESCRIPTOR, "label", "bytes")
_PROBABILITIES = tag(item_pb2.Score.DESCRIPTOR, "probabilities", "message")
_ABSTAINED = (b"\0", b"\1")

# Encodes the numbers of one text.
Encode = Callable[[NDArray[np.float32]], bytes]


class HeadEncoder(NamedTuple):
    """The task that asks for a head, the head's position among all heads, and the encoding of its numbers."""

    task: Task
    position: int
    encode: Encode


def head_encoders(heads: Sequence[bundle.Head], *, prediction_sets: bool = False) -> list[HeadEncoder]:
    """Returns the encoder of each head, in the model's order.

    Args:
        heads: The heads.
        prediction_sets: Whether to encode the prediction sets of heads that have them.
    """
    classifications, sentiments = _fields("classification"), _fields("sentiment")
    encoders: list[HeadEncoder] = []
    for index, head in enumerate(heads):
        match head.kind:
            case "softmax":
                with_set = prediction_sets and head.prediction_sets is not None
                labels = [delimited(_PREDICTION_SET, label.encode()) for label in head.labels] if with_set else None
                encode = _classification(next(classifications), head, labels)
            case "sigmoid":
                encode = _sentiment(next(sentiments), head, cast(float, head.threshold))
            case "multilabel":
                encode = _label_set(tag(_RESULT, "label_sets", "message"), head)
            case _:
                encode = _score(tag(_RESULT, "scores", "message"), head)
        encoders.append(HeadEncoder(head_answers.TASKS[head.kind], index, encode))
    return encoders


def _confidence(message: Descriptor, head: bundle.Head) -> tuple[int, Callable[[float], bytes]]:
    """Returns size and encoding of ``confidence`` and ``abstained``, which come last; no bytes if the head has none.

    The encoding takes a confidence that float32 represents. ``head_answers`` defines both; a test compares the two.
    """
    threshold = head.abstains_below
    if threshold is None:
        return 0, lambda _: b""
    before, between = tag(message, "confidence", "float"), tag(message, "abstained", "integer")

    def encode(confidence: float) -> bytes:
        return before + struct.pack("<f", confidence) + between + _ABSTAINED[confidence < threshold]

    return len(before) + _FLOAT_BYTES + len(between) + 1, encode


def _fields(name: str) -> Iterator[bytes]:
    """Yields the tag of the first head's field, then that of all others."""
    yield tag(_RESULT, name, "message")
    while True:
        yield tag(_RESULT, f"additional_{name}s", "message")


def _classification(field: bytes, head: bundle.Head, labels_in_set: Sequence[bytes] | None = None) -> Encode:
    """Returns the encoder of a softmax head.

    Args:
        field: Tag of the field.
        head: The head.
        labels_in_set: For each label, the field that puts it into the prediction set; None to leave the set out.
    """
    scores = _label_scores(_SCORES, head)
    name = delimited(_CLASSIFICATION, head.name.encode())
    last_bytes, last = _confidence(item_pb2.Classification.DESCRIPTOR, head)
    size = len(name) + sum(len(score) + _FLOAT_BYTES for score in scores) + last_bytes
    begin = field + varint(size) + name

    def encode(probabilities: NDArray[np.float32]) -> bytes:
        values = probabilities.tolist()
        raw, order = _little_endian(probabilities), head_answers.best_first(values)
        return begin + b"".join([scores[one] + raw[4 * one : 4 * one + 4] for one in order]) + last(values[order[0]])

    if labels_in_set is None:
        return encode

    def encode_with_set(probabilities: NDArray[np.float32]) -> bytes:
        added = b"".join([labels_in_set[one] for one in head_answers.prediction_set(head, probabilities)])
        return field + varint(size + len(added)) + encode(probabilities)[len(begin) - len(name) :] + added

    return encode_with_set


def _label_scores(field: bytes, head: bundle.Head) -> list[bytes]:
    """Returns the ``LabelScore`` of each label up to its probability, which comes last."""
    scores = []
    for label in head.labels:
        before = delimited(_SCORE_LABEL, label.encode()) + _SCORE_PROBABILITY
        scores.append(field + varint(len(before) + _FLOAT_BYTES) + before)
    return scores


def _sentiment(field: bytes, head: bundle.Head, threshold: float) -> Encode:
    before = delimited(_SENTIMENT, head.name.encode()) + _SENTIMENT_PROBABILITY
    labels = [delimited(_SENTIMENT_LABEL, label.encode()) for label in head.labels]
    last_bytes, last = _confidence(item_pb2.Sentiment.DESCRIPTOR, head)
    begins = [field + varint(len(before) + _FLOAT_BYTES + len(label) + last_bytes) + before for label in labels]

    def encode(probabilities: NDArray[np.float32]) -> bytes:
        probability = probabilities.item()
        positive = probability >= threshold
        end = last(probability if positive else float(np.float32(1 - probability)))
        return begins[positive] + _little_endian(probabilities) + labels[positive] + end

    return encode


def _label_set(field: bytes, head: bundle.Head) -> Encode:
    scores = _label_scores(_LABEL_SET_SCORES, head)
    labels = [delimited(_LABEL_SET_LABELS, label.encode()) for label in head.labels]
    name = delimited(_LABEL_SET, head.name.encode())

    def encode(probabilities: NDArray[np.float32]) -> bytes:
        raw, order = _little_endian(probabilities), head_answers.best_first(probabilities.tolist())
        applies = head_answers.applying(head, probabilities).tolist()
        parts = [scores[one] + raw[4 * one : 4 * one + 4] for one in order]
        parts += [labels[one] for one in order if applies[one]]
        return delimited(field, name + b"".join(parts))

    return encode


def _score(field: bytes, head: bundle.Head) -> Encode:
    begin = delimited(_SCORE, head.name.encode()) + _SCORE_VALUE
    scores = _label_scores(_PROBABILITIES, head)
    labels = [delimited(_MEDIAN, label.encode()) for label in head.labels]
    _, last = _confidence(item_pb2.Score.DESCRIPTOR, head)

    def encode(numbers: NDArray[np.float32]) -> bytes:
        parts = [begin, struct.pack("<f", head_answers.value_of(head, numbers))]
        if labels:
            raw = _little_endian(numbers)
            predicted = head_answers.predicted(head, numbers)
            parts.append(labels[predicted])
            parts += [score + raw[4 * one : 4 * one + 4] for one, score in enumerate(scores)]
            parts.append(last(numbers[predicted].item()))
        return delimited(field, b"".join(parts))

    return encode


def _little_endian(values: NDArray[np.float32]) -> bytes:
    return values.astype(_FLOAT32_LE, copy=False).tobytes()
