"""The gRPC method tables of the dialects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2

from polyhead_server.errors import InvalidRequestError, ServerError
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.rpc.model_routes import ModelRoutes
from polyhead_server.serving.backend import Backend
from polyhead_server.serving.models import Models

from . import open_inference, tei
from .descriptors import METHODS

# Full names of the gRPC services of each dialect.
SERVICES = {
    "oip": (open_inference.NAME,),
    "tei": tuple(name for name in METHODS if name.startswith(f"{tei.PACKAGE}.")),
}


def services(dialects: Iterable[str]) -> list[str]:
    """Returns the full names of the gRPC services of these dialects."""
    return [service for dialect in dialects for service in SERVICES.get(dialect, ())]


def handlers(dialects: Iterable[str], models: Models) -> list[grpc.GenericRpcHandler]:
    """Returns the handlers of these dialects; a name without handlers here, such as ``polyhead``, is skipped."""
    return [_handler_of(service, models) for service in services(dialects)]


def _handler_of(service: str, models: Models) -> grpc.GenericRpcHandler:
    if service == open_inference.NAME:
        # Its messages name the model.
        return grpc.method_handlers_generic_handler(service, _open_inference_methods(models))
    by_model = {
        backend: grpc.method_handlers_generic_handler(service, _tei_methods(service, backend)) for backend in models
    }
    return ModelRoutes(models, by_model)


def paths(dialects: Iterable[str]) -> dict[str, str]:
    """Returns the name in metrics of each method of these dialects, by its path."""
    return {
        f"/{service}/{method.name}": f"{service}/{method.name}"
        for service in services(dialects)
        for method in METHODS[service]
    }


def _open_inference_methods(models: Models) -> dict[str, Any]:
    oip = open_inference.OpenInferenceService(models)
    return {
        method.name: _handler(method, getattr(oip, method.name), oip.deserializer(method.name), models.default)
        for method in METHODS[open_inference.NAME]
    }


def _tei_methods(service: str, backend: Backend) -> dict[str, Any]:
    services = tei.TeiServices(backend)
    name = service.removeprefix(f"{tei.PACKAGE}.")
    return {
        method.name: _handler(method, services.method(name, method.name), tei.deserializer(method.input_type), backend)
        for method in METHODS[service]
    }


def _handler(
    method: descriptor_pb2.MethodDescriptorProto,
    behavior: Callable[..., Awaitable[Any]],
    deserialize: Callable[[bytes], Any],
    backend: Backend,
) -> Any:
    deserializer = _never_raising(deserialize)
    if method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(_stream(behavior, backend), deserializer, _serialize)
    if method.client_streaming:
        return grpc.stream_unary_rpc_method_handler(behavior, deserializer, _serialize)
    return grpc.unary_unary_rpc_method_handler(_unary(behavior, backend), deserializer, _serialize)


def _serialize(message: Any) -> bytes:
    # Answers of texts are serialized where they are made.
    return message if isinstance(message, bytes) else message.SerializeToString()


def _never_raising(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Makes a deserializer return its error: gRPC would send the text of an exception to the client."""

    def decode(data: bytes) -> Any:
        try:
            return deserialize(data)
        except ServerError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever the parser raises, the client sent an invalid message
            exit_if_out_of_memory(error)
            return InvalidRequestError("MALFORMED_MESSAGE", "the message is not a valid protobuf message of this RPC")

    return decode


def _unary(behavior: Callable[..., Awaitable[Any]], backend: Backend) -> Callable[..., Awaitable[Any]]:
    held_bytes = backend.service.held_bytes

    async def unary(request: Any, context: Any) -> Any:
        with backend.service.tracked(context):
            held_bytes.require_room()
            response = _serialize(await behavior(_require_decoded(request), context))
            held_bytes.hold(len(response))
            return response

    return unary


def _stream(behavior: Callable[..., Awaitable[Any]], backend: Backend) -> Callable[..., Awaitable[Any]]:
    async def stream(requests: AsyncIterator[Any], context: Any) -> Any:
        with backend.service.tracked(context):
            return await behavior((_require_decoded(request) async for request in requests), context)

    return stream


def _require_decoded(request: Any) -> Any:
    if isinstance(request, ServerError):
        raise request
    return request
