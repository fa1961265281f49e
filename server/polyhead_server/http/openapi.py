"""The OpenAPI document of the HTTP API, as far as the server's dialects are enabled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import metadata, resources
from typing import Any

import orjson

from .calls import Call, respond
from .exchange import Response


def handler(paths: dict[str, list[str]]) -> Callable[[Call], Awaitable[Response]]:
    """Returns the handler of ``GET /openapi.json`` for a server with these paths and methods."""

    async def document(_: Call) -> Response:
        return respond(describe(paths))

    return document


def describe(paths: dict[str, list[str]]) -> dict[str, Any]:
    """Returns the document of these paths.

    Args:
        paths: The methods of each path that is served.
    """
    source = orjson.loads(resources.files(__package__).joinpath("openapi.json").read_bytes())
    source["info"]["version"] = metadata.version("polyhead")
    source["paths"] = {
        path: {method: content for method, content in operations.items() if method.upper() in paths[path]}
        for path, operations in source["paths"].items()
        if path in paths
    }
    return source  # type: ignore[no-any-return]
