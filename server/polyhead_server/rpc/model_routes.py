"""Finds the handler of a gRPC call by the model that its metadata names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from polyhead_server.errors import NotReadyError, ServerError
from polyhead_server.serving.backend import Backend
from polyhead_server.serving.models import Models, name_in


class ModelRoutes(grpc.GenericRpcHandler):
    """The methods of a service that every model of the server has. A call without a name goes to the first model.

    For protocols whose messages have no field for a name: ``polyhead.v1`` and that of text-embeddings-inference.
    """

    def __init__(self, models: Models, handlers: Mapping[Backend, grpc.GenericRpcHandler]) -> None:
        """Creates the routes.

        Args:
            models: The models.
            handlers: The service's methods for each model.
        """
        self._models = models
        self._handlers = handlers
        self._default = handlers[models.default]
        # One handler for all calls: the interceptors keep what they derive from a handler.
        self._not_found: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(self._fail)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the handler of a method for the model that the call names; None if there is no such method."""
        default = self._default.service(handler_call_details)
        name = name_in(handler_call_details.invocation_metadata)
        if not name or default is None:
            return default
        try:
            return self._handlers[self._models.named(name)].service(handler_call_details)
        except ServerError:
            return self._not_found

    async def _fail(self, _: Any, context: Any) -> None:
        """Fails a call of any kind, which on the wire is a stream, with the error of its name."""
        self._models.named(name_in(context.invocation_metadata()))
        # The model was still loading when the call came.
        raise NotReadyError
