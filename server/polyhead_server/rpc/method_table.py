"""The gRPC method table of the inference service."""

from __future__ import annotations

from typing import Any

import grpc
from polyhead.v1 import inference_service_pb2

from polyhead_server.inference.types import ALL_TASKS, Task

from . import service_names
from .inference_service import InferenceService
from .request_decoder import RequestDecoder

# Streaming methods, and the tasks that each runs unless a message names its own.
_STREAM_TASKS: dict[str, frozenset[Task]] = {
    "StreamAnalyze": ALL_TASKS,
    "StreamEmbed": frozenset({Task.EMBEDDING}),
    "StreamClassify": frozenset({Task.CLASSIFICATION}),
    "StreamSentiment": frozenset({Task.SENTIMENT}),
}


def inference_handler(service: InferenceService) -> grpc.GenericRpcHandler:
    """Builds the handler of all RPCs; its deserializers turn invalid messages into answers instead of failed calls."""
    pb2, max_items = inference_service_pb2, service.max_items
    handlers: dict[str, Any] = {
        "Analyze": grpc.unary_unary_rpc_method_handler(
            service.analyze,
            RequestDecoder(pb2.AnalyzeRequest, max_items, max_text_bytes=service.max_text_bytes),
            _serialized,
        ),
        "GetModelInfo": grpc.unary_unary_rpc_method_handler(
            service.get_model_info,
            # The request has no fields, and gRPC would send the text of a deserializer's exception to the client.
            lambda _: None,
            pb2.GetModelInfoResponse.SerializeToString,
        ),
    }
    for name, tasks in _STREAM_TASKS.items():
        handlers[name] = grpc.stream_stream_rpc_method_handler(
            service.stream,
            RequestDecoder(getattr(pb2, f"{name}Request"), max_items, tasks, service.max_text_bytes),
            _serialized,
        )
    return grpc.method_handlers_generic_handler(service_names.INFERENCE, handlers)


def _serialized(response: bytes) -> bytes:
    """Serializes nothing: the encoder of answers has done so."""
    return response
