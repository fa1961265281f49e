"""What surrounds every HTTP call: paths, keys, request ids, deadlines, and the OpenAPI document."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from polyhead_server.http import api, calls, openapi
from polyhead_server.http.api import create_app, endpoints
from polyhead_server.http.exchange import Response
from polyhead_server.http.listener import HttpListener
from polyhead_server.security.api_keys import Keys

from .conftest import HttpServer

pytestmark = pytest.mark.timeout(60)
DIALECTS = ["polyhead", "openai", "tei", "oip"]


def _name(one: api.Endpoint) -> str:
    return f"{one.method} {one.path}"


def _path(one: api.Endpoint) -> str:
    return one.path.replace("{model}", "fake").replace("{version}", "1")


@pytest.fixture
async def secured(running: HttpServer, tmp_path: Path) -> AsyncIterator[HttpServer]:
    """The server with two keys: ``all`` may infer and read the model's description, ``info`` only the latter."""
    path = tmp_path / "keys.toml"
    entries = {"all": '"infer", "info"', "info": '"info"'}
    path.write_text(
        "".join(
            f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\nscopes = [{scopes}]\n'
            for name, scopes in entries.items()
        )
    )
    path.chmod(0o600)
    listener = HttpListener(
        create_app(running.models, Keys(path), DIALECTS, with_playground=False), None, max_connections=50
    )
    address = await listener.listen("127.0.0.1:0", shares_port=False)
    yield HttpServer(running.service, running.models, address)
    await listener.close(1)


async def test_unknown_path_and_method_are_told_apart(running: HttpServer) -> None:
    assert (await running.get("/nothing")).status == 404
    reply = await running.get("/v1/embeddings")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert (await running.request("HEAD", "/health")).status == 200


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v2/repository/models/fake/load", ["error"]),
        ("/v1/chat/completions", ["error", "message"]),
        ("/rerank", ["error"]),
    ],
)
async def test_unknown_path_is_refused_in_the_form_of_its_protocol(
    running: HttpServer, path: str, error: list[str]
) -> None:
    reply = await running.post(path, {})
    message = reply.json
    for field in error:
        message = message[field]
    # Triton's client fails while it prints an error that is no string.
    assert isinstance(message, str)
    assert (reply.status, "no such path" in message) == (404, True)


@pytest.mark.parametrize(
    "one", [one for one in endpoints(DIALECTS) if one.rpc], ids=lambda one: f"{one.method} {one.path}"
)
async def test_endpoint_requires_a_key_with_its_scope(secured: HttpServer, one: api.Endpoint) -> None:
    path = _path(one)
    body: object = None if one.method == "GET" else {}
    statuses = [
        (await secured.request(one.method, path, body, headers)).status
        for headers in ({}, {"authorization": "Bearer no"}, {"authorization": "Bearer info"})
    ]
    allowed = (await secured.request(one.method, path, body, {"authorization": "bearer all"})).status
    assert statuses[:2] == [401, 401]
    assert (statuses[2] == 403) == (one.rpc == api.INFER)
    assert allowed in {200, 400, 422}


@pytest.mark.parametrize("one", [one for one in endpoints(DIALECTS) if not one.rpc], ids=lambda one: one.path)
async def test_probe_needs_no_key(secured: HttpServer, one: api.Endpoint) -> None:
    assert (
        await secured.request(one.method, one.path.replace("{model}", "fake").replace("{version}", "1"))
    ).status == 200


@pytest.mark.parametrize("path", ["/v2/models/guess/ready", "/health"])
async def test_names_of_models_need_a_key(secured: HttpServer, path: str) -> None:
    reply = await secured.get(path, {"x-polyhead-model": "guess"})
    assert reply.status == 404
    assert b"fake" not in reply.body
    named = await secured.get("/v2/models/guess", {"authorization": "bearer all"})
    assert b"fake" in named.body


async def test_body_is_not_read_before_the_key_is_checked(secured: HttpServer) -> None:
    assert (await secured.post("/v1/analyze", b"x" * 90_000)).status == 401


async def test_refusal_in_teis_form_tells_the_reason(secured: HttpServer) -> None:
    reply = await secured.post("/embed", {"inputs": "w1"})
    # Clients decode the body whatever the status: LlamaIndex, chroma and tei-client.
    assert (reply.status, reply.json["error_type"]) == (401, "Unauthorized")
    assert "API key" in reply.json["error"]
    assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("sent", "kept"), [("abc-1", True), ("a b", False), ("x" * 200, False)])
async def test_valid_request_id_is_returned(running: HttpServer, sent: str, kept: bool) -> None:
    reply = await running.post("/v1/analyze", {"text": "w1"}, {"x-request-id": sent})
    assert (reply.headers["x-request-id"] == sent) == kept


async def test_deadline_header_is_obeyed(running: HttpServer) -> None:
    late = await running.post("/v1/analyze", {"text": "w1"}, {"x-request-timeout-s": "1e-9"})
    assert late.status in {429, 504} or late.json["answers"][0]["error"]["reason"] in {"DEADLINE_EXPIRED", "OVERLOADED"}
    assert (await running.post("/v1/analyze", {"text": "w1"}, {"x-request-timeout-s": "soon"})).status == 400
    assert (await running.post("/v1/analyze", {"text": "w1"}, {"x-request-timeout-s": "30"})).status == 200


async def test_metrics_count_calls_by_path_and_status(running: HttpServer) -> None:
    await running.post("/v1/embeddings", {"input": "w1"})
    await running.post("/v1/embeddings", {"input": []})
    value = running.service.metrics.value
    for status in ("200", "400"):
        assert value("polyhead_requests_total", method="POST /v1/embeddings", code=status) == 1


async def test_unexpected_error_reveals_nothing(running: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(running.service, "require_model", broken)
    reply = await running.post("/v1/embeddings", {"input": "w1"})
    assert reply.status == 500
    assert b"secret" not in reply.body
    assert "incident" in reply.json["error"]["message"]


def test_openapi_document_describes_every_endpoint_and_no_other() -> None:
    paths: dict[str, list[str]] = {}
    for one in endpoints(DIALECTS):
        paths.setdefault(one.path, []).append(one.method)
    described = openapi.describe(paths)["paths"]
    assert {path: sorted(methods) for path, methods in paths.items()} == {
        path: sorted(method.upper() for method in operations) for path, operations in described.items()
    }
    assert list(openapi.describe({"/embed": ["POST"]})["paths"]) == ["/embed"]


async def test_openapi_document_is_served(running: HttpServer) -> None:
    assert (await running.get("/openapi.json")).json["openapi"].startswith("3.1")


async def test_page_is_served_under_a_strict_policy(running: HttpServer, secured: HttpServer) -> None:
    page = await running.get("/")
    assert b"<title>polyhead playground</title>" in page.body
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert (await running.get("/playground/app.js")).headers["content-type"].startswith("text/javascript")
    assert (await secured.get("/")).status == 405


async def test_bodies_of_all_calls_together_are_bounded(running: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_SMALL_BODY_BYTES", 1000)
    large = {"text": "w1", "texts": None, "tasks": ["embedding"] * 6000}
    assert (await running.post("/v1/analyze", large)).status == 200
    assert running.models.body_bytes == 0
    running.models.body_bytes = running.models.default.settings.max_held_bytes
    refused = await running.post("/v1/analyze", large)
    assert (refused.status, refused.json["error"]["reason"]) == (429, "OVERLOADED")
    assert (await running.post("/v1/analyze", {"text": "w1"})).status == 200
    line = b'"' + b"x" * 90_000 + b'"'
    stream = await running.post("/v1/analyze", line, {"content-type": "application/x-ndjson"})
    assert b"OVERLOADED" in stream.body
    assert running.models.body_bytes == running.models.default.settings.max_held_bytes


async def test_unread_responses_of_all_calls_are_bounded(running: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_SMALL_BODY_BYTES", 1000)
    request = {"ids": [5] * 2000}
    held: list[int] = []
    send = Response.send

    async def record(response: Response, exchange: Any) -> None:
        held.append(running.models.body_bytes)
        await send(response, exchange)

    monkeypatch.setattr(Response, "send", record)
    whole = await running.post("/decode", request)
    assert (whole.status, held) == (200, [len(whole.body) - 1000])
    running.models.body_bytes = running.models.default.settings.max_held_bytes
    refused = await running.post("/decode", request)
    assert (refused.status, refused.json["error_type"]) == (429, "Overloaded")
    assert running.models.body_bytes == running.models.default.settings.max_held_bytes


async def test_server_that_reports_its_life_is_acknowledged(running: HttpServer) -> None:
    arriving = ["lifespan.startup", "lifespan.shutdown"]
    sent: list[str] = []

    async def receive() -> dict[str, str]:
        return {"type": arriving.pop(0)}

    async def send(message: dict[str, str]) -> None:
        sent.append(message["type"])

    app = create_app(running.models, None, ["polyhead"], with_playground=False)
    await app({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize("method", ["OPTIONS", "POST"])
async def test_a_page_of_another_origin_is_not_allowed_to_read_answers(running: HttpServer, method: str) -> None:
    headers = {"origin": "https://elsewhere.example", "access-control-request-method": "POST"}
    reply = await running.request(method, "/v1/analyze", {"texts": ["w1"]}, headers)
    assert reply.status == (200 if method == "POST" else 405)
    assert [name for name in reply.headers if name.startswith("access-control-")] == []
