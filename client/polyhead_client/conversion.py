"""Between protobuf messages and this package's own types: the only file that knows both.

::

    options --analyze_request, stream_request--> template --with_items--> message
    answer  <--answers_of-- response             model info <--model_info_of-- response
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Literal, TypeVar

import numpy as np
from google.protobuf import duration_pb2
from google.rpc import code_pb2, status_pb2
from numpy.typing import NDArray
from polyhead.v1 import inference_service_pb2 as service_pb2
from polyhead.v1 import item_pb2, model_pb2

from .errors import InvalidRequestError, ServerError, reason_of, retry_after_of
from .model_info import EmbeddingInfo, HeadInfo, Limits, ModelInfo, RuntimeInfo
from .types import Answer, Classification, Fingerprints, ItemError, LabelScore, Result, Sentiment, Timings, Truncation

Task = Literal["embedding", "classification", "sentiment"]
TruncationPolicy = Literal["truncate", "error", "window"]
Order = Literal["request", "completion"]
Encoding = Literal["float32", "float16", "int8", "binary"]

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
# numpy's name of each encoding's numbers, and how many of them a byte, or a number, holds.
_LAYOUTS = {
    item_pb2.EMBEDDING_ENCODING_FLOAT32_LE: ("<f4", 1),
    item_pb2.EMBEDDING_ENCODING_FLOAT16_LE: ("<f2", 1),
    item_pb2.EMBEDDING_ENCODING_INT8: ("i1", 1),
    item_pb2.EMBEDDING_ENCODING_BINARY: ("u1", 8),
}
_DIMENSIONS_END = 2**32


def item_options(
    truncation: TruncationPolicy, include_timings: bool, expected: Fingerprints | ModelInfo | None
) -> item_pb2.ItemOptions:
    """The wishes that hold for every item, whatever its tasks."""
    policy = _chosen("truncation", _TRUNCATION, truncation)
    options = item_pb2.ItemOptions(truncation=policy, include_timings=include_timings)
    if expected is not None:
        options.expected_fingerprints.CopyFrom(_expected(expected))
    return options


def embedding_options(encoding: Encoding, dimensions: int | None) -> item_pb2.EmbeddingOptions:
    """The wishes for the embedding."""
    if dimensions is not None and not 0 < dimensions < _DIMENSIONS_END:
        raise InvalidRequestError("INVALID_ARGUMENT", f"dimensions: {dimensions} is not above 0 and below 2 ** 32")
    return item_pb2.EmbeddingOptions(encoding=_chosen("encoding", _ENCODING, encoding), dimensions=dimensions or 0)


def task_numbers(tasks: Iterable[Task]) -> list[item_pb2.Task.ValueType]:
    """The tasks on the wire."""
    return [_chosen("tasks", _TASKS, task) for task in tasks]


def in_request_order(order: Order) -> bool:
    """Whether answers come in the order of their texts."""
    return _chosen("order", _IN_REQUEST_ORDER, order)


def with_items(template: RequestT, items: Iterable[item_pb2.Item]) -> RequestT:
    """A message that asks for ``items`` what ``template`` asks for."""
    request = copy.deepcopy(template)
    request.items.extend(items)
    return request


def answers_of(response: service_pb2.AnalyzeResponse | StreamResponse) -> list[Answer]:
    """The answers that a message carries.

    Raises:
        ServerError: An answer is not what the contract says.
    """
    return [_answer(answer) for answer in response.answers]


def model_info_of(response: service_pb2.GetModelInfoResponse) -> ModelInfo:
    """The description of the model that a message carries."""
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


def _expected(expected: Fingerprints | ModelInfo) -> item_pb2.Fingerprints:
    fingerprints = expected.fingerprints if isinstance(expected, ModelInfo) else expected
    return item_pb2.Fingerprints(
        embedding_space=fingerprints.embedding_space,
        heads=[
            item_pb2.HeadFingerprint(head=head, fingerprint=fingerprint)
            for head, fingerprint in fingerprints.heads.items()
        ],
    )


def _chosen(option: str, choices: dict[str, ChoiceT], choice: str) -> ChoiceT:
    if choice in choices:
        return choices[choice]
    raise InvalidRequestError("INVALID_ARGUMENT", f"{option}: {choice!r} is none of {', '.join(choices)}")


def _answer(answer: item_pb2.Answer) -> Answer:
    match answer.WhichOneof("outcome"):
        case "result":
            return Answer(answer.item_id, result=_result(answer.result))
        case "error":
            return Answer(answer.item_id, error=_item_error(answer.error))
        case _:
            raise ServerError("INTERNAL", f"the answer to item {answer.item_id!r} holds neither a result nor an error")


def _item_error(status: status_pb2.Status) -> ItemError:
    code = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
    return ItemError(code, reason_of(status), status.message, retry_after_of(status))


def _result(result: item_pb2.Result) -> Result:
    cut = result.truncation
    return Result(
        truncation=Truncation(
            truncated=cut.truncated,
            tokens_seen=cut.tokens_seen,
            tokens_used=cut.tokens_used,
            cut_at_code_point=cut.cut_at_code_point if cut.HasField("cut_at_code_point") else None,
            windows=cut.windows or 1,  # a server that knows no windows says nothing
        ),
        fingerprints=_fingerprints(result.fingerprints),
        embedding=_embedding(result.embedding) if result.HasField("embedding") else None,
        classification=_classification(result.classification) if result.HasField("classification") else None,
        sentiment=_sentiment(result.sentiment) if result.HasField("sentiment") else None,
        additional_classifications=tuple(_classification(further) for further in result.additional_classifications),
        additional_sentiments=tuple(_sentiment(further) for further in result.additional_sentiments),
        timings=_timings(result.timings) if result.HasField("timings") else None,
    )


def _embedding(embedding: item_pb2.Embedding) -> NDArray[np.float32]:
    if embedding.encoding not in _LAYOUTS:
        raise ServerError("INTERNAL", f"embedding encoding {embedding.encoding} is not known: update this client")
    name, packed = _LAYOUTS[embedding.encoding]
    dtype = np.dtype(name)
    if len(embedding.values) != -(-embedding.dimensions // packed) * dtype.itemsize:
        raise ServerError("INTERNAL", f"{len(embedding.values)} bytes are no {embedding.dimensions} numbers of {dtype}")
    numbers = np.frombuffer(embedding.values, dtype)
    if embedding.encoding == item_pb2.EMBEDDING_ENCODING_BINARY:
        numbers = np.unpackbits(numbers, count=embedding.dimensions).astype(np.int8) * 2 - 1
    values = numbers.astype(np.float32, copy=False)  # (dimensions,)
    if embedding.encoding == item_pb2.EMBEDDING_ENCODING_INT8:
        values = values * np.float32(embedding.scale)
    # Bytes make a read-only array, conversion a writable one: the caller sees one behaviour.
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
