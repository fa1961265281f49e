"""Who may call what, decided from a call's metadata before any of its messages is read.

::

    metadata -> key -> right? -> the method's own handler
                          |  no -> a handler that reads nothing and ends the call
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from polyhead_server.errors import PermissionDeniedError, ServerError, UnauthenticatedError
from polyhead_server.security.api_keys import CALLER, Keys
from polyhead_server.settings import Settings

from .errors import abort

# Probes have no keys, and learn nothing but whether the server serves.
_OPEN = "/grpc.health.v1.Health/"
_SCHEME = "bearer "


class AuthInterceptor(aio.ServerInterceptor):
    """Lets a call through if its key may make it. Only ``TelemetryInterceptor`` is further out: a refusal costs no more."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    @classmethod
    def from_settings(cls, settings: Settings) -> list[aio.ServerInterceptor]:
        """One, if the settings name a file of keys; else none, and everybody may call everything.

        Raises:
            StartupError: The file cannot be used.
        """
        return [cls(Keys(Path(settings.api_keys)))] if settings.api_keys else []

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Looks at the key alone. A method that there is not is refused as one that the key may not call."""
        method = str(handler_call_details.method)
        if not method.startswith(_OPEN):
            try:
                CALLER.set(self._keys.authorize(_shown(handler_call_details.invocation_metadata), method))
            except (UnauthenticatedError, PermissionDeniedError) as error:
                return _refusal(error)
        return await continuation(handler_call_details)


def _shown(metadata: Any) -> str:
    """The key in ``authorization: Bearer KEY``.

    Raises:
        UnauthenticatedError: There is none, more than one, or one of another kind.
    """
    values = [value for name, value in metadata or () if name == "authorization"]
    if len(values) != 1 or values[0][: len(_SCHEME)].lower() != _SCHEME:
        raise UnauthenticatedError
    return str(values[0][len(_SCHEME) :])


def _refusal(error: ServerError) -> grpc.RpcMethodHandler[Any, Any]:
    """Ends a call of any kind: on the wire a unary call is a stream of one message, and here it is not waited for."""

    async def refuse(_: Any, context: aio.ServicerContext[Any, Any]) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
