"""A page to try the model in a browser, served at ``/`` without build step and without requests to other hosts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from polyhead_server.http.calls import Call
from polyhead_server.http.exchange import Response

_TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
_FILES = {"/": "index.html", "/playground/app.js": "app.js", "/playground/style.css": "style.css"}
_HEADERS = {
    # Nothing but the page's own files, and calls of this server.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def handlers() -> dict[str, Callable[[Call], Awaitable[Response]]]:
    """Returns the handler of each path of the page."""
    return {path: _handler(name) for path, name in _FILES.items()}


def _handler(name: str) -> Callable[[Call], Awaitable[Response]]:
    content = resources.files(__package__).joinpath("static", name).read_bytes()
    headers = {**_HEADERS, "content-type": _TYPES[name.rpartition(".")[2]]}

    async def serve(_: Call) -> Response:
        return Response(content, headers=dict(headers))

    return serve
