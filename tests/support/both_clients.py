"""Both clients behind one blocking interface, so that a test runs against each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Protocol

from polyhead_client import Answer, AsyncClient, Client, ModelInfo, Text


class Face(Protocol):
    """The interface that tests use, over ``Client`` or ``AsyncClient``."""

    client: Any

    def analyze(self, texts: Iterable[Text], **options: Any) -> list[Answer]: ...

    def unary(self, method: str, texts: Any, **options: Any) -> Any: ...

    def stream(self, texts: Iterable[Text], method: str = "stream", **options: Any) -> Iterator[Answer]: ...

    def info(self) -> ModelInfo: ...

    def close(self) -> None: ...

    def dispose(self) -> None: ...


class SyncFace:
    """``Client``."""

    def __init__(self, target: str, **options: Any) -> None:
        self.client = Client(target, **options)
        self.analyze = self.client.analyze
        self.info = self.client.info
        self.close = self.dispose = self.client.close

    def unary(self, method: str, texts: Any, **options: Any) -> Any:
        return getattr(self.client, method)(texts, **options)

    def stream(self, texts: Iterable[Text], method: str = "stream", **options: Any) -> Iterator[Answer]:
        answers: Iterator[Answer] = getattr(self.client, method)(texts, **options)
        return answers


class AsyncFace:
    """``AsyncClient``, whose event loop runs only while a call is awaited."""

    def __init__(self, target: str, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.client = AsyncClient(target, **options)

    def unary(self, method: str, texts: Any, **options: Any) -> Any:
        return self.runner.run(getattr(self.client, method)(texts, **options))

    def analyze(self, texts: Iterable[Text], **options: Any) -> list[Answer]:
        return self.runner.run(self.client.analyze(texts, **options))

    def info(self) -> ModelInfo:
        return self.runner.run(self.client.info())

    def stream(self, texts: Iterable[Text], method: str = "stream", **options: Any) -> Iterator[Answer]:
        source = texts if isinstance(texts, list | str) else _in_threads(texts)
        return self._iterate(getattr(self.client, method)(source, **options))

    def _iterate(self, answers: Any) -> Iterator[Answer]:
        async def next_answer() -> Answer | None:
            return await anext(answers, None)

        try:
            while (answer := self.runner.run(next_answer())) is not None:
                yield answer
        finally:
            self.runner.run(answers.aclose())

    def close(self) -> None:
        self.runner.run(self.client.close())

    def dispose(self) -> None:
        self.close()
        self.runner.close()


async def _in_threads(texts: Iterable[Text]) -> AsyncIterator[Text]:
    """Reads a blocking iterable in threads."""
    remaining = iter(texts)
    while (text := await asyncio.to_thread(next, remaining, None)) is not None:
        yield text
