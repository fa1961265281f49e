"""Encodes item outcomes as ``polyhead.v1.Answer`` messages."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from google.protobuf import duration_pb2
from numpy.typing import NDArray
from polyhead.v1 import item_pb2

from polyhead_server.errors import ServerError
from polyhead_server.inference.types import Encoding, ItemOutcome, RequestOptions, Result, Task, Timings

from .status import status

_ENCODING_NUMBERS = {
    Encoding.FLOAT32_LE: item_pb2.EMBEDDING_ENCODING_FLOAT32_LE,
    Encoding.FLOAT16_LE: item_pb2.EMBEDDING_ENCODING_FLOAT16_LE,
    Encoding.INT8: item_pb2.EMBEDDING_ENCODING_INT8,
    Encoding.BINARY: item_pb2.EMBEDDING_ENCODING_BINARY,
}
_MAX_INT8 = 127


class ResponseEncoder:
    """Encodes the answers of one model.

    Attributes:
        dimensions: Dimensions of the model's embedding.
        fingerprints: Those that every result carries.
    """

    def __init__(self, manifest: bundle.Manifest, fingerprints: bundle.Fingerprints) -> None:
        self._heads = manifest.heads
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
            return item_pb2.Answer(item_id=item_id, error=status(outcome))
        return item_pb2.Answer(item_id=item_id, result=self._result(outcome, options))

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
                # The remaining dimensions may all be zero; a zero vector has no direction and is left as it is.
                values = values / np.float32(np.linalg.norm(values) or 1)
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
    """
    if encoding is Encoding.INT8:
        largest = float(np.abs(values).max())
        steps = np.rint(values * (_MAX_INT8 / largest)) if largest else values
        return steps.astype(np.int8).tobytes(), largest / _MAX_INT8
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
