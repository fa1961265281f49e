"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from typing import Self, TypeAlias, Unpack

from polyhead_client.core.stream_state import Text
from polyhead_client.transport.asyncio_runtime import AsyncioRuntime

from ._base import BaseClient
from .options import AnalyzeOptions, UnaryDeadline, documented, resolve
from .streaming import Stream
from .types import Answer, ModelInfo

# A plain iterable is read on the event loop: use an async one where its next text may take time.
Texts: TypeAlias = Iterable[Text] | AsyncIterable[Text]


class AsyncClient(BaseClient[Texts, AsyncGenerator[Answer, None]]):
    """An asyncio client of one server, or of several that serve the same model, for one event loop.

    Use it as a context manager, or call ``close``::

        async with AsyncClient("127.0.0.1:50051") as client:
            async for answer in client.stream(lines):
                print(answer.item_id, answer.unwrap().sentiment)

    To leave the loop early, wrap the answers in ``contextlib.aclosing``: that cancels the call at once, rather than
    when the iterator is garbage collected.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; running calls end with UnavailableError."""
        await self._session.close()

    @documented(AnalyzeOptions)
    async def analyze(self, texts: Iterable[Text], **options: Unpack[AnalyzeOptions]) -> list[Answer]:
        """Analyzes a batch of texts and returns their answers in order, like ``Client.analyze``.

        Args:
            texts: The texts to analyze, each a ``str`` or ``(item_id, text)``.
            **options: See ``AnalyzeOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option has an invalid value.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return await self._analyze(texts, options)

    @documented(UnaryDeadline)
    async def info(self, **options: Unpack[UnaryDeadline]) -> ModelInfo:
        """Describes the model behind the server, like ``Client.info``.

        Args:
            **options: See ``UnaryDeadline``.

        Raises:
            PolyheadError: The call failed; the subclass tells how to react.
        """
        return await self._info(**resolve(UnaryDeadline, options))

    def _create_runtime(self) -> AsyncioRuntime:
        return AsyncioRuntime()

    async def _answers(self, stream: Stream, texts: Texts) -> AsyncGenerator[Answer, None]:
        with self._session.running(stream):
            try:
                stream.start(texts)
                while answers := await stream.next_answers():
                    for answer in answers:
                        yield answer
            finally:
                await stream.stop()
