"""A real gRPC server with a fake model: its answers prove which text they belong to, and it fails on request."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2, model_pb2
from polyhead_client import Answer

# A text with this prefix is answered with an error.
ERROR = "error:"
# A text with this prefix is rejected as overload the first time, with a retry delay of 20 ms.
BUSY = "busy:"
# Texts that end the whole stream: with INTERNAL, or with OK before all items are answered.
BREAK, END = "break", "end"


class FakeServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """Answers a text with the text as its label, and with its first code points as its embedding.

    Attributes:
        target: Address of the server.
        health: Its health service.
        requests: Request messages received.
        calls: Method names of the calls received.
        metadata: Metadata of each call.
        peers: Peer of each call, one per connection.
        unary_failures: Status codes that the next unary calls fail with.
        failure_message: Their message.
        pushback: Retry push-back of those failures, in milliseconds.
        hanging_calls: Number of next unary calls that hang until they are cancelled.
        hanging_call_ended: Set when one of those is over.
        stream_failures: Status codes that the next streams fail with, each after a number of answers.
        fail_after_busy: Status code that the unary call after a BUSY rejection fails with.
        gate: While it is clear, no answer is sent and no stream ends.
        answer_every: Number of items to collect before any of them is answered.
        max_in_flight_seen: Maximum number of items of a stream that were received and not yet answered.
        max_items: Items accepted in one message; a larger one gets a single answer without an id.
        labels: Minimum number of labels of the classification.
        embedding_spaces: Fingerprints of the results in the order of the items; empty for that of the model.
        missing: Outputs that no result has, as if the model had no head for them.
        additional_heads: Heads of the model's description besides those that always answer.
        applying: Labels of every label set; None for the text itself.
        abstained: Whether the softmax and the sigmoid head abstain; None for heads that never do.
        stream_ended: Set when the last stream is over, for whatever reason.
        open_streams: Number of streams that are not over.
    """

    def __init__(self) -> None:
        self.target = ""
        # Not its non-blocking watches: they send under a lock that the thread which completes the sending may wait for.
        self.health = health.HealthServicer(experimental_non_blocking=False)
        self.requests: list[Any] = []
        self.calls: list[str] = []
        self.metadata: list[dict[str, str]] = []
        self.peers: list[str] = []
        self.unary_failures: list[grpc.StatusCode] = []
        self.failure_message = "requested failure"
        self.pushback: str | None = None
        self.hanging_calls = 0
        self.hanging_call_ended = threading.Event()
        self.stream_failures: list[tuple[int, grpc.StatusCode]] = []
        self.fail_after_busy: grpc.StatusCode | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.answer_every = 1
        self.max_in_flight_seen = 0
        self.max_items = 1024
        self.labels = 2
        self.missing: list[Any] = []
        self.additional_heads: list[model_pb2.HeadInfo] = []
        self.applying: list[str] | None = None
        self.abstained: bool | None = None
        self.embedding_spaces: list[str] = []
        self.stream_ended = threading.Event()
        self.open_streams = 0
        self._lock = threading.Lock()  # of ``open_streams``
        self._rejected: set[str] = set()  # BUSY texts that came once

    def Analyze(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._begin("Analyze", context)
        self.requests.append(request)
        if len(request.items) > self.max_items:
            return pb2.AnalyzeResponse(answers=[_too_many()])
        return pb2.AnalyzeResponse(answers=[self._answer(item, request) for item in request.items])

    def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._begin("GetModelInfo", context)
        response = pb2.GetModelInfoResponse(model=MODEL)
        response.model.heads.extend(self.additional_heads)
        return response

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
        if self.unary_failures:
            code = self.unary_failures.pop(0)
            details = _status(code.value[0], "requested failure")
            trailing = [("grpc-status-details-bin", details.SerializeToString())]
            if self.pushback is not None:
                trailing.append(("grpc-retry-pushback-ms", self.pushback))
            context.set_trailing_metadata(tuple(trailing))
            context.abort(code, self.failure_message)
        if self.hanging_calls:
            self.hanging_calls -= 1
            context.add_callback(self.hanging_call_ended.set)
            self.hanging_call_ended.wait(30)
        self.gate.wait()

    def _stream(self, call: str, response_type: Any, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        self._arrive(call, context)
        fails_after, code = self.stream_failures.pop(0) if self.stream_failures else (-1, grpc.StatusCode.OK)
        if fails_after == 0:
            context.abort(code, "requested failure")
        self.stream_ended.clear()
        self._count_stream(1)
        context.add_callback(lambda: self._count_stream(-1))
        context.add_callback(self.stream_ended.set)
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
                    context.abort(grpc.StatusCode.INTERNAL, "requested failure")
                collected.append(self._answer(item, request))
                if 0 < fails_after == (answered := answered + 1):
                    yield from self._response(response_type, collected, request, in_flight)
                    context.abort(code, "requested failure")
            if len(collected) >= self.answer_every:
                yield from self._response(response_type, collected, request, in_flight)
                collected = []
        if collected:
            yield from self._response(response_type, collected, None, in_flight)
        self.gate.wait()

    def _count_stream(self, change: int) -> None:
        with self._lock:
            self.open_streams += change

    def _answer(self, item: item_pb2.Item, request: Any) -> item_pb2.Answer:
        if item.text.startswith(BUSY) and item.text not in self._rejected:
            self._rejected.add(item.text)
            if self.fail_after_busy:
                self.unary_failures.append(self.fail_after_busy)
            delay = duration_pb2.Duration(nanos=20_000_000)
            rejection = _status(code_pb2.RESOURCE_EXHAUSTED, "busy", error_details_pb2.RetryInfo(retry_delay=delay))
            return item_pb2.Answer(item_id=item.item_id, error=rejection)
        answer = _answer(item, request)
        for number in range(2, self.labels):
            answer.result.classification.scores.add(label=f"{'a long label, ' * 30}{number:08}", probability=0.0)
        if self.embedding_spaces:
            answer.result.fingerprints.embedding_space = self.embedding_spaces[int(item.item_id)]
        if self.applying is not None:
            for label_set in answer.result.label_sets:
                label_set.scores.extend(item_pb2.LabelScore(label=label) for label in self.applying)
                label_set.labels[:] = self.applying
        if self.abstained is not None:
            for head in (answer.result.classification, answer.result.sentiment):
                head.confidence, head.abstained = 0.75, self.abstained
        for name in self.missing:
            answer.result.ClearField(name)
        return answer

    def _drain(self, requests: Iterator[Any], arrived: queue.SimpleQueue[Any], in_flight: _Counter) -> None:
        try:
            for request in requests:
                in_flight.add(len(request.items))
                self.requests.append(request)
                arrived.put(request)
        except Exception:  # noqa: BLE001  gRPC raises it when the call is cancelled
            self.stream_ended.set()
        finally:
            arrived.put(None)

    def _response(self, response_type: Any, answers: list[Any], request: Any, in_flight: _Counter) -> Iterator[Any]:
        self.gate.wait()
        in_flight.add(-len(answers))
        any_order = request is not None and request.order == item_pb2.ANSWER_ORDER_COMPLETION
        yield response_type(answers=reversed(answers) if any_order else answers)


class _Counter:
    """Counts the items of a stream that were received and not yet answered."""

    def __init__(self, servicer: FakeServicer) -> None:
        self._servicer = servicer
        self._lock = threading.Lock()
        self._count = 0

    def add(self, items: int) -> None:
        with self._lock:
            self._count += items
            self._servicer.max_in_flight_seen = max(self._servicer.max_in_flight_seen, self._count)


@contextlib.contextmanager
def serve_fake(
    credentials: grpc.ServerCredentials | None = None, max_message_bytes: int = 16 * 2**20
) -> Iterator[FakeServicer]:
    """Serves a FakeServicer on a free loopback port; its ``target`` is the address.

    Args:
        credentials: TLS credentials; None for plain TCP.
        max_message_bytes: Largest request message that is accepted; the default is the real server's.
    """
    servicer = FakeServicer()
    options = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # no other process may share the port
    ]
    pool = futures.ThreadPoolExecutor(64)
    server = grpc.server(pool, options=options)
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    servicer.health.set("polyhead.v1.InferenceService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer.health, server)
    address = "127.0.0.1:0"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    servicer.target = f"127.0.0.1:{port}"
    server.start()
    try:
        yield servicer
    finally:
        servicer.gate.set()
        servicer.hanging_call_ended.set()
        server.stop(None).wait()
        # No thread is left to the tests that follow.
        pool.shutdown()


def label(answer: Answer) -> str:
    """Returns the text that the server received for an answer."""
    classification = answer.unwrap().classification
    assert classification is not None
    return classification.best.label


def labels(answers: Iterable[Answer]) -> list[str]:
    """Returns the text that the server received for each answer."""
    return [label(answer) for answer in answers]


def embedding_of(text: str) -> list[float]:
    """Returns the server's embedding of ``text``: three values."""
    return [float(ord(character)) / 1024 for character in text[:3].ljust(3, "\0")]


def _too_many() -> item_pb2.Answer:
    return item_pb2.Answer(error=_status(code_pb2.INVALID_ARGUMENT, "too many items", reason="TOO_MANY_ITEMS"))


def _status(code: int, message: str, *details: Any, reason: str = "REQUESTED") -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain="polyhead"), *details):
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
    dimensions = options.dimensions or 3
    values = np.resize(np.array(embedding_of(item.text), "<f2" if half else "<f4"), dimensions).tobytes()
    encoding = item_pb2.EMBEDDING_ENCODING_FLOAT16_LE if half else item_pb2.EMBEDDING_ENCODING_FLOAT32_LE
    result.embedding.CopyFrom(item_pb2.Embedding(values=values, encoding=encoding, dimensions=dimensions))
    # Heads that only a request for their tasks finds.
    tasks = getattr(request, "tasks", ())
    if item_pb2.TASK_LABELS in tasks:
        scores = [item_pb2.LabelScore(label=item.text, probability=0.9), item_pb2.LabelScore(label="other")]
        result.label_sets.add(head="tags", scores=scores, labels=[item.text])
    if item_pb2.TASK_SCORE in tasks:
        scores = [item_pb2.LabelScore(label="1", probability=0.1), item_pb2.LabelScore(label="2", probability=0.9)]
        result.scores.add(head="stars", value=1.9, label="2", probabilities=scores)
        result.scores.add(head="price", value=-0.7)
    if request.options.include_novelty:
        result.novelty = 0.25
    if request.options.include_prediction_sets:
        result.classification.prediction_set.append(item.text)
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
    prompts=[model_pb2.Prompt(name="passage", text="passage: "), model_pb2.Prompt(name="query", text="query: ")],
    bundle_format_version=1,
    server_version="0.2.0",
)
