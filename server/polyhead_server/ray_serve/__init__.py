"""polyhead on Ray Serve: ``serve run polyhead_server.ray_serve:application bundle=/models/demo``.

The whole server stands in each replica, from admission to postprocessing; Ray Serve starts the replicas, routes calls
to them, and replaces them::

    gRPC client -> Ray's gRPC proxy (proxy) -> replica -> handler_calls -> rpc/interceptors -> rpc/inference_service
    HTTP client -> Ray's HTTP proxy         -> replica -> http/api

Only this folder imports Ray. docs/guides/ray.md describes its use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .builder import application

__all__ = ["application"]


def __getattr__(name: str) -> Any:
    """Imports the builder when it is used: Ray's proxies import this package for ``proxy`` alone."""
    if name == "application":
        from .builder import application

        return application
    raise AttributeError(name)
