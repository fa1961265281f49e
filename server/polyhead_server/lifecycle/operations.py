"""What may be asked of a running server: by an operator, of all of its processes, or by a supervisor, of one."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any

from polyhead_server.errors import InternalError, NotReadyError, ReloadError, ServerError
from polyhead_server.inference.model import Model
from polyhead_server.json_types import Values
from polyhead_server.rpc import service_names
from polyhead_server.rpc.admin_service import AdminServer, Ask
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.settings import Settings

from .compatibility import Identity
from .reload import Reloader

logger = logging.getLogger(__name__)


class Control:
    """One server process.

    Attributes:
        reloader: Loads the bundle again; None until the model is ready.
        drained: Whether an operator has drained the server.
    """

    def __init__(self, settings: Settings, service: InferenceService, health: Health, ask: Ask | None) -> None:
        """Puts it together.

        Args:
            settings: The server's.
            service: Answers.
            health: Of ``service``.
            ask: Reaches all processes of the server; None where this is the only one.
        """
        self.reloader: Reloader | None = None
        self.drained = False
        self._reloading: asyncio.Task[Model] | None = None
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
        # A load that has begun cannot be stopped. It goes on when nobody waits for it any more, and who asks meanwhile
        # waits before beginning another.
        while self._reloading and not self._reloading.done():
            await asyncio.wait({self._reloading})
        self._reloading = asyncio.create_task(self.reloader.reload(force=arguments["force"]))
        # It stands in the log.
        self._reloading.add_done_callback(lambda task: task.cancelled() or task.exception())
        model = await asyncio.shield(self._reloading)
        fingerprints = model.fingerprints
        return {
            "process_id": os.getpid(),
            "model_id": model.source.model_id,
            "embedding_space": fingerprints.embedding_space,
            "heads": dict(fingerprints.heads),
            "identity": Identity.of(model).to_json(),
        }

    async def _drain(self, _: Values) -> Values:
        logger.info("drained by an operator: the health service says NOT_SERVING of %s from now on", service_names.INFERENCE)
        self.drained = True
        # Where the model is still being loaded, the whole server is not alive yet.
        await self._health.set(serving=False, alive=self._health.alive)
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
