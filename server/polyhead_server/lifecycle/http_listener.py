"""The HTTP API and the HTTP listener that the settings ask for; imports nothing of HTTP unless they do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polyhead_server.errors import StartupError
from polyhead_server.security.api_keys import Keys
from polyhead_server.security.tls import Certificates
from polyhead_server.serving.models import Models
from polyhead_server.settings import Settings

if TYPE_CHECKING:
    from polyhead_server.http.api import App
    from polyhead_server.http.listener import HttpListener


def http_listener(models: Models, settings: Settings, certificates: Certificates | None) -> HttpListener | None:
    """Returns the listener of ``--http-listen``; None without one.

    Raises:
        StartupError: The packages of the extra are missing, or the key file is invalid.
    """
    if not settings.http_listen:
        return None
    try:
        from polyhead_server.http.listener import HttpListener

        app = http_app(models, settings)
    except ModuleNotFoundError as error:
        raise StartupError(f"--http-listen requires {error.name}: pip install 'polyhead[http]'") from error
    context = certificates.http_context() if certificates else None
    return HttpListener(app, context, max_connections=settings.http_max_connections)


def http_app(models: Models, settings: Settings) -> App:
    """Returns the HTTP API as an ASGI application, with the API keys and the protocols of the settings.

    Raises:
        StartupError: The key file is invalid.
        ModuleNotFoundError: The packages of the extra are missing.
    """
    from polyhead_server.http.api import create_app

    keys = Keys(Path(settings.api_keys)) if settings.api_keys else None
    dialects = [name for name in settings.enabled_dialects if name != "polyhead"]
    return create_app(models, keys, ["polyhead", "openai", *dialects], with_playground=not settings.no_playground)
