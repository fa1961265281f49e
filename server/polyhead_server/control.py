"""What may be asked of a running server: by an operator, of all of its processes, or by a supervisor, of one."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any

from .admin import AdminServer, Ask
from .errors import InternalError, NotReadyError, ReloadError, ServerError
from .health import Health
from .protocol import Values
from .reload import Reloader
from .service import InferenceService
from .settings import Settings
from .succession import Identity

logger = logging.getLogger(__name__)


class Control:
    """One server process."""

    def __init__(self, settings: Settings, service: InferenceService, health: Health, ask: Ask | None) -> None:
        """Puts it together.

        Args:
            settings: The server's.
            service: Answers.
            health: Of ``service``.
            ask: Reaches all processes of the server; None where this is the only one.
        """
        # There is none until the model is ready.
        self.reloader: Reloader | None = None
        self._service = service
        self._health = health
        shares_port = ask is not None
        self._admin = AdminServer(settings, ask or self._do_alone, health, shares_port=shares_port)
        self._operations: dict[str, Callable[[Values], Awaitable[Values]]] = {
            "reload": self._reload,
            "drain": self._drain,
            "stats": self._stats,
            "open_admin": self._open_admin,
            "close_admin": self._close_admin,
        }

    async def do(self, what: str, arguments: Values) -> Values:
        """Does one of the operations above.

        Returns:
            What JSON knows: of a reload the process, its model and fingerprints, and the model's identity; of stats the
            fields of ``WorkerStats``, durations in seconds.

        Raises:
            ServerError: Says why it was not done.
        """
        try:
            return await self._operations[what](arguments)
        except ServerError:
            raise
        except Exception as error:
            raise InternalError.logged(f"{what} failed", error) from error

    async def close(self) -> None:
        """Closes the admin service."""
        await self._admin.close()

    async def reload_as_told(self) -> None:
        """Reloads for somebody who looks for the outcome in the log."""
        try:
            await self.do("reload", {"force": False})
        except ReloadError:
            # It stands in the log already.
            pass
        except ServerError as error:
            logger.error("not reloaded: %s", error)  # noqa: TRY400 - it is its whole story

    async def _do_alone(self, what: str, arguments: Values) -> list[Values]:
        return [await self.do(what, arguments)]

    async def _reload(self, arguments: Values) -> Values:
        if self.reloader is None:
            raise NotReadyError
        model = await self.reloader.reload(force=arguments["force"])
        fingerprints = model.fingerprints
        return {
            "process_id": os.getpid(),
            "model_id": model.source.model_id,
            "embedding_space": fingerprints.embedding_space,
            "heads": dict(fingerprints.heads),
            "identity": Identity.of(model).to_json(),
        }

    async def _drain(self, _: Values) -> Values:
        logger.info("drained by an operator: the health service says NOT_SERVING from now on")
        await self._health.set(serving=False)
        return {}

    async def _stats(self, _: Values) -> Values:
        own: dict[str, Any] = {"process_id": os.getpid(), "serving": self._health.serving}
        return self._service.stats() | own

    async def _open_admin(self, _: Values) -> Values:
        await self._admin.open()
        return {}

    async def _close_admin(self, _: Values) -> Values:
        await self._admin.close()
        return {}
