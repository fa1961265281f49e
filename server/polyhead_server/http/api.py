"""The routes of the HTTP API, and what surrounds every call: keys, request ids, errors, metrics and the access log."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from polyhead_server.candidate.routing import HEADER, ROUTING_KEY, routing_key
from polyhead_server.errors import (
    InternalError,
    InvalidRequestError,
    ModelNotFoundError,
    PathNotFoundError,
    ServerError,
)
from polyhead_server.observability.logging import REQUEST_CONTEXT, fields
from polyhead_server.observability.request_ids import REQUEST_ID, request_id
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.security.api_keys import CALLER, Keys, bearer_key
from polyhead_server.serving.models import Models

from . import analyze, open_inference, openai, openapi, playground, tei
from .analyze_lines import LineStream
from .calls import Call
from .errors import ErrorForm, open_inference_error, openai_error, polyhead_error, tei_error
from .exchange import ClientDisconnectError, Exchange, Response, exchange_of

logger = logging.getLogger(__name__)

_REQUEST_ID_HEADER = REQUEST_ID.encode()
_ROUTING_HEADER = HEADER.encode()
_SERVICE = "/polyhead.v1.InferenceService"
# The RPC that a key must be allowed to call: the scopes are the same as on gRPC.
INFER, INFO, PUBLIC = f"{_SERVICE}/Analyze", f"{_SERVICE}/GetModelInfo", None
# Form of the error of an unknown path by the beginning of the path; the others are those of text-embeddings-inference.
_FORMS_OF_UNKNOWN_PATHS = {"/v1/": openai_error, "/v2": open_inference_error}
# Codes that are not errors of HTTP itself.
_CLIENT_GONE = 499

Handler = Callable[[Call], Awaitable[Response | LineStream]]


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
            Endpoint("POST", "/v2/repository/index", open_inference.repository_index, INFO, open_inference_error),
            # Before the paths with a model's name, which would take "stats" for one.
            Endpoint("GET", "/v2/models/stats", open_inference.model_statistics, INFO, open_inference_error),
            *(
                Endpoint(method, f"/v2/models/{{model}}{version}{suffix}", handler, rpc, open_inference_error)
                for version in ("", "/versions/{version}")
                for method, suffix, handler, rpc in (
                    ("GET", "", open_inference.model_metadata, INFO),
                    ("GET", "/ready", open_inference.model_ready, PUBLIC),
                    ("GET", "/config", open_inference.model_config, INFO),
                    ("GET", "/stats", open_inference.model_statistics, INFO),
                    ("POST", "/infer", open_inference.infer, INFER),
                )
            ),
        ],
    }
    return [endpoint for dialect in dialects for endpoint in tables[dialect]]


def create_app(models: Models, keys: Keys | None, dialects: Iterable[str], *, with_playground: bool) -> App:
    """Builds the application.

    Args:
        models: Answer the texts.
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
    return App(models, keys, table)


class App:
    """The endpoints, as an ASGI application."""

    def __init__(self, models: Models, keys: Keys | None, table: Iterable[Endpoint]) -> None:
        """Arranges the endpoints by their paths."""
        level = logging.getLevelName(models.default.settings.access_log.upper())
        by_path: dict[str, dict[str, Endpoint]] = {}
        for endpoint in table:
            by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
        resources = {path: _Resource(models, keys, methods, level) for path, methods in by_path.items()}
        self._fixed = {path: one for path, one in resources.items() if "{" not in path}
        self._patterns = [
            (re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", path)), one)
            for path, one in resources.items()
            if "{" in path
        ]
        self._unknown = _Resource(models, keys, {}, level)

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Answers one call, or follows the life of a server that reports it."""
        if scope["type"] == "lifespan":
            await _follow_lifespan(receive, send)
            return
        exchange = exchange_of(scope, receive, send)
        resource = self._fixed.get(exchange.path) or self._match(exchange)
        await resource.run(exchange)

    def _match(self, exchange: Exchange) -> _Resource:
        for pattern, resource in self._patterns:
            if match := pattern.fullmatch(exchange.path):
                exchange.path_params = match.groupdict()
                return resource
        return self._unknown


class _Resource:
    """A path: finds the endpoint of the method and runs it."""

    def __init__(self, models: Models, keys: Keys | None, methods: dict[str, Endpoint], level: int) -> None:
        self._models = models
        # Counts all calls, of whichever model.
        self._service = models.default.service
        self._keys = keys
        self._methods = methods
        self._level = level

    async def run(self, exchange: Exchange) -> None:
        call = Call(self._models, exchange)
        own_id = request_id(call.header(_REQUEST_ID_HEADER) or "")
        REQUEST_CONTEXT.set({"request_id": own_id})
        endpoint = self._methods.get("GET" if exchange.method == "HEAD" else exchange.method)
        response: Response | LineStream | None = None
        try:
            # A draining server waits until the response has been written.
            with self._service.tracked() if endpoint and endpoint.rpc else contextlib.nullcontext():
                response = await self._respond(call, endpoint)
                response.headers[REQUEST_ID] = own_id
                try:
                    if isinstance(response, Response):
                        call.hold(len(response.body))
                    await response.send(exchange)
                except ServerError as error:
                    # A stream may be refused at its start.
                    response = _form(endpoint)(error)
                    response.headers[REQUEST_ID] = own_id
                    await response.send(exchange)
        except ClientDisconnectError:
            pass
        except Exception as error:
            exit_if_out_of_memory(error)
            # A stream that has begun; uvicorn cuts the connection off and logs nothing.
            InternalError.logged("an HTTP stream failed", error)
            raise
        finally:
            call.release()
            self._on_end(call, endpoint, response)

    async def _respond(self, call: Call, endpoint: Endpoint | None) -> Response | LineStream:
        form = _form(endpoint)
        try:
            if endpoint is None:
                return _no_endpoint(self._methods, call.exchange.path)
            if endpoint.rpc and self._keys:
                CALLER.set(self._keys.authorize(bearer_key(call.exchange.all_values(b"authorization")), endpoint.rpc))
            header = call.header(_ROUTING_HEADER) or ""
            ROUTING_KEY.set(routing_key(header, CALLER.get(), call.exchange.peer))
            call.select(None)
            return await endpoint.handler(call)
        except ModelNotFoundError as error:
            # It lists the models, which a caller without a key must not learn.
            return form(error if (endpoint and endpoint.rpc) or not self._keys else ModelNotFoundError())
        except ServerError as error:
            return form(error)
        except ClientDisconnectError:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary of the call
            exit_if_out_of_memory(error)
            return form(InternalError.logged("an HTTP call failed", error))

    def _on_end(self, call: Call, endpoint: Endpoint | None, response: Response | LineStream | None) -> None:
        if endpoint is None or endpoint.rpc is None:
            return
        duration_s = (time.monotonic_ns() - call.arrived_ns) / 1e9
        status = response.status if response else _CLIENT_GONE
        name = f"{endpoint.method} {endpoint.path}"
        self._service.metrics.observe_request(name, str(status), duration_s, unary=True)
        if logger.isEnabledFor(self._level):
            caller, peer = CALLER.get(), call.exchange.peer
            values = {"method": name, "code": status, "items": call.texts, "duration_s": round(duration_s, 6)}
            text = "%s %s, items: %d, %.1f ms, %s at %s"
            arguments = (name, status, call.texts, duration_s * 1000, caller or "anonymous", peer)
            logger.log(self._level, text, *arguments, extra=fields(**values, peer=peer, key=caller))


async def _follow_lifespan(receive: Any, send: Any) -> None:
    """Acknowledges start and end; what the endpoints need is started and ended elsewhere."""
    for event in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{event}.complete"})


def _form(endpoint: Endpoint | None) -> ErrorForm:
    return endpoint.error if endpoint else polyhead_error


def _no_endpoint(methods: dict[str, Endpoint], path: str) -> Response:
    if methods:
        error = InvalidRequestError("METHOD_NOT_ALLOWED", f"this path answers {', '.join(methods)}")
        response = next(iter(methods.values())).error(error)
        response.headers["allow"] = ", ".join(methods)
        return response
    # Clients call methods that this server lacks, and must be able to read the error.
    forms = (form for prefix, form in _FORMS_OF_UNKNOWN_PATHS.items() if path.startswith(prefix))
    return next(forms, tei_error)(PathNotFoundError())
