"""Connects a front to the engine process, again whenever that ends, and receives the models that it serves."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from polyhead_server.background import BackgroundTasks
from polyhead_server.inference.model import Model
from polyhead_server.settings import Settings
from polyhead_server.threads import in_daemon_thread

from . import records
from .channel import Channel, ChannelError, greeting, receive_ends
from .model_files import ModelFiles, import_model, number_of
from .records import Kind, Record

logger = logging.getLogger(__name__)

# Interval at which to try to reach an engine process that is not there yet.
_CONNECT_INTERVAL_S = 0.02


class EngineLink:
    """The connection to the engine process that serves at the moment. Event loop only.

    Attributes:
        failure: Why this front cannot go on; None while it can.
        channel: The connection; None while there is none.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        *,
        on_records: Callable[[list[Record]], None],
        on_model: Callable[[int, Model], None],
        on_lost: Callable[[str], None],
    ) -> None:
        """Does not connect yet.

        Args:
            path: Socket of the engine process.
            settings: The server's.
            on_records: Receives the records of the engine. Raises ``RecordError`` for those that are not valid.
            on_model: Called when a model answers in the engine from now on, and this front has its tokenizer.
            on_lost: Called with the reason when the connection has ended.
        """
        self.failure: str | None = None
        self._path = path
        self._settings = settings
        self._on_records, self._on_model, self._on_lost = on_records, on_model, on_lost
        self.channel: Channel | None = None
        # Models that the engine has sent, by their numbers; some may still be loading.
        self._models: dict[int, asyncio.Future[Model]] = {}
        # Number of the model that the engine serves; 0 until it says so.
        self._serving_number = 0
        self._activating = BackgroundTasks()

    async def run(self) -> None:
        """Keeps the front connected until it is cancelled."""
        try:
            while True:
                await (await self._connect())
        finally:
            self._forget_models()
            if self.channel:
                self.channel.close()

    def send(self, record: bytes) -> None:
        """Sends a record; does nothing without a connection."""
        if self.channel:
            self.channel.send(record)

    def serve(self, number: int) -> None:
        """Handles the engine's news that a model answers from now on."""
        self._serving_number = number
        # Its files come by another way than this record, and may come later.
        if loading := self._models.get(number):
            self._activating.start(self._activate(number, loading))

    async def _connect(self) -> asyncio.Future[None]:
        """Connects to the engine process as soon as there is one; returns a future that ends with the connection."""
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                connection.connect(str(self._path))
                connection.send(greeting())
                ends = await receive_ends(connection)
            except (ChannelError, OSError) as error:
                connection.close()
                logger.debug("no engine: %s", error)
                await asyncio.sleep(_CONNECT_INTERVAL_S)
                continue
            except BaseException:
                connection.close()
                raise
            closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.channel = Channel(
                connection,
                ends,
                is_engine=False,
                on_records=self._on_records,
                on_message=self._on_message,
                on_close=partial(self._on_close, closed),
            )
            return closed

    def _on_close(self, closed: asyncio.Future[None], reason: str) -> None:
        self.channel = None
        self._serving_number = 0
        self._forget_models()
        self._on_lost(reason)
        closed.set_result(None)

    def _forget_models(self) -> None:
        """Frees the models that do not answer yet, also those that are still loading."""
        for loading in self._models.values():
            loading.add_done_callback(_discard)
        self._models.clear()

    def _on_message(self, description: bytes, descriptors: list[int]) -> None:
        """Loads what this front needs of a model that the engine sends."""
        files = ModelFiles(description, descriptors)
        number = number_of(files)
        loading = in_daemon_thread(lambda: import_model(files, self._settings), "model-importer")
        self._models[number] = loading
        loading.add_done_callback(lambda loading: self._on_imported(number, loading))
        if number == self._serving_number:
            self._activating.start(self._activate(number, loading))

    def _on_imported(self, number: int, loading: asyncio.Future[Model]) -> None:
        if loading.cancelled():
            return
        if error := loading.exception():
            logger.error("a model of the engine cannot be used", exc_info=error)
            self.failure = f"a model of the engine cannot be used: {type(error).__name__}"
        elif self._models.get(number) is loading:
            self.send(records.number(Kind.READY, number))

    async def _activate(self, number: int, loading: asyncio.Future[Model]) -> None:
        await asyncio.wait({loading})
        if self._models.get(number) is not loading or loading.exception():
            # The engine has ended meanwhile, or the front has failed.
            return
        for other in [one for one in self._models if one < number]:
            self._models.pop(other).add_done_callback(_discard)
        self._on_model(number, self._models.pop(number).result())


def _discard(loading: asyncio.Future[Model]) -> None:
    if not loading.cancelled() and not loading.exception():
        loading.result().tokenizer.close()
