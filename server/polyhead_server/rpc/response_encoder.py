"""Wire out: outcomes to the answers of one model."""

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
_LARGEST_INT8 = 127


class ResponseEncoder:
    """Writes the answers of one model."""

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

    def answer(self, item_id: str, outcome: ItemOutcome, options: RequestOptions) -> item_pb2.Answer:
        """One item's answer."""
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
            self._put_embedding(wire.embedding, result.output.embedding, options)
        if Task.CLASSIFICATION in options.tasks:
            _put_first_and_rest(wire.classification, wire.additional_classifications, self._classifications(result))
        if Task.SENTIMENT in options.tasks:
            _put_first_and_rest(wire.sentiment, wire.additional_sentiments, self._sentiments(result))
        return wire

    def _put_embedding(self, wire: item_pb2.Embedding, values: NDArray[np.float32], options: RequestOptions) -> None:
        if options.dimensions:
            values = values[: options.dimensions]  # (dimensions,)
            if self._normalized:
                # What is left may be all zeros, which have no direction and stay as they are.
                values = values / np.float32(np.linalg.norm(values) or 1)
        wire.values, wire.scale = encode(values, options.encoding)
        wire.encoding = _ENCODING_NUMBERS[options.encoding]
        wire.dimensions = len(values)

    def _classifications(self, result: Result) -> Iterable[item_pb2.Classification]:
        for head, probabilities in zip(self._heads, result.output.probabilities, strict=True):
            if head.kind == "softmax":
                values = probabilities.tolist()
                # For the few labels that heads have, numpy would take several times as long.
                best_first = sorted(range(len(values)), key=values.__getitem__, reverse=True)
                scores = [item_pb2.LabelScore(label=head.labels[i], probability=values[i]) for i in best_first]
                yield item_pb2.Classification(head=head.name, scores=scores)

    def _sentiments(self, result: Result) -> Iterable[item_pb2.Sentiment]:
        for head, probabilities in zip(self._heads, result.output.probabilities, strict=True):
            if head.kind == "sigmoid" and head.threshold is not None:
                probability = float(probabilities[0])
                label = head.labels[probability >= head.threshold]
                yield item_pb2.Sentiment(head=head.name, probability=probability, label=label)


def encode(values: NDArray[np.float32], encoding: Encoding) -> tuple[bytes, float]:
    """An embedding's bytes.

    Args:
        values: (dimensions,) finite numbers.
        encoding: Layout.

    Returns:
        The bytes, and the scale of the integers of ``INT8``; 0 for the other layouts.
    """
    if encoding is Encoding.INT8:
        largest = float(np.abs(values).max())
        steps = np.rint(values * (_LARGEST_INT8 / largest)) if largest else values
        return steps.astype(np.int8).tobytes(), largest / _LARGEST_INT8
    if encoding is Encoding.BINARY:
        return np.packbits(values > 0).tobytes(), 0.0
    return values.astype("<f4" if encoding is Encoding.FLOAT32_LE else "<f2", copy=False).tobytes(), 0.0


def _put_first_and_rest(first: Any, rest: Any, answers: Iterable[Any]) -> None:
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
