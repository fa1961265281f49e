"""Encodes item outcomes as ``polyhead.v1.Answer`` messages."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from google.protobuf import duration_pb2
from google.rpc import status_pb2
from numpy.typing import NDArray
from polyhead.v1 import item_pb2

from polyhead_server.errors import EncodingOverflowError, ServerError
from polyhead_server.inference.types import (
    MAX_ITEM_ID_BYTES,
    Encoding,
    ItemOutcome,
    ModelOutput,
    RequestOptions,
    Result,
    Task,
    Timings,
    TokenizedText,
)

from .status import status

_ENCODING_NUMBERS = {
    Encoding.FLOAT32_LE: item_pb2.EMBEDDING_ENCODING_FLOAT32_LE,
    Encoding.FLOAT16_LE: item_pb2.EMBEDDING_ENCODING_FLOAT16_LE,
    Encoding.INT8: item_pb2.EMBEDDING_ENCODING_INT8,
    Encoding.BINARY: item_pb2.EMBEDDING_ENCODING_BINARY,
}
_MAX_INT8 = 127
# gRPC clients accept messages of 4 MiB by default; 1 KiB is more than the rest of a response needs.
MAX_RESPONSE_BYTES = 4 * 2**20
_RESPONSE_OVERHEAD_BYTES = 1024
# The error of one item, with its details.
_MAX_ERROR_BYTES = 1024
# The tag and the length of an answer in a response.
_ANSWER_OVERHEAD_BYTES = 8
_MAX_CACHED_SIZES = 1024
_MAX_UINT32 = 2**32 - 1
# A thousand years, in nanoseconds, and the nanoseconds of a second that take the most bytes.
_LONG_NS = 1000 * 365 * 86_400 * 10**9 + 999_999_999
_HEAD_KINDS = {Task.EMBEDDING: None, Task.CLASSIFICATION: "softmax", Task.SENTIMENT: "sigmoid"}
_MAX_FLOAT16 = float(np.finfo(np.float16).max)


class ResponseEncoder:
    """Encodes the answers of one model.

    Attributes:
        dimensions: Dimensions of the model's embedding.
        fingerprints: Those that every result carries.
        tasks: Tasks for which the model has a head.
    """

    def __init__(self, manifest: bundle.Manifest, fingerprints: bundle.Fingerprints) -> None:
        self._heads = manifest.heads
        kinds = {head.kind for head in manifest.heads}
        self.tasks = frozenset(task for task, kind in _HEAD_KINDS.items() if kind is None or kind in kinds)
        self._last_error: tuple[ServerError | None, status_pb2.Status] = None, status_pb2.Status()
        self._max_answer_bytes: dict[tuple[frozenset[Task], Encoding, int, bool], int] = {}
        self._normalized = manifest.embedding.normalized
        self.dimensions = manifest.embedding.dimensions
        self.fingerprints = item_pb2.Fingerprints(
            embedding_space=fingerprints.embedding_space,
            heads=[
                item_pb2.HeadFingerprint(head=head.name, fingerprint=fingerprints.heads[head.name])
                for head in self._heads
            ],
        )

    def encode(self, item_id: str, outcome: ItemOutcome, options: RequestOptions) -> item_pb2.Answer:
        """Encodes the answer of one item."""
        if isinstance(outcome, ServerError):
            return item_pb2.Answer(item_id=item_id, error=self._status(outcome))
        try:
            return item_pb2.Answer(item_id=item_id, result=self._result(outcome, options))
        except EncodingOverflowError as error:
            return item_pb2.Answer(item_id=item_id, error=self._status(error))

    def max_items(self, options: RequestOptions) -> int:
        """Returns the number of items whose answers fit into a response for certain, whatever their ids; at least 1."""
        key = options.tasks, options.encoding, options.dimensions, options.timings
        if key not in self._max_answer_bytes:
            # The keys are bounded by the checked options, but dimensions may take many values.
            if len(self._max_answer_bytes) >= _MAX_CACHED_SIZES:
                self._max_answer_bytes.clear()
            self._max_answer_bytes[key] = self._largest_answer(options).ByteSize() + _ANSWER_OVERHEAD_BYTES
        largest = max(self._max_answer_bytes[key], MAX_ITEM_ID_BYTES + _MAX_ERROR_BYTES)
        return max((MAX_RESPONSE_BYTES - _RESPONSE_OVERHEAD_BYTES) // largest, 1)

    def _largest_answer(self, options: RequestOptions) -> item_pb2.Answer:
        """Returns an answer in which every number takes as many bytes as it can."""
        output = ModelOutput(
            np.ones(self.dimensions, np.float32),
            (),
            tuple(np.ones(len(head.labels) if head.kind == "softmax" else 1, np.float32) for head in self._heads),
        )
        longest = Timings(_LONG_NS, _LONG_NS, _LONG_NS, _LONG_NS, _MAX_UINT32, _MAX_UINT32, -_LONG_NS)
        answer = self.encode("i" * MAX_ITEM_ID_BYTES, Result(output, TokenizedText(([],), 1, 1), longest), options)
        cut = answer.result.truncation
        cut.tokens_seen = cut.tokens_used = cut.cut_at_code_point = cut.windows = _MAX_UINT32
        if options.timings:
            answer.result.timings.admission.CopyFrom(_duration(_LONG_NS))
        for one in (answer.result.sentiment, *answer.result.additional_sentiments):
            if one.head:
                one.label = max(next(head.labels for head in self._heads if head.name == one.head), key=_utf8_length)
        return answer

    def _status(self, error: ServerError) -> status_pb2.Status:
        """Converts an error; the items of a message often share one, and converting it costs more than sending it."""
        if self._last_error[0] is not error:
            self._last_error = error, status(error)
        return self._last_error[1]

    def _result(self, result: Result, options: RequestOptions) -> item_pb2.Result:
        tokens = result.tokens
        wire = item_pb2.Result(
            truncation=item_pb2.Truncation(
                truncated=tokens.cut_at is not None,
                tokens_seen=tokens.seen,
                tokens_used=tokens.used,
                cut_at_code_point=tokens.cut_at,
                windows=len(tokens.windows),
            ),
            fingerprints=self.fingerprints,
            timings=_timings(result.timings) if options.timings else None,
        )
        if Task.EMBEDDING in options.tasks:
            self._set_embedding(wire.embedding, result.output.embedding, options)
        if Task.CLASSIFICATION in options.tasks:
            _set_first_and_rest(wire.classification, wire.additional_classifications, self._classifications(result))
        if Task.SENTIMENT in options.tasks:
            _set_first_and_rest(wire.sentiment, wire.additional_sentiments, self._sentiments(result))
        return wire

    def _set_embedding(self, wire: item_pb2.Embedding, values: NDArray[np.float32], options: RequestOptions) -> None:
        if options.dimensions:
            values = values[: options.dimensions]  # (dimensions,)
            if self._normalized:
                # In float64 the squares of small numbers are not zero. The remaining dimensions may all be zero; a zero
                # vector has no direction and is left as it is.
                wide = values.astype(np.float64)
                values = (wide / (np.linalg.norm(wide) or 1)).astype(np.float32)
        wire.values, wire.scale = encode_embedding(values, options.encoding)
        wire.encoding = _ENCODING_NUMBERS[options.encoding]
        wire.dimensions = len(values)

    def _classifications(self, result: Result) -> Iterable[item_pb2.Classification]:
        for head, probabilities in zip(self._heads, result.output.probabilities, strict=True):
            if head.kind == "softmax":
                values = probabilities.tolist()
                # Heads have few labels, for which sorting with numpy takes several times as long.
                best_first = sorted(range(len(values)), key=values.__getitem__, reverse=True)
                scores = [item_pb2.LabelScore(label=head.labels[i], probability=values[i]) for i in best_first]
                yield item_pb2.Classification(head=head.name, scores=scores)

    def _sentiments(self, result: Result) -> Iterable[item_pb2.Sentiment]:
        for head, probabilities in zip(self._heads, result.output.probabilities, strict=True):
            if head.kind == "sigmoid" and head.threshold is not None:
                probability = float(probabilities[0])
                label = head.labels[probability >= head.threshold]
                yield item_pb2.Sentiment(head=head.name, probability=probability, label=label)


def encode_embedding(values: NDArray[np.float32], encoding: Encoding) -> tuple[bytes, float]:
    """Encodes an embedding as bytes.

    Args:
        values: (dimensions,) finite numbers.
        encoding: Layout of the bytes, as ``polyhead.v1.EmbeddingEncoding`` defines it.

    Returns:
        The bytes, and the scale of the integers for ``INT8``; the scale is 0 for the other layouts.

    Raises:
        EncodingOverflowError: The layout has no number that is large enough.
    """
    if encoding is Encoding.INT8:
        largest = float(np.abs(values).max())
        # In this order because 127 divided by a tiny number is infinite.
        steps = np.rint(values / np.float32(largest) * np.float32(_MAX_INT8)) if largest else values
        return steps.astype(np.int8).tobytes(), largest / _MAX_INT8
    if encoding is Encoding.FLOAT16_LE and float(np.abs(values).max()) > _MAX_FLOAT16:
        raise EncodingOverflowError(_MAX_FLOAT16)
    if encoding is Encoding.BINARY:
        return np.packbits(values > 0).tobytes(), 0.0
    return values.astype("<f4" if encoding is Encoding.FLOAT32_LE else "<f2", copy=False).tobytes(), 0.0


def _set_first_and_rest(first: Any, rest: Any, answers: Iterable[Any]) -> None:
    for index, answer in enumerate(answers):
        if index == 0:
            first.CopyFrom(answer)
        else:
            rest.append(answer)


def _timings(timings: Timings) -> item_pb2.Timings:
    return item_pb2.Timings(
        tokenization=_duration(timings.tokenization_ns),
        queue=_duration(timings.queue_ns),
        compute=_duration(timings.compute_ns),
        total=_duration(timings.total_ns),
        batch_items=timings.batch_items,
        batch_tokens=timings.batch_tokens,
        admission=_duration(timings.admission_ns),
        delivery=_duration(time.monotonic_ns() - timings.finished_ns),
    )


def _duration(nanoseconds: int) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(nanoseconds)
    return duration


def _utf8_length(text: str) -> int:
    return len(text.encode())
