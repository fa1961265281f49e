"""Readers of what clients send: messages, HTTP bodies and tensors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.compat.recordings import VERSIONS, load, write_bundle

from .target import Check, Target, event_loop, folder

_TIMEOUT_S = 30.0
# Paths and content types of the HTTP target; the first byte of an input selects one.
_HTTP = (
    ("/v1/analyze", "application/json"),
    ("/v1/analyze", "application/x-ndjson"),
    ("/v1/embeddings", "application/json"),
    ("/embed", "application/json"),
    ("/predict", "application/json"),
    ("/tokenize", "application/json"),
    ("/decode", "application/json"),
    ("/", "application/json"),
    ("/v2/models/golden/infer", "application/json"),
    ("/v2/models/golden/infer", "application/octet-stream"),
)
_DOCUMENTS: tuple[object, ...] = (
    {"texts": ["Where is my refund?"], "tasks": ["embedding", "labels"], "embedding": {"dimensions": 2}},
    {
        "items": [{"id": "1", "text": "a"}],
        "novelty": True,
        "prediction_sets": True,
        "truncation": "window",
        "prompt": "query",
    },
    {"input": ["a", "b"], "model": "golden", "encoding_format": "base64", "dimensions": 3},
    {"inputs": [["a"], ["b"]], "truncate": True, "raw_scores": True, "top_n": 1},
    {"ids": [[1, 2, 3]], "skip_special_tokens": False},
    {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}],
        "outputs": [{"name": "topic", "parameters": {"binary_data": True}}],
        "parameters": {"timeout": 1},
    },
)


def _requests(stack: ExitStack) -> Check:
    """Decodes messages of the InferenceService, which never raises."""
    from polyhead.v1 import inference_service_pb2 as pb2
    from polyhead_server.inference.types import InvalidItem, Item
    from polyhead_server.rpc.request_decoder import RequestDecoder

    _scan_small_messages(stack)
    decoders = [
        RequestDecoder(kind, max_items=64, max_text_bytes=lambda: 1000)
        for kind in (pb2.AnalyzeRequest, pb2.StreamAnalyzeRequest, pb2.StreamEmbedRequest, pb2.StreamClassifyRequest)
    ]

    def check(data: bytes) -> None:
        for decode in decoders:
            message = decode(data)
            assert 0 <= len(message.items) <= 64
            for item in message.items:
                assert isinstance(item, Item | InvalidItem)
                assert len(item.item_id.encode()) <= 256

    return check


def _recorded_requests() -> list[bytes]:
    return [data for recording in load() for data in recording.requests]


def _scan_small_messages(stack: ExitStack) -> None:
    """Lets the server count the fields of small messages, too: those of the fuzzer are small."""
    from polyhead_server.rpc import message_limits

    stack.enter_context(mock.patch.object(message_limits, "_SMALL_BYTES", 0))


def _models(stack: ExitStack, loop: asyncio.AbstractEventLoop) -> Any:
    """Returns the models of a server with the golden model alone, as HTTP and the dialects call them."""
    from polyhead_server.inference.model import load_model
    from polyhead_server.inference.pipeline import Pipeline
    from polyhead_server.observability.metrics import Metrics
    from polyhead_server.rpc.inference_service import InferenceService
    from polyhead_server.serving.backend import Backend
    from polyhead_server.serving.models import Models
    from polyhead_server.settings import Settings

    bundle = write_bundle(VERSIONS[-1], folder(stack))
    settings = Settings(bundle=bundle, threads=1, device="cpu", max_items_per_message=8, max_message_bytes=100_000)

    async def start() -> Models:
        service = InferenceService(settings, Metrics())
        pipeline = Pipeline(load_model(settings), settings, service.metrics.observe_batches)
        pipeline.start()
        stack.callback(lambda: loop.run_until_complete(pipeline.close()))
        service.serve(pipeline)
        return Models([Backend(service, settings, lambda: True)])

    return loop.run_until_complete(start())


def _within_timeout(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    loop.run_until_complete(asyncio.wait_for(work, _TIMEOUT_S))


def _http(stack: ExitStack) -> Check:
    """Sends bodies to the HTTP API, which answers each in its own words and never with an internal error."""
    from polyhead_server.http.api import create_app

    loop = event_loop(stack)
    app = create_app(_models(stack, loop), None, ["polyhead", "openai", "tei", "oip"], with_playground=False)

    async def send_body(data: bytes) -> None:
        path, content_type = _HTTP[data[0] % len(_HTTP)]
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(data) - 1).encode())]
        if content_type == "application/octet-stream":
            head, _, _ = data[1:].partition(b"\0")
            headers.append((b"inference-header-content-length", str(len(head)).encode()))
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": headers,
            "query_string": b"",
            "client": None,
        }
        body = [{"type": "http.request", "body": data[1:], "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return body.pop() if body else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await app(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in sent)
        assert sent[0]["status"] in {200, 400, 404, 413, 422, 504}, (sent[0]["status"], content[:200])
        # A stream of lines has begun before its answers are known.
        assert b"internal error, incident" not in content, content[:200]

    def check(data: bytes) -> None:
        if data:
            _within_timeout(loop, send_body(data))

    return check


def _http_bodies() -> list[bytes]:
    bodies = [json.dumps(document).encode() for document in _DOCUMENTS]
    lines = b'{"id": 1, "text": "a"}\n"b"\n'
    tensor = json.dumps(
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}]}
    ).encode()
    seeds = [bytes([number]) + body for number in range(len(_HTTP)) for body in bodies]
    return [*seeds, b"\x01" + lines, b"\x09" + tensor + b"\x01\0\0\0a"]


def _tensors(stack: ExitStack) -> Check:
    """Answers requests of the Open Inference Protocol over gRPC; it rejects them with a ``ServerError`` alone."""
    from google.protobuf.message import DecodeError
    from polyhead_server.errors import InternalError, ServerError
    from polyhead_server.rpc.dialects.descriptors import TYPES
    from polyhead_server.rpc.dialects.open_inference import OpenInferenceService

    _scan_small_messages(stack)
    loop = event_loop(stack)
    service = OpenInferenceService(_models(stack, loop))
    decode = service.deserializer("ModelInfer")
    context: Any = SimpleNamespace(time_remaining=lambda: None)

    async def infer(data: bytes) -> None:
        try:
            request = decode(data)
            response = TYPES["inference.ModelInferResponse"].FromString(await service.ModelInfer(request, context))
        except InternalError:
            raise
        except (DecodeError, ServerError):
            return
        assert len(response.raw_output_contents) == len(response.outputs)
        assert response.id == request.id

    return lambda data: _within_timeout(loop, infer(data))


def _tensor_requests() -> list[bytes]:
    from polyhead_server.rpc.dialects.descriptors import TYPES

    kind = TYPES["inference.ModelInferRequest"]
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2]}
    whole = kind(
        model_name="golden", id="1", inputs=[{**tensor, "contents": {"bytes_contents": [b"a", b"b"]}}]
    ).SerializeToString()
    raw = kind(
        model_name="golden",
        inputs=[tensor],
        raw_input_contents=[b"\x01\0\0\0a\x01\0\0\0b"],
        outputs=[{"name": "topic"}, {"name": "embedding"}],
        parameters={"truncation": {"string_param": "window"}, "timeout": {"int64_param": 5}},
    ).SerializeToString()
    return [whole, raw]


SERVER_TARGETS = {
    "requests": Target(_requests, _recorded_requests),
    "http": Target(_http, _http_bodies, json_at=1),
    "tensors": Target(_tensors, _tensor_requests),
}
