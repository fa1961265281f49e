"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from typing import Any, Self, TypeAlias, Unpack

import numpy as np
from numpy.typing import NDArray

from polyhead_client.core.stream_state import Text
from polyhead_client.transport.asyncio_runtime import AsyncioRuntime

from ._base import BaseClient
from .model_info import ModelInfo
from .options import AnalyzeOptions, EmbedOptions, UnaryDeadline, UnaryOptions, documented, resolve
from .session import Session
from .streaming import Stream
from .types import Answer

# A plain iterable is read on the event loop: use an async one where its next text may take time.
Texts: TypeAlias = Iterable[Text] | AsyncIterable[Text]


class AsyncClient(BaseClient[Texts, AsyncGenerator[Answer, None]]):
    """An asyncio client of one server, or of several that serve the same model.

    Use it as a context manager, or call ``close``::

        async with AsyncClient("127.0.0.1:50051") as client:
            async for answer in client.stream(lines):
                print(answer.item_id, answer.sentiment.label)

    It may be created anywhere and connects in the event loop of its first call. After that loop has ended, it connects
    again in the next one. Two event loops cannot use it at the same time.

    To leave the loop early, wrap the answers in ``contextlib.aclosing``: that cancels the call at once, rather than
    when the iterator is garbage collected.
    """

    _inputs: tuple[type[Any], ...] = (Iterable, AsyncIterable)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; running calls end with UnavailableError."""
        await self._close()

    @documented(AnalyzeOptions)
    async def analyze(self, texts: Iterable[Text], **options: Unpack[AnalyzeOptions]) -> list[Answer]:
        """Analyzes a batch of texts and returns their answers in order, like ``Client.analyze``.

        Args:
            texts: The texts to analyze, each a ``str`` or ``(item_id, text)``: a list, a numpy array, a pandas Series.
            **options: See ``AnalyzeOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return await self._analyze(texts, AnalyzeOptions, options)

    @documented(EmbedOptions)
    async def embed(self, texts: Iterable[Text], **options: Unpack[EmbedOptions]) -> list[Answer]:
        """Returns answers with their embeddings, otherwise like ``analyze``.

        Args:
            texts: The texts to embed, each a ``str`` or ``(item_id, text)``: a list, a numpy array, a pandas Series.
            **options: See ``EmbedOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return await self._analyze(texts, EmbedOptions, options, "embedding")

    @documented(UnaryOptions)
    async def classify(self, texts: Iterable[Text], **options: Unpack[UnaryOptions]) -> list[Answer]:
        """Returns answers with their classifications, otherwise like ``analyze``.

        Args:
            texts: The texts to classify, each a ``str`` or ``(item_id, text)``: a list, a numpy array, a pandas Series.
            **options: See ``UnaryOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return await self._analyze(texts, UnaryOptions, options, "classification")

    @documented(UnaryOptions)
    async def sentiment(self, texts: Iterable[Text], **options: Unpack[UnaryOptions]) -> list[Answer]:
        """Returns answers with their sentiments, otherwise like ``analyze``.

        Args:
            texts: The texts to rate, each a ``str`` or ``(item_id, text)``: a list, a numpy array, a pandas Series.
            **options: See ``UnaryOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return await self._analyze(texts, UnaryOptions, options, "sentiment")

    @documented(UnaryOptions)
    async def labels(self, texts: Iterable[Text], **options: Unpack[UnaryOptions]) -> list[Answer]:
        """Returns answers with the labels of their multilabel heads, otherwise like ``analyze``.

        Args:
            texts: The texts to label, each a ``str`` or ``(item_id, text)``: a list, a numpy array, a pandas Series.
            **options: See ``UnaryOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return await self._analyze(texts, UnaryOptions, options, "labels")

    @documented(UnaryOptions)
    async def score(self, texts: Iterable[Text], **options: Unpack[UnaryOptions]) -> list[Answer]:
        """Returns answers with the scores of their ordinal and regression heads, otherwise like ``analyze``.

        Args:
            texts: The texts to score, each a ``str`` or ``(item_id, text)``: a list, a numpy array, a pandas Series.
            **options: See ``UnaryOptions``.

        Returns:
            One answer for each text. An item's error is part of its answer and is not raised.

        Raises:
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return await self._analyze(texts, UnaryOptions, options, "score")

    @documented(EmbedOptions)
    async def embeddings(self, texts: Iterable[Text], **options: Unpack[EmbedOptions]) -> NDArray[np.float32]:
        """Returns the embeddings of a batch of texts as one matrix.

        Args:
            texts: The texts to embed, as for ``embed``.
            **options: See ``EmbedOptions``.

        Returns:
            Array of float32, shape (number of texts, dimensions), in the order of the texts. Shape (0, dimensions)
            without texts, for which the server is asked for its dimensions unless they are given.

        Raises:
            ItemFailedError: A text has an error, the first of them; no embedding is returned. ``embed`` returns the
                others.
            InvalidRequestError: An option or a text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        return await self._embeddings(texts, options)

    @documented(UnaryDeadline)
    async def info(self, **options: Unpack[UnaryDeadline]) -> ModelInfo:
        """Describes the model behind the server and how the server runs it.

        Args:
            **options: See ``UnaryDeadline``.

        Raises:
            PolyheadError: The call failed; the subclass tells how to react.
        """
        return await self._info(**resolve(UnaryDeadline, options))

    def _create_runtime(self) -> AsyncioRuntime:
        return AsyncioRuntime()

    async def _answers(
        self, open_stream: Callable[[], tuple[Session, Stream]], texts: Texts
    ) -> AsyncGenerator[Answer, None]:
        session, stream = open_stream()
        with session.running(stream):
            try:
                stream.start(texts)
                while answers := await stream.next_answers():
                    for answer in answers:
                        yield answer
            finally:
                await stream.stop()
