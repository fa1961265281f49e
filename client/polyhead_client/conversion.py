"""Conversion between protobuf messages and this package's own types; with ``head_conversion`` alone knows both.

::

    options --request_template--> template --with_items--> request message
    answers <--answers_of-- response        model info <--model_info_of-- response
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from google.protobuf import duration_pb2
from google.rpc import code_pb2, status_pb2
from numpy.typing import NDArray
from polyhead.v1 import inference_service_pb2 as service_pb2
from polyhead.v1 import item_pb2, model_pb2

from .choices import Encoding, Order, TruncationPolicy
from .errors import InvalidRequestError, invalid_answer, reason_of, require_integer, retry_after_of
from .head_conversion import classification_of, label_set_of, score_of, sentiment_of
from .model_info import Abstention, EmbeddingInfo, HeadInfo, Limits, ModelInfo, PredictionSets, RuntimeInfo
from .types import Answer, Fingerprints, ItemError, Result, Timings, Truncation

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
    "labels": item_pb2.TASK_LABELS,
    "score": item_pb2.TASK_SCORE,
}
# Attributes of a result that hold the output of a task, where they are not named like it.
_OUTPUTS = {"labels": "label_sets", "score": "scores"}
_TASK_NAMES = {number: task for task, number in _TASKS.items()}
# The task of each stream that has one.
_STREAM_TASKS: dict[type[Any], list[str]] = {
    service_pb2.StreamEmbedRequest: ["embedding"],
    service_pb2.StreamClassifyRequest: ["classification"],
    service_pb2.StreamSentimentRequest: ["sentiment"],
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
        "options": item_options(
            options["truncation"],
            options["include_timings"],
            options["expected_fingerprints"],
            options["prompt"],
            include_novelty=options["include_novelty"],
            include_prediction_sets=options["include_prediction_sets"],
        )
    }
    if "tasks" in options:
        if isinstance(options["tasks"], str):
            problem = f"tasks: expected a list of tasks, not one str; use [{options['tasks']!r}]"
            raise InvalidRequestError("INVALID_ARGUMENT", problem)
        fields["tasks"] = [_lookup("tasks", _TASKS, task) for task in options["tasks"]]
    if "encoding" in options:
        fields["embedding_options"] = embedding_options(options["encoding"], options["dimensions"])
    return kind(**fields)


def item_options(
    truncation: TruncationPolicy,
    include_timings: bool,
    expected: Fingerprints | ModelInfo | None,
    prompt: str | None = None,
    *,
    include_novelty: bool = False,
    include_prediction_sets: bool = False,
) -> item_pb2.ItemOptions:
    """Builds the options that apply to every item, whatever its tasks."""
    policy = _lookup("truncation", _TRUNCATION, truncation)
    options = item_pb2.ItemOptions(
        truncation=policy,
        include_timings=include_timings,
        include_novelty=include_novelty,
        include_prediction_sets=include_prediction_sets,
    )
    if prompt is not None:
        options.prompt = _prompt_name(prompt)
    if expected is not None:
        options.expected_fingerprints.CopyFrom(_fingerprints_message(expected))
    return options


def embedding_options(encoding: Encoding, dimensions: int | None) -> item_pb2.EmbeddingOptions:
    """Builds the options of the embedding."""
    if dimensions is not None:
        require_integer("dimensions", dimensions)
        if dimensions >= _MAX_DIMENSIONS_EXCLUSIVE:
            raise InvalidRequestError("INVALID_ARGUMENT", f"dimensions: {dimensions} is not below 2 ** 32")
    return item_pb2.EmbeddingOptions(encoding=_lookup("encoding", _ENCODING, encoding), dimensions=dimensions or 0)


def _prompt_name(prompt: object) -> str:
    # An empty name would mean no prompt.
    if isinstance(prompt, str) and prompt and prompt.isascii():
        return prompt
    problem = f"prompt: {prompt!r} is not the name of a prompt; ModelInfo.prompts has those of the model"
    raise InvalidRequestError("INVALID_ARGUMENT", problem, "UNKNOWN_PROMPT")


def in_request_order(order: Order) -> bool:
    """Whether answers are returned in the order of their texts."""
    return _lookup("order", _IN_REQUEST_ORDER, order)


def with_items(template: RequestT, items: Iterable[item_pb2.Item]) -> RequestT:
    """Returns a copy of ``template`` with ``items`` added."""
    request = copy.deepcopy(template)
    request.items.extend(items)
    return request


def answers_of(
    response: service_pb2.AnalyzeResponse | StreamResponse, template: service_pb2.AnalyzeRequest | StreamRequest
) -> list[Answer]:
    """Returns the answers in a response message.

    A result that lacks a requested task becomes the error TASK_NOT_AVAILABLE, whether or not the server says so itself.

    Args:
        response: The response.
        template: The request, with or without its items.

    Raises:
        ServerError: An answer violates the contract.
    """
    tasks = _STREAM_TASKS.get(type(template)) or [_TASK_NAMES[task] for task in template.tasks]  # type: ignore[union-attr]
    dimensions = template.embedding_options.dimensions if hasattr(template, "embedding_options") else 0
    return [_answer(answer, tasks, dimensions) for answer in response.answers]


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
        prompts={prompt.name: prompt.text for prompt in model.prompts},
        has_novelty=model.has_novelty,
        name=response.name,
        model_names=tuple(response.model_names),
    )


def _fingerprints_message(expected: Fingerprints | ModelInfo) -> item_pb2.Fingerprints:
    fingerprints: Any = expected.fingerprints if isinstance(expected, ModelInfo) else expected
    if not isinstance(fingerprints, Fingerprints):
        problem = f"expected_fingerprints: expected Fingerprints or ModelInfo, not {type(expected).__name__}"
        raise InvalidRequestError("INVALID_ARGUMENT", problem)
    return item_pb2.Fingerprints(
        embedding_space=fingerprints.embedding_space,
        heads=[
            item_pb2.HeadFingerprint(head=head, fingerprint=fingerprint)
            for head, fingerprint in fingerprints.heads.items()
        ],
    )


def _lookup(option: str, choices: Mapping[str, ChoiceT], choice: str) -> ChoiceT:
    if isinstance(choice, str) and choice in choices:
        return choices[choice]
    raise InvalidRequestError("INVALID_ARGUMENT", f"{option}: {choice!r} is not one of {', '.join(choices)}")


def _answer(answer: item_pb2.Answer, tasks: Iterable[str], dimensions: int) -> Answer:
    match answer.WhichOneof("outcome"):
        case "result":
            result = _result(answer.result, dimensions)
            for task in tasks:
                output = getattr(result, _OUTPUTS.get(task, task))
                if output is None or (isinstance(output, tuple) and not output):
                    return Answer(answer.item_id, error=_task_error(task, result))
            return Answer(answer.item_id, result=result)
        case "error":
            return Answer(answer.item_id, error=_item_error(answer.error))
        case _:
            raise invalid_answer(f"the answer to item {answer.item_id!r} has neither a result nor an error")


def _task_error(task: str, result: Result) -> ItemError:
    heads = ", ".join(result.fingerprints.heads) or "none"
    problem = f"the model has no head for the task {task}; its heads are: {heads}"
    return ItemError("INVALID_ARGUMENT", "TASK_NOT_AVAILABLE", problem)


def _item_error(status: status_pb2.Status) -> ItemError:
    code = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
    return ItemError(code, reason_of(status), status.message, retry_after_of(status))


def _result(result: item_pb2.Result, dimensions: int = 0) -> Result:
    if dimensions and result.HasField("embedding") and result.embedding.dimensions != dimensions:
        problem = f"{dimensions} dimensions were requested, and the embedding has {result.embedding.dimensions}"
        raise invalid_answer(problem)
    if result.HasField("novelty") and not 0 <= result.novelty <= 1:
        raise invalid_answer(f"a novelty of {result.novelty:g}, which is not between 0 and 1")
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
        classification=classification_of(result.classification) if result.HasField("classification") else None,
        sentiment=sentiment_of(result.sentiment) if result.HasField("sentiment") else None,
        additional_classifications=tuple(classification_of(one) for one in result.additional_classifications),
        additional_sentiments=tuple(sentiment_of(one) for one in result.additional_sentiments),
        timings=_timings(result.timings) if result.HasField("timings") else None,
        label_sets=tuple(label_set_of(one) for one in result.label_sets),
        scores=tuple(score_of(one) for one in result.scores),
        novelty=result.novelty if result.HasField("novelty") else None,
    )


def _embedding(embedding: item_pb2.Embedding) -> NDArray[np.float32]:
    if embedding.encoding not in _WIRE_FORMATS:
        raise invalid_answer(f"unknown embedding encoding {embedding.encoding}: update this client")
    dtype_name, packed = _WIRE_FORMATS[embedding.encoding]
    dtype = np.dtype(dtype_name)
    if len(embedding.values) != -(-embedding.dimensions // packed) * dtype.itemsize:
        problem = f"an embedding of {embedding.dimensions} {dtype} dimensions cannot have {len(embedding.values)} bytes"
        raise invalid_answer(problem)
    wire_values = np.frombuffer(embedding.values, dtype)
    if embedding.encoding == item_pb2.EMBEDDING_ENCODING_BINARY:
        wire_values = np.unpackbits(wire_values, count=embedding.dimensions).astype(np.int8) * 2 - 1
    values = wire_values.astype(np.float32, copy=False)  # (dimensions,)
    if embedding.encoding == item_pb2.EMBEDDING_ENCODING_INT8:
        with np.errstate(all="ignore"):  # checked below
            values = values * np.float32(embedding.scale)
    # The product finds NaN and infinity at a fraction of the cost; it may overflow for finite values.
    if not math.isfinite(values.dot(values)) and not np.isfinite(values).all():
        raise invalid_answer("an embedding contains NaN or infinity")
    # An array over bytes is read-only and a converted one is writable: make both behave alike.
    values.flags.writeable = False
    return values


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
        thresholds=tuple(head.thresholds) or None,
        abstention=_abstention(head.abstention) if head.HasField("abstention") else None,
        prediction_sets=_prediction_sets(head.prediction_sets) if head.HasField("prediction_sets") else None,
    )


def _prediction_sets(found: model_pb2.PredictionSets) -> PredictionSets:
    return PredictionSets(found.coverage, found.threshold)


def _abstention(found: model_pb2.Abstention) -> Abstention:
    return Abstention(found.threshold, found.accuracy, found.certainty, found.coverage)
