"""The routes of the HTTP API, and what surrounds every call: keys, request ids, errors, metrics and the access log."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from polyhead_server.errors import (
    InternalError,
    InvalidRequestError,
    PathNotFoundError,
    ServerError,
    UnauthenticatedError,
)
from polyhead_server.observability.logging import REQUEST_CONTEXT, fields
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.security.api_keys import CALLER, Keys
from polyhead_server.serving.backend import Backend

from . import analyze, open_inference, openai, openapi, playground, tei
from .calls import Call
from .errors import ErrorForm, open_inference_error, openai_error, polyhead_error, tei_error

logger = logging.getLogger(__name__)

_REQUEST_ID = "x-request-id"
_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_SERVICE = "/polyhead.v1.InferenceService"
_BEARER = "bearer "
# The RPC that a key must be allowed to call: the scopes are the same as on gRPC.
INFER, INFO, PUBLIC = f"{_SERVICE}/Analyze", f"{_SERVICE}/GetModelInfo", None
# Codes that are not errors of HTTP itself.
_CLIENT_GONE = 499

Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """One method of one path.

    Attributes:
        method: HTTP method.
        path: Path, with placeholders in braces.
        handler: Answers a call.
        rpc: RPC that the caller's key must allow; None for an endpoint without a key.
        error: Form of errors that the dialect's clients read.
    """

    method: str
    path: str
    handler: Handler
    rpc: str | None
    error: ErrorForm


def endpoints(dialects: Iterable[str]) -> list[Endpoint]:
    """Returns the endpoints of these dialects: ``polyhead``, ``openai``, ``tei``, ``oip``."""
    tables = {
        "polyhead": [
            Endpoint("POST", "/v1/analyze", analyze.analyze, INFER, polyhead_error),
            Endpoint("GET", "/v1/info", analyze.info, INFO, polyhead_error),
        ],
        "openai": [
            Endpoint("POST", "/v1/embeddings", openai.embeddings, INFER, openai_error),
            Endpoint("GET", "/v1/models", openai.models, INFO, openai_error),
            Endpoint("GET", "/v1/models/{model}", openai.model, INFO, openai_error),
        ],
        "tei": [
            Endpoint("POST", "/embed", tei.embed, INFER, tei_error),
            Endpoint("POST", "/predict", tei.predict, INFER, tei_error),
            Endpoint("POST", "/tokenize", tei.tokenize, INFER, tei_error),
            Endpoint("POST", "/decode", tei.decode, INFER, tei_error),
            Endpoint("POST", "/", tei.root, INFER, tei_error),
            Endpoint("GET", "/info", tei.info, INFO, tei_error),
            Endpoint("GET", "/health", tei.health, PUBLIC, tei_error),
            Endpoint("GET", "/ping", tei.health, PUBLIC, tei_error),
        ],
        "oip": [
            Endpoint("GET", "/v2", open_inference.server_metadata, INFO, open_inference_error),
            Endpoint("GET", "/v2/health/live", open_inference.live, PUBLIC, open_inference_error),
            Endpoint("GET", "/v2/health/ready", open_inference.ready, PUBLIC, open_inference_error),
            *(
                Endpoint(method, f"/v2/models/{{model}}{version}{suffix}", handler, rpc, open_inference_error)
                for version in ("", "/versions/{version}")
                for method, suffix, handler, rpc in (
                    ("GET", "", open_inference.model_metadata, INFO),
                    ("GET", "/ready", open_inference.model_ready, PUBLIC),
                    ("GET", "/config", open_inference.model_config, INFO),
                    ("POST", "/infer", open_inference.infer, INFER),
                )
            ),
        ],
    }
    return [endpoint for dialect in dialects for endpoint in tables[dialect]]


def create_app(backend: Backend, keys: Keys | None, dialects: Iterable[str], *, with_playground: bool) -> ASGIApp:
    """Builds the ASGI application.

    Args:
        backend: Answers the texts.
        keys: API keys; None to allow every call.
        dialects: Those to serve.
        with_playground: Whether to serve the page at ``/``.
    """
    table = endpoints(dialects)
    if with_playground:
        table += [
            Endpoint("GET", path, handler, PUBLIC, polyhead_error) for path, handler in playground.handlers().items()
        ]
    paths: dict[str, list[str]] = {}
    for endpoint in table:
        paths.setdefault(endpoint.path, []).append(endpoint.method)
    table.append(Endpoint("GET", "/openapi.json", openapi.handler(paths), PUBLIC, polyhead_error))
    by_path: dict[str, dict[str, Endpoint]] = {}
    for endpoint in table:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    level = logging.getLevelName(backend.settings.access_log.upper())
    routes = [Route(path, _Resource(backend, keys, methods, level)) for path, methods in by_path.items()]
    return Router(routes, default=_Resource(backend, keys, {}, level), redirect_slashes=False)


class _Resource:
    """A path: an ASGI application that finds the endpoint of the method and runs it."""

    def __init__(self, backend: Backend, keys: Keys | None, methods: dict[str, Endpoint], level: int) -> None:
        self._backend = backend
        self._keys = keys
        self._methods = methods
        self._level = level

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        call = Call(self._backend, request)
        request_id = request.headers.get(_REQUEST_ID, "")
        if not _VALID_REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(8)
        REQUEST_CONTEXT.set({"request_id": request_id})
        endpoint = self._methods.get("GET" if request.method == "HEAD" else request.method)
        response: Response | None = None
        try:
            # A draining server waits until the response has been written.
            with self._backend.service.tracked() if endpoint and endpoint.rpc else contextlib.nullcontext():
                response = await self._respond(call, endpoint)
                response.headers[_REQUEST_ID] = request_id
                await response(scope, receive, send)
        except ClientDisconnect:
            pass
        finally:
            self._on_end(call, endpoint, response)

    async def _respond(self, call: Call, endpoint: Endpoint | None) -> Response:
        form = endpoint.error if endpoint else polyhead_error
        try:
            if endpoint is None:
                return _no_endpoint(self._methods)
            if endpoint.rpc and self._keys:
                CALLER.set(self._keys.authorize(_bearer(call), endpoint.rpc))
            return await endpoint.handler(call)
        except ServerError as error:
            return form(error)
        except ClientDisconnect:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary of the call
            exit_if_out_of_memory(error)
            return form(InternalError.logged("an HTTP call failed", error))

    def _on_end(self, call: Call, endpoint: Endpoint | None, response: Response | None) -> None:
        duration_s = (time.monotonic_ns() - call.arrived_ns) / 1e9
        status = response.status_code if response else _CLIENT_GONE
        if endpoint is None or endpoint.rpc is None:
            return
        name = f"{endpoint.method} {endpoint.path}"
        self._backend.service.metrics.observe_request(name, str(status), duration_s, unary=True)
        if logger.isEnabledFor(self._level):
            caller, peer = CALLER.get(), ":".join(map(str, call.request.scope.get("client") or ("unix",)))
            values = {"method": name, "code": status, "items": call.texts, "duration_s": round(duration_s, 6)}
            text = "%s %s, items: %d, %.1f ms, %s at %s"
            arguments = (name, status, call.texts, duration_s * 1000, caller or "anonymous", peer)
            logger.log(self._level, text, *arguments, extra=fields(**values, peer=peer, key=caller))


def _no_endpoint(methods: dict[str, Endpoint]) -> Response:
    if methods:
        error = InvalidRequestError("METHOD_NOT_ALLOWED", f"this path answers {', '.join(methods)}")
        response = next(iter(methods.values())).error(error)
        response.headers["allow"] = ", ".join(methods)
        return response
    return polyhead_error(PathNotFoundError())


def _bearer(call: Call) -> str:
    """Returns the key in ``authorization: Bearer KEY``.

    Raises:
        UnauthenticatedError: The header is missing, repeated, or of another scheme.
    """
    values = call.request.headers.getlist("authorization")
    if len(values) != 1 or values[0][: len(_BEARER)].lower() != _BEARER:
        raise UnauthenticatedError
    return values[0][len(_BEARER) :]
