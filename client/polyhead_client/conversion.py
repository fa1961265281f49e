"""Conversion between protobuf messages and this package's own types; no other module knows both.

::

    options --request_template--> template --with_items--> request message
    answers <--answers_of-- response        model info <--model_info_of-- response
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from google.protobuf import duration_pb2
from google.rpc import code_pb2, status_pb2
from numpy.typing import NDArray
from polyhead.v1 import inference_service_pb2 as service_pb2
from polyhead.v1 import item_pb2, model_pb2

from .choices import Encoding, Order, TruncationPolicy
from .errors import InvalidRequestError, ServerError, reason_of, retry_after_of
from .types import (
    Answer,
    Classification,
    EmbeddingInfo,
    Fingerprints,
    HeadInfo,
    ItemError,
    LabelScore,
    Limits,
    ModelInfo,
    Result,
    RuntimeInfo,
    Sentiment,
    Timings,
    Truncation,
)

StreamRequest = (
    service_pb2.StreamAnalyzeRequest
    | service_pb2.StreamEmbedRequest
    | service_pb2.StreamClassifyRequest
    | service_pb2.StreamSentimentRequest
)
StreamResponse = (
    service_pb2.StreamAnalyzeResponse
    | service_pb2.StreamEmbedResponse
    | service_pb2.StreamClassifyResponse
    | service_pb2.StreamSentimentResponse
)
RequestT = TypeVar("RequestT", bound=service_pb2.AnalyzeRequest | StreamRequest)
ChoiceT = TypeVar("ChoiceT")

_TASKS = {
    "embedding": item_pb2.TASK_EMBEDDING,
    "classification": item_pb2.TASK_CLASSIFICATION,
    "sentiment": item_pb2.TASK_SENTIMENT,
}
_TRUNCATION = {
    "truncate": item_pb2.TRUNCATION_POLICY_TRUNCATE,
    "error": item_pb2.TRUNCATION_POLICY_ERROR,
    "window": item_pb2.TRUNCATION_POLICY_WINDOW,
}
_IN_REQUEST_ORDER = {"request": True, "completion": False}
_ENCODING = {
    "float32": item_pb2.EMBEDDING_ENCODING_FLOAT32_LE,
    "float16": item_pb2.EMBEDDING_ENCODING_FLOAT16_LE,
    "int8": item_pb2.EMBEDDING_ENCODING_INT8,
    "binary": item_pb2.EMBEDDING_ENCODING_BINARY,
}
# By encoding: numpy dtype of the values on the wire, and number of dimensions per value.
_WIRE_FORMATS = {
    item_pb2.EMBEDDING_ENCODING_FLOAT32_LE: ("<f4", 1),
    item_pb2.EMBEDDING_ENCODING_FLOAT16_LE: ("<f2", 1),
    item_pb2.EMBEDDING_ENCODING_INT8: ("i1", 1),
    item_pb2.EMBEDDING_ENCODING_BINARY: ("u1", 8),
}
_MAX_DIMENSIONS_EXCLUSIVE = 2**32


def request_template(kind: type[RequestT], options: Mapping[str, Any]) -> RequestT:
    """Builds a request message without items from the options of a method.

    Args:
        kind: Message type; options that it has no field for must be absent.
        options: Options by name, with their defaults filled in.

    Raises:
        InvalidRequestError: An option has an unknown value.
    """
    fields: dict[str, Any] = {
        "options": item_options(options["truncation"], options["include_timings"], options["expected_fingerprints"])
    }
    if "tasks" in options:
        fields["tasks"] = [_lookup("tasks", _TASKS, task) for task in options["tasks"]]
    if "encoding" in options:
        fields["embedding_options"] = embedding_options(options["encoding"], options["dimensions"])
    return kind(**fields)


def item_options(
    truncation: TruncationPolicy, include_timings: bool, expected: Fingerprints | ModelInfo | None
) -> item_pb2.ItemOptions:
    """Builds the options that apply to every item, whatever its tasks."""
    policy = _lookup("truncation", _TRUNCATION, truncation)
    options = item_pb2.ItemOptions(truncation=policy, include_timings=include_timings)
    if expected is not None:
        options.expected_fingerprints.CopyFrom(_fingerprints_message(expected))
    return options


def embedding_options(encoding: Encoding, dimensions: int | None) -> item_pb2.EmbeddingOptions:
    """Builds the options of the embedding."""
    if dimensions is not None and not 0 < dimensions < _MAX_DIMENSIONS_EXCLUSIVE:
        raise InvalidRequestError("INVALID_ARGUMENT", f"dimensions: {dimensions} is not between 1 and 2 ** 32 - 1")
    return item_pb2.EmbeddingOptions(encoding=_lookup("encoding", _ENCODING, encoding), dimensions=dimensions or 0)


def in_request_order(order: Order) -> bool:
    """Whether answers are returned in the order of their texts."""
    return _lookup("order", _IN_REQUEST_ORDER, order)


def with_items(template: RequestT, items: Iterable[item_pb2.Item]) -> RequestT:
    """Returns a copy of ``template`` with ``items`` added."""
    request = copy.deepcopy(template)
    request.items.extend(items)
    return request


def answers_of(response: service_pb2.AnalyzeResponse | StreamResponse) -> list[Answer]:
    """Returns the answers in a response message.

    Raises:
        ServerError: An answer violates the contract.
    """
    return [_answer(answer) for answer in response.answers]


def model_info_of(response: service_pb2.GetModelInfoResponse) -> ModelInfo:
    """Returns the description of the model in a response message."""
    model, runtime = response.model, response.model.runtime
    return ModelInfo(
        model_id=model.model_id,
        heads=tuple(_head(head) for head in model.heads),
        embedding=EmbeddingInfo(model.embedding.dimensions, model.embedding.pooling, model.embedding.normalized),
        limits=Limits(
            max_tokens=model.limits.max_tokens,
            max_characters=model.limits.max_characters,
            max_items_per_message=model.limits.max_items_per_message,
            max_message_bytes=model.limits.max_message_bytes,
            max_windows=model.limits.max_windows,
        ),
        fingerprints=_fingerprints(model.fingerprints),
        runtime=RuntimeInfo(runtime.engine, runtime.device, runtime.variant, tuple(runtime.fallback_reasons)),
        bundle_format_version=model.bundle_format_version,
        server_version=model.server_version,
    )


def _fingerprints_message(expected: Fingerprints | ModelInfo) -> item_pb2.Fingerprints:
    fingerprints = expected.fingerprints if isinstance(expected, ModelInfo) else expected
    return item_pb2.Fingerprints(
        embedding_space=fingerprints.embedding_space,
        heads=[
            item_pb2.HeadFingerprint(head=head, fingerprint=fingerprint)
            for head, fingerprint in fingerprints.heads.items()
        ],
    )


def _lookup(option: str, choices: Mapping[str, ChoiceT], choice: str) -> ChoiceT:
    if choice in choices:
        return choices[choice]
    raise InvalidRequestError("INVALID_ARGUMENT", f"{option}: {choice!r} is not one of {', '.join(choices)}")


def _answer(answer: item_pb2.Answer) -> Answer:
    match answer.WhichOneof("outcome"):
        case "result":
            return Answer(answer.item_id, result=_result(answer.result))
        case "error":
            return Answer(answer.item_id, error=_item_error(answer.error))
        case _:
            raise ServerError("INTERNAL", f"the answer to item {answer.item_id!r} has neither a result nor an error")


def _item_error(status: status_pb2.Status) -> ItemError:
    code = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
    return ItemError(code, reason_of(status), status.message, retry_after_of(status))


def _result(result: item_pb2.Result) -> Result:
    truncation = result.truncation
    return Result(
        truncation=Truncation(
            truncated=truncation.truncated,
            tokens_seen=truncation.tokens_seen,
            tokens_used=truncation.tokens_used,
            cut_at_code_point=truncation.cut_at_code_point if truncation.HasField("cut_at_code_point") else None,
            windows=truncation.windows or 1,  # 0 from a server without window support
        ),
        fingerprints=_fingerprints(result.fingerprints),
        embedding=_embedding(result.embedding) if result.HasField("embedding") else None,
        classification=_classification(result.classification) if result.HasField("classification") else None,
        sentiment=_sentiment(result.sentiment) if result.HasField("sentiment") else None,
        additional_classifications=tuple(_classification(one) for one in result.additional_classifications),
        additional_sentiments=tuple(_sentiment(one) for one in result.additional_sentiments),
        timings=_timings(result.timings) if result.HasField("timings") else None,
    )


def _embedding(embedding: item_pb2.Embedding) -> NDArray[np.float32]:
    if embedding.encoding not in _WIRE_FORMATS:
        raise ServerError("INTERNAL", f"unknown embedding encoding {embedding.encoding}: update this client")
    dtype_name, packed = _WIRE_FORMATS[embedding.encoding]
    dtype = np.dtype(dtype_name)
    if len(embedding.values) != -(-embedding.dimensions // packed) * dtype.itemsize:
        problem = f"an embedding of {embedding.dimensions} {dtype} dimensions cannot have {len(embedding.values)} bytes"
        raise ServerError("INTERNAL", problem)
    wire_values = np.frombuffer(embedding.values, dtype)
    if embedding.encoding == item_pb2.EMBEDDING_ENCODING_BINARY:
        wire_values = np.unpackbits(wire_values, count=embedding.dimensions).astype(np.int8) * 2 - 1
    values = wire_values.astype(np.float32, copy=False)  # (dimensions,)
    if embedding.encoding == item_pb2.EMBEDDING_ENCODING_INT8:
        values = values * np.float32(embedding.scale)
    # An array over bytes is read-only and a converted one is writable: make both behave alike.
    values.flags.writeable = False
    return values


def _classification(classification: item_pb2.Classification) -> Classification:
    scores = tuple(LabelScore(score.label, score.probability) for score in classification.scores)
    return Classification(classification.head, scores)


def _sentiment(sentiment: item_pb2.Sentiment) -> Sentiment:
    return Sentiment(sentiment.head, sentiment.probability, sentiment.label)


def _fingerprints(fingerprints: item_pb2.Fingerprints) -> Fingerprints:
    heads = {head.head: head.fingerprint for head in fingerprints.heads}
    return Fingerprints(fingerprints.embedding_space, heads)


def _timings(timings: item_pb2.Timings) -> Timings:
    return Timings(
        tokenization_s=_seconds(timings.tokenization),
        queue_s=_seconds(timings.queue),
        compute_s=_seconds(timings.compute),
        total_s=_seconds(timings.total),
        batch_items=timings.batch_items,
        batch_tokens=timings.batch_tokens,
        admission_s=_seconds(timings.admission),
        delivery_s=_seconds(timings.delivery),
    )


def _seconds(duration: duration_pb2.Duration) -> float:
    return duration.seconds + duration.nanos * 1e-9


def _head(head: model_pb2.HeadInfo) -> HeadInfo:
    known = head.kind in model_pb2.HeadKind.values()
    return HeadInfo(
        name=head.name,
        kind=model_pb2.HeadKind.Name(head.kind).removeprefix("HEAD_KIND_").lower() if known else "unknown",
        labels=tuple(head.labels),
        temperature=head.temperature,
        threshold=head.threshold if head.HasField("threshold") else None,
    )
