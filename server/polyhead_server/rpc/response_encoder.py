"""Encodes item outcomes as serialized ``polyhead.v1.Answer`` messages.

Every response message has the answers in the same field, so the responses of single answers, one after the other, are
the response of all of them. The parts that answers share are encoded once: for a model, for the options of messages,
for a head. Building an answer of protobuf's objects takes three times as long: 27 us instead of 9.5.
"""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import polyhead_bundle as bundle
from google.protobuf import duration_pb2
from numpy.typing import NDArray
from polyhead.v1 import inference_service_pb2, item_pb2

from polyhead_server.errors import EncodingOverflowError, ServerError
from polyhead_server.inference import head_answers
from polyhead_server.inference.novelty import Novelty
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
from polyhead_server.serving.embeddings import encode_embedding, shorten

from .head_encoder import HeadEncoder, head_encoders
from .status import status
from .wire_format import delimited, tag, varint

_ENCODING_NUMBERS = {
    Encoding.FLOAT32_LE: item_pb2.EMBEDDING_ENCODING_FLOAT32_LE,
    Encoding.FLOAT16_LE: item_pb2.EMBEDDING_ENCODING_FLOAT16_LE,
    Encoding.INT8: item_pb2.EMBEDDING_ENCODING_INT8,
    Encoding.BINARY: item_pb2.EMBEDDING_ENCODING_BINARY,
}
# gRPC clients accept messages of 4 MiB by default; 1 KiB is more than the rest of a response needs.
MAX_RESPONSE_BYTES = 4 * 2**20
_RESPONSE_OVERHEAD_BYTES = 1024
# The error of one item, with its details.
_MAX_ERROR_BYTES = 1024
_MAX_CACHED_OPTIONS = 1024
_MAX_UINT32 = 2**32 - 1
# A thousand years, in nanoseconds, and the nanoseconds of a second that take the most bytes.
_LONG_NS = 1000 * 365 * 86_400 * 10**9 + 999_999_999

_ANSWERS = tag(inference_service_pb2.AnalyzeResponse.DESCRIPTOR, "answers", "message")
_ANSWER, _RESULT, _EMBEDDING = item_pb2.Answer.DESCRIPTOR, item_pb2.Result.DESCRIPTOR, item_pb2.Embedding.DESCRIPTOR
_ITEM_ID = tag(_ANSWER, "item_id", "bytes")
_RESULT_FIELD = tag(_ANSWER, "result", "message")
_ERROR_FIELD = tag(_ANSWER, "error", "message")
_EMBEDDING_FIELD = tag(_RESULT, "embedding", "message")
_TRUNCATION_FIELD = tag(_RESULT, "truncation", "message")
_FINGERPRINTS_FIELD = tag(_RESULT, "fingerprints", "message")
_TIMINGS_FIELD = tag(_RESULT, "timings", "message")
_NOVELTY_FIELD = tag(_RESULT, "novelty", "float")
_VALUES = tag(_EMBEDDING, "values", "bytes")
_SCALE = tag(_EMBEDDING, "scale", "float")


class ResponseEncoder:
    """Encodes the answers of one model.

    Attributes:
        dimensions: Dimensions of the model's embedding.
        fingerprints: Those that every result carries.
        tasks: Tasks for which the model has a head.
        has_novelty: Whether the model has the novelty of texts.
    """

    def __init__(
        self, manifest: bundle.Manifest, fingerprints: bundle.Fingerprints, novelty: Novelty | None = None
    ) -> None:
        self._heads = manifest.heads
        self._novelty = novelty
        self.has_novelty = novelty is not None
        self._head_encoders = head_encoders(manifest.heads)
        self._with_prediction_sets = head_encoders(manifest.heads, prediction_sets=True)
        self.tasks = frozenset({Task.EMBEDDING, *(head.task for head in self._head_encoders)})
        self._normalized = manifest.embedding.normalized
        self.dimensions = manifest.embedding.dimensions
        self.fingerprints = item_pb2.Fingerprints(
            embedding_space=fingerprints.embedding_space,
            heads=[
                item_pb2.HeadFingerprint(head=head.name, fingerprint=fingerprints.heads[head.name])
                for head in self._heads
            ],
        )
        self._answer_encoders: dict[tuple[Any, ...], AnswerEncoder] = {}
        self._last_options = RequestOptions()
        self._last_encoder = self._find_encoder(self._last_options)

    def for_options(self, options: RequestOptions) -> AnswerEncoder:
        """Returns the encoder of answers to messages with these options."""
        # Consecutive messages mostly have the same options, of which the decoder keeps one object.
        if self._last_options is options:
            return self._last_encoder
        self._last_encoder = self._find_encoder(options)
        self._last_options = options
        return self._last_encoder

    def _find_encoder(self, options: RequestOptions) -> AnswerEncoder:
        key = (
            *(options.tasks, options.encoding, options.dimensions),
            *(options.timings, options.novelty, options.prediction_sets),
        )
        if (known := self._answer_encoders.get(key)) is not None:
            return known
        # The keys are bounded by the checked options, but dimensions may take many values.
        if len(self._answer_encoders) >= _MAX_CACHED_OPTIONS:
            self._answer_encoders.clear()
        heads = self._with_prediction_sets if options.prediction_sets else self._head_encoders
        made = self._answer_encoders[key] = AnswerEncoder(
            options,
            [one for one in heads if one.task in options.tasks],
            delimited(_FINGERPRINTS_FIELD, self.fingerprints.SerializeToString()),
            options.dimensions or self.dimensions,
            self._novelty if options.novelty else None,
            normalized=self._normalized,
        )
        return made

    def max_items(self, options: RequestOptions) -> int:
        """Returns the number of items whose answers fit into a response for certain, whatever their ids; at least 1."""
        encoder = self.for_options(options)
        if not encoder.max_bytes:
            encoder.max_bytes = self._largest_response(encoder, options).ByteSize()
        largest = max(encoder.max_bytes, MAX_ITEM_ID_BYTES + _MAX_ERROR_BYTES)
        return max((MAX_RESPONSE_BYTES - _RESPONSE_OVERHEAD_BYTES) // largest, 1)

    def _largest_response(
        self, encoder: AnswerEncoder, options: RequestOptions
    ) -> inference_service_pb2.AnalyzeResponse:
        """Returns the response of one answer in which every number takes as many bytes as it can."""
        output = ModelOutput(
            np.ones(self.dimensions, np.float32),
            (),
            # Every label of a multilabel head applies then.
            tuple(np.ones(head_answers.numbers_of(head), np.float32) for head in self._heads),
        )
        longest = Timings(_LONG_NS, _LONG_NS, _LONG_NS, _LONG_NS, _MAX_UINT32, _MAX_UINT32, -_LONG_NS)
        outcome = Result(output, TokenizedText(([],), 1, 1), longest)
        data = encoder.encode("i" * MAX_ITEM_ID_BYTES, outcome)
        response = inference_service_pb2.AnalyzeResponse.FromString(data)
        result = response.answers[0].result
        cut = result.truncation
        cut.tokens_seen = cut.tokens_used = cut.cut_at_code_point = cut.windows = _MAX_UINT32
        if options.timings:
            result.timings.admission.CopyFrom(_duration(_LONG_NS))
        labels = {head.name: head.labels for head in self._heads}
        labelled: list[item_pb2.Sentiment | item_pb2.Score] = [result.sentiment, *result.additional_sentiments]
        for score in result.scores:
            # The labels' values may add up to 0, which takes no bytes here.
            score.value = 1.0
        for one in [*labelled, *result.scores]:
            if names := labels.get(one.head):
                one.label = max(names, key=lambda name: len(name.encode()))
        return response


class AnswerEncoder:
    """Encodes the answers of one model to messages with the same options.

    Attributes:
        max_bytes: Size of the largest response of one answer; 0 while unknown.
    """

    def __init__(
        self,
        options: RequestOptions,
        heads: Sequence[HeadEncoder],
        fingerprints: bytes,
        dimensions: int,
        novelty: Novelty | None,
        *,
        normalized: bool,
    ) -> None:
        """Prepares the shared parts.

        Args:
            options: Options of the messages.
            heads: Encoders of the requested heads.
            fingerprints: The field ``fingerprints`` of each result.
            dimensions: Dimensions of the embedding in the answers.
            novelty: Computes the novelty of each text; None to leave it out.
            normalized: Whether the model's embeddings have length 1.
        """
        self.max_bytes = 0
        self._heads = heads
        self._fingerprints = fingerprints
        self._has_embedding = Task.EMBEDDING in options.tasks
        self._encoding = options.encoding
        self._dimensions = options.dimensions
        # The fields of the embedding besides its values.
        self._description = item_pb2.Embedding(
            encoding=_ENCODING_NUMBERS[options.encoding], dimensions=dimensions
        ).SerializeToString()
        self._timings = options.timings
        self._novelty = novelty
        self._normalized = normalized
        # The field ``error`` of the last error: the items of a message often share one, and converting it costs more
        # than sending it.
        self._last_error: tuple[ServerError | None, bytes] = None, b""

    def encode(self, item_id: str, outcome: ItemOutcome) -> bytes:
        """Returns a serialized response message with the answer of one item, and nothing else."""
        try:
            encoded = self._error(outcome) if isinstance(outcome, ServerError) else self._result(outcome)
        except EncodingOverflowError as error:
            encoded = self._error(error)
        if item_id:
            encoded = delimited(_ITEM_ID, item_id.encode()) + encoded
        return _ANSWERS + varint(len(encoded)) + encoded

    def _error(self, error: ServerError) -> bytes:
        if self._last_error[0] is not error:
            self._last_error = error, delimited(_ERROR_FIELD, status(error).SerializeToString())
        return self._last_error[1]

    def _result(self, result: Result) -> bytes:
        output, tokens = result.output, result.tokens
        fields = [self._embedding(output.embedding)] if self._has_embedding else []
        fields += [head.encode(output.probabilities[head.position]) for head in self._heads]
        fields.append(_truncation(tokens.cut_at, tokens.seen, tokens.used, len(tokens.windows)))
        fields.append(self._fingerprints)
        if self._novelty:
            fields.append(_NOVELTY_FIELD + struct.pack("<f", self._novelty.score(output.embedding[None]).item()))
        if self._timings:
            fields.append(delimited(_TIMINGS_FIELD, _timings(result.timings).SerializeToString()))
        return delimited(_RESULT_FIELD, b"".join(fields))

    def _embedding(self, values: NDArray[np.float32]) -> bytes:
        values = shorten(values, self._dimensions, normalized=self._normalized)
        data, scale = encode_embedding(values, self._encoding)
        embedding = delimited(_VALUES, data) + self._description
        if scale:
            embedding += _SCALE + struct.pack("<f", scale)
        return delimited(_EMBEDDING_FIELD, embedding)


@functools.lru_cache(maxsize=4096)
def _truncation(cut_at: int | None, seen: int, used: int, windows: int) -> bytes:
    """Returns the field ``truncation``. Most texts are whole and short, so that few different values occur."""
    truncation = item_pb2.Truncation(
        truncated=cut_at is not None, tokens_seen=seen, tokens_used=used, cut_at_code_point=cut_at, windows=windows
    )
    return delimited(_TRUNCATION_FIELD, truncation.SerializeToString())


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
