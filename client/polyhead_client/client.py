"""The client for threads."""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Iterator
from typing import Self, Unpack
from weakref import WeakSet

from polyhead_client.core.stream_state import Text
from polyhead_client.transport.thread_runtime import ThreadRuntime, run

from ._base import BaseClient
from .options import AnalyzeOptions, UnaryDeadline, documented, resolve
from .streaming import Stream
from .types import Answer, ModelInfo

_running: WeakSet[Stream] = WeakSet()


@atexit.register
def _stop_streams() -> None:
    """Stops the streams that are open at exit, while their threads still run.

    Later the interpreter stops daemon threads wherever they are, perhaps while they hold a lock of gRPC, and cancelling
    a call would wait for that lock for ever.
    """
    for stream in list(_running):
        run(stream.stop())


class Client(BaseClient[Iterable[Text], Iterator[Answer]]):
    """A blocking client of one server, or of several that serve the same model. Threads may share it.

    Use it as a context manager, or call ``close``::

        with Client("127.0.0.1:50051") as client:
            for answer in client.stream(lines):
                print(answer.item_id, answer.unwrap().sentiment)
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; running calls end with UnavailableError."""
        run(self._session.close())

    @documented(AnalyzeOptions)
    def analyze(self, texts: Iterable[Text], **options: Unpack[AnalyzeOptions]) -> list[Answer]:
        """Analyzes a batch of texts and returns their answers in order; a large batch takes several calls.

        The call is retried while the server is away, or is overloaded and sends a retry delay.

        Args:
            texts: The texts to analyze, each a ``str`` or ``(item_id, text)``.
            **options: See ``AnalyzeOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option has an invalid value.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return run(self._analyze(texts, options))

    @documented(UnaryDeadline)
    def info(self, **options: Unpack[UnaryDeadline]) -> ModelInfo:
        """Describes the model behind the server and how the server runs it.

        Args:
            **options: See ``UnaryDeadline``.

        Raises:
            PolyheadError: The call failed; the subclass tells how to react.
        """
        return run(self._info(**resolve(UnaryDeadline, options)))

    def _create_runtime(self) -> ThreadRuntime:
        return ThreadRuntime()

    def _answers(self, stream: Stream, texts: Iterable[Text]) -> Iterator[Answer]:
        with self._session.running(stream):
            _running.add(stream)
            try:
                stream.start(texts)
                while answers := run(stream.next_answers()):
                    yield from answers
            finally:
                run(stream.stop())
