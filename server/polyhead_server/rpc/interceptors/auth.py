"""Authentication and authorization by API key, from a call's metadata, before any message of the call is decoded.

::

    metadata -> API key -> does its scope cover the method? -- yes -> the method's own handler
                                                            -- no --> a handler that reads nothing and fails the call
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from polyhead_server.errors import PermissionDeniedError, UnauthenticatedError
from polyhead_server.observability.logging import fields
from polyhead_server.printable import printable
from polyhead_server.rpc import service_names
from polyhead_server.security.api_keys import CALLER, Keys, bearer_key
from polyhead_server.settings import Settings

from .errors import abort

logger = logging.getLogger(__name__)

# Probes carry no key, and learn only whether the server serves. Reflection shows what the protocols' files show, and
# clients that build their stubs from it send no key.
_PUBLIC_PREFIXES = (f"/{service_names.HEALTH}/", f"/{service_names.REFLECTION}/")
# A caller may name any method.
_MAX_METHOD_CHARACTERS = 100


class AuthInterceptor(aio.ServerInterceptor):
    """Admits a call if its API key allows the method.

    Only ``TelemetryInterceptor`` wraps it, so that a rejected call costs as little as possible.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    @classmethod
    def from_settings(cls, settings: Settings) -> list[aio.ServerInterceptor]:
        """Returns one interceptor if the settings name a key file; otherwise none, and every call is allowed.

        Raises:
            StartupError: The key file is invalid.
        """
        return [cls(Keys(Path(settings.api_keys)))] if settings.api_keys else []

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Decides by the key alone: a method that does not exist is rejected like one that the key does not allow."""
        method = str(handler_call_details.method)
        if not method.startswith(_PUBLIC_PREFIXES) and method not in service_names.PUBLIC_METHODS:
            metadata = handler_call_details.invocation_metadata
            headers = [str(value) for name, value in metadata or () if name == "authorization"]
            try:
                CALLER.set(self._keys.authorize(bearer_key(headers), method))
            except (UnauthenticatedError, PermissionDeniedError) as error:
                if isinstance(error, PermissionDeniedError):
                    CALLER.set(error.key)
                return _rejecting_handler(error, method)
        return await continuation(handler_call_details)


def _rejecting_handler(
    error: UnauthenticatedError | PermissionDeniedError, method: str
) -> grpc.RpcMethodHandler[Any, Any]:
    """Returns a handler that fails a call of any kind: on the wire, a unary call is a stream of one message."""

    async def reject(_: Any, context: aio.ServicerContext[Any, Any]) -> None:
        _log_rejection(error, method, context.peer())
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(reject)


def _log_rejection(error: UnauthenticatedError | PermissionDeniedError, method: str, peer: str) -> None:
    """Logs who was rejected. Both lines are limited in rate, by key where there is one."""
    method = printable(method, _MAX_METHOD_CHARACTERS)
    if isinstance(error, PermissionDeniedError):
        extra = {**fields(method=method, peer=peer, key=error.key), "limit_key": error.key}
        logger.warning("permission denied: key %s may not call %s, from %s", error.key, method, peer, extra=extra)
    else:
        logger.warning(
            "rejected: no valid API key for %s, from %s", method, peer, extra=fields(method=method, peer=peer)
        )
