"""A servicer whose answers prove which text they saw, and which fails when a text tells it to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2, model_pb2

# A text that begins with this is answered with an error.
ERROR = "error:"
# A text that begins with this is refused for overload when it comes for the first time, with a delay of 20 ms.
BUSY = "busy:"
# Texts that end the whole call: with INTERNAL, or as if it were over.
BREAK, END = "break", "end"


class FakeServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """Answers a text with itself as its label, and with the code points of its beginning as its embedding."""

    def __init__(self) -> None:
        self.target = ""
        self.health = health.HealthServicer()
        self.requests: list[Any] = []
        self.calls: list[str] = []
        self.metadata: list[dict[str, str]] = []  # of every call
        self.peers: list[str] = []  # of every call: one a connection
        self.refusals: list[grpc.StatusCode] = []  # what the next unary calls fail with
        self.pushback: str | None = None  # what the refusals say about trying again, in milliseconds
        self.stalls = 0  # so many of the next unary calls hang until they are cancelled
        self.stalled_ended = threading.Event()  # one of those is over
        self.breaks: list[tuple[int, grpc.StatusCode]] = []  # what the next streams fail with, after so many answers
        self.told_busy: set[str] = set()
        self.refuse_after_busy: grpc.StatusCode | None = None  # what the unary call after a busy answer fails with
        self.gate = threading.Event()  # closed, it holds every answer back, and the end of a stream
        self.gate.set()
        self.answer_every = 1  # items to collect before any of them is answered
        self.most_in_flight = 0
        self.max_items = 1024  # in a message; one answer without an id stands for those of a larger one
        self.labels = 2  # of the classification, at the least
        self.ended = threading.Event()  # the last stream is over, for whatever reason

    def Analyze(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._begin("Analyze", context)
        self.requests.append(request)
        if len(request.items) > self.max_items:
            return pb2.AnalyzeResponse(answers=[_too_many()])
        return pb2.AnalyzeResponse(answers=[self._answer(item, request) for item in request.items])

    def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._begin("GetModelInfo", context)
        return pb2.GetModelInfoResponse(model=MODEL)

    def StreamAnalyze(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        return self._stream("StreamAnalyze", pb2.StreamAnalyzeResponse, request_iterator, context)

    def StreamEmbed(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        return self._stream("StreamEmbed", pb2.StreamEmbedResponse, request_iterator, context)

    def StreamClassify(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        return self._stream("StreamClassify", pb2.StreamClassifyResponse, request_iterator, context)

    def StreamSentiment(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        return self._stream("StreamSentiment", pb2.StreamSentimentResponse, request_iterator, context)

    def _arrive(self, call: str, context: Any) -> None:
        self.calls.append(call)
        self.peers.append(context.peer())
        self.metadata.append(dict(context.invocation_metadata()))

    def _begin(self, call: str, context: Any) -> None:
        self._arrive(call, context)
        if self.refusals:
            trailing = [("grpc-status-details-bin", _status(0, "").SerializeToString())]
            if self.pushback is not None:
                trailing.append(("grpc-retry-pushback-ms", self.pushback))
            context.set_trailing_metadata(tuple(trailing))
            context.abort(self.refusals.pop(0), "told to fail")
        if self.stalls:
            self.stalls -= 1
            context.add_callback(self.stalled_ended.set)
            self.stalled_ended.wait(30)
        self.gate.wait()

    def _stream(self, call: str, response_type: Any, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        self._arrive(call, context)
        broken_after, code = self.breaks.pop(0) if self.breaks else (-1, grpc.StatusCode.OK)
        if broken_after == 0:
            context.abort(code, "told to break")
        self.ended.clear()
        context.add_callback(self.ended.set)
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        in_flight = _Counter(self)
        threading.Thread(target=self._drain, args=(requests, arrived, in_flight), daemon=True).start()
        collected: list[item_pb2.Answer] = []
        answered = 0
        while (request := arrived.get()) is not None:
            if len(request.items) > self.max_items:
                yield response_type(answers=[_too_many()])
                continue
            for item in request.items:
                if item.text == END:
                    return
                if item.text == BREAK:
                    context.abort(grpc.StatusCode.INTERNAL, "told to break")
                collected.append(self._answer(item, request))
                if 0 < broken_after == (answered := answered + 1):
                    yield from self._response(response_type, collected, request, in_flight)
                    context.abort(code, "told to break")
            if len(collected) >= self.answer_every:
                yield from self._response(response_type, collected, request, in_flight)
                collected = []
        if collected:
            yield from self._response(response_type, collected, None, in_flight)
        self.gate.wait()

    def _answer(self, item: item_pb2.Item, request: Any) -> item_pb2.Answer:
        if item.text.startswith(BUSY) and item.text not in self.told_busy:
            self.told_busy.add(item.text)
            if self.refuse_after_busy:
                self.refusals.append(self.refuse_after_busy)
            delay = duration_pb2.Duration(nanos=20_000_000)
            refusal = _status(code_pb2.RESOURCE_EXHAUSTED, "busy", error_details_pb2.RetryInfo(retry_delay=delay))
            return item_pb2.Answer(item_id=item.item_id, error=refusal)
        answer = _answer(item, request)
        for number in range(2, self.labels):
            answer.result.classification.scores.add(label=f"a label of some length, {number:08}", probability=0.0)
        return answer

    def _drain(self, requests: Iterator[Any], arrived: queue.SimpleQueue[Any], in_flight: _Counter) -> None:
        try:
            for request in requests:
                in_flight.add(len(request.items))
                self.requests.append(request)
                arrived.put(request)
        except Exception:  # noqa: BLE001  what gRPC raises when the call was cancelled
            self.ended.set()
        finally:
            arrived.put(None)

    def _response(self, response_type: Any, answers: list[Any], request: Any, in_flight: _Counter) -> Iterator[Any]:
        self.gate.wait()
        in_flight.add(-len(answers))
        finished = request is not None and request.order == item_pb2.ANSWER_ORDER_COMPLETION
        yield response_type(answers=reversed(answers) if finished else answers)


class _Counter:
    """Counts the items of a stream that came and were not answered yet."""

    def __init__(self, servicer: FakeServicer) -> None:
        self._servicer = servicer
        self._lock = threading.Lock()
        self._count = 0

    def add(self, items: int) -> None:
        with self._lock:
            self._count += items
            self._servicer.most_in_flight = max(self._servicer.most_in_flight, self._count)


def embedding_of(text: str) -> list[float]:
    """What the server says is the embedding of ``text``. (3,)"""
    return [float(ord(character)) / 1024 for character in text[:3].ljust(3, "\0")]


def _too_many() -> item_pb2.Answer:
    return item_pb2.Answer(error=_status(code_pb2.INVALID_ARGUMENT, "too many items", reason="TOO_MANY_ITEMS"))


def _status(code: int, message: str, *further: Any, reason: str = "TOLD_TO") -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain="polyhead"), *further):
        status.details.add().Pack(detail)
    return status


def _answer(item: item_pb2.Item, request: Any) -> item_pb2.Answer:
    if item.text.startswith(ERROR):
        return item_pb2.Answer(item_id=item.item_id, error=_status(code_pb2.INVALID_ARGUMENT, item.text))
    result = item_pb2.Result(
        classification=item_pb2.Classification(
            head="topic",
            scores=[
                item_pb2.LabelScore(label=item.text, probability=0.9),
                item_pb2.LabelScore(label="other", probability=0.1),
            ],
        ),
        sentiment=item_pb2.Sentiment(head="mood", probability=0.75, label=item.text),
        truncation=item_pb2.Truncation(tokens_seen=len(item.text), tokens_used=len(item.text)),
        fingerprints=MODEL.fingerprints,
    )
    options = getattr(request, "embedding_options", item_pb2.EmbeddingOptions())
    half = options.encoding == item_pb2.EMBEDDING_ENCODING_FLOAT16_LE
    values = np.array(embedding_of(item.text), "<f2" if half else "<f4").tobytes()
    encoding = item_pb2.EMBEDDING_ENCODING_FLOAT16_LE if half else item_pb2.EMBEDDING_ENCODING_FLOAT32_LE
    result.embedding.CopyFrom(item_pb2.Embedding(values=values, encoding=encoding, dimensions=3))
    if request.options.include_timings:
        result.timings.total.FromMilliseconds(1500)
    return item_pb2.Answer(item_id=item.item_id, result=result)


MODEL = model_pb2.ModelInfo(
    model_id="fake-0123456789ab",
    heads=[
        model_pb2.HeadInfo(
            name="topic", kind=model_pb2.HEAD_KIND_SOFTMAX, labels=["account", "billing"], temperature=1.5
        ),
        model_pb2.HeadInfo(
            name="mood", kind=model_pb2.HEAD_KIND_SIGMOID, labels=["bad", "good"], temperature=1, threshold=0.5
        ),
    ],
    embedding=model_pb2.EmbeddingInfo(dimensions=3, pooling="mean", normalized=True),
    limits=model_pb2.Limits(
        max_tokens=256, max_characters=64_000, max_items_per_message=1024, max_message_bytes=16 * 2**20
    ),
    fingerprints=item_pb2.Fingerprints(
        embedding_space="00112233445566aa",
        heads=[
            item_pb2.HeadFingerprint(head="topic", fingerprint="0123456789abcdef"),
            item_pb2.HeadFingerprint(head="mood", fingerprint="fedcba9876543210"),
        ],
    ),
    runtime=model_pb2.RuntimeInfo(engine="onnx", device="cpu", variant="fp32", fallback_reasons=["no cuda here"]),
    bundle_format_version=1,
    server_version="0.1.0",
)
