"""Connects a front to the engine process: each model of the engine becomes a pipeline that the service answers with."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from polyhead_server.background import BackgroundTasks
from polyhead_server.fronts.engine_client import EngineClient
from polyhead_server.fronts.pending import Target
from polyhead_server.fronts.remote_pipeline import RemotePipeline
from polyhead_server.observability.tracing import Tracing
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.settings import Settings

logger = logging.getLogger(__name__)


class EngineConnection:
    """The engine process of a front. Event loop only.

    Attributes:
        serving: Set once a model of the engine answers.
    """

    def __init__(self, path: Path, settings: Settings, service: InferenceService, tracing: Tracing | None) -> None:
        """Does not connect yet.

        Args:
            path: Socket of the engine process.
            settings: The server's.
            service: Answers with the engine's model.
            tracing: Traces the messages; None for no traces.
        """
        self.serving = asyncio.Event()
        self._settings = settings
        self._service = service
        self._tracing = tracing
        self._client = EngineClient(path, settings, self._serve)
        # Replaced pipelines that still wait for answers.
        self._closing = BackgroundTasks()

    async def run(self) -> None:
        """Keeps the front connected until it is cancelled."""
        await self._client.link.run()

    def _serve(self, target: Target) -> None:
        old = self._service.pipeline
        on_message = self._tracing.on_message if self._tracing else None
        pipeline = RemotePipeline(self._client, target, self._settings, on_message, on_exception=exit_if_out_of_memory)
        self._service.serve(pipeline)
        self.serving.set()
        logger.info("serving %s, which the engine process computes", target.model.source.model_id)
        if old:
            self._closing.start(old.close())
