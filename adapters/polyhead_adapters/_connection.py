"""The clients behind an adapter."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from polyhead_client import Answer, AsyncClient, Client, Fingerprints, ModelInfo, Task, Tls, TruncationPolicy
from polyhead_client.choices import DEFAULT_TARGET
from polyhead_client.types import embedding_matrix

# Up to this number texts share one unary call, which has the lowest latency. More are streamed, so that the server has
# work at all times and a deadline does not depend on their number.
MAX_UNARY_TEXTS = 32


def tls_to_dict(tls: Tls | None) -> dict[str, str] | None:
    """Returns TLS settings as values that ``json.dumps`` accepts; ``Tls(**values)`` restores them."""
    if tls is None:
        return None
    return {name: str(value) for name, value in dataclasses.asdict(tls).items() if value is not None}


class ConnectionOptions(TypedDict, total=False):
    """Options that all adapters share.

    Attributes:
        tls: TLS settings; ``Tls()`` for the default trusted roots, None for plain TCP.
        truncation: How a text beyond the token limit is read: ``"truncate"``, ``"error"`` or ``"window"``.
        prompt: Name of a prompt of the model, whose text the server puts before every text; None for none.
        deadline_s: Seconds for a whole call. None for 30 s for a call of up to 32 texts, and no limit otherwise.
        expected_embedding_space: Fingerprint of the embedding space that every answer must have, so that vectors of
            different models are never mixed; None accepts any.
        client_options: Further arguments of ``polyhead_client.Client``, such as ``max_attempts`` and
            ``allow_plaintext_key``.
    """

    tls: Tls | None
    truncation: TruncationPolicy
    prompt: str | None
    deadline_s: float | None
    expected_embedding_space: str | None
    client_options: Mapping[str, Any]


class Connection:
    """Calls of an adapter from any thread and any event loop, with all their texts in one call.

    It connects at the first call, after ``close`` too. A copy, pickled or not, has connections of its own.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        api_key: str | None = None,
        dimensions: int | None = None,
        **options: Unpack[ConnectionOptions],
    ) -> None:
        """Configures the clients.

        Args:
            target: ``HOST:PORT`` of the server, or another target that ``polyhead_client.Client`` accepts.
            api_key: API key, sent over TLS or to this machine only.
            dimensions: Number of leading values of each embedding to return; None for all.
            **options: See ``ConnectionOptions``.

        Raises:
            InvalidRequestError: An argument has an invalid value.
            TypeError: An option or a client option is unknown.
        """
        if unknown := options.keys() - ConnectionOptions.__annotations__.keys():
            known = ", ".join(ConnectionOptions.__annotations__)
            raise TypeError(f"unexpected option {min(unknown)!r}; the options are {known}")
        client_options = options.get("client_options") or {}
        if own := client_options.keys() & {"target", "api_key", "tls"}:
            raise TypeError(f"client_options: {min(own)!r} is an argument of its own")
        self._arguments: dict[str, Any] = {"target": target, "api_key": api_key, "dimensions": dimensions, **options}
        self._client_arguments = {**client_options, "target": target, "api_key": api_key, "tls": options.get("tls")}
        self._options: dict[str, Any] = {
            "truncation": options.get("truncation", "truncate"),
            "prompt": options.get("prompt"),
        }
        if (deadline_s := options.get("deadline_s")) is not None:
            self._options["deadline_s"] = deadline_s
        if (space := options.get("expected_embedding_space")) is not None:
            self._options["expected_fingerprints"] = Fingerprints(space, {})
        self._dimensions = dimensions
        self._client = Client(**self._client_arguments)
        self._lock = threading.Lock()  # of the asynchronous clients
        self._async_clients: dict[asyncio.AbstractEventLoop, AsyncClient] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} target={self._client.target!r}>"

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)  # type: ignore[misc]

    def close(self) -> None:
        """Closes the connections of synchronous calls."""
        closed, self._client = self._client, Client(**self._client_arguments)
        closed.close()

    async def aclose(self) -> None:
        """Closes the connections of the running event loop."""
        with self._lock:
            client = self._async_clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def info(self) -> ModelInfo:
        """Describes the model behind the server."""
        return self._client.info()

    async def ainfo(self) -> ModelInfo:
        """``info`` for asyncio."""
        return await self._async_client().info()

    def answers(
        self, texts: Sequence[str], *tasks: Task, prompt: str | None = None, show_progress: bool = False
    ) -> list[Answer]:
        """Returns the answer to each text, in order.

        Args:
            texts: The texts.
            *tasks: What to compute.
            prompt: Name of a prompt; None for that of the connection.
            show_progress: Show a progress bar.

        Raises:
            InvalidRequestError: A text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        options = self._options_of(tasks, prompt)
        if isinstance(texts, str) or (len(texts) <= MAX_UNARY_TEXTS and not show_progress):
            return self._client.analyze(texts, **options)
        answers: Iterable[Answer] = self._client.stream(texts, **options)
        if show_progress:
            from rich.progress import track

            answers = track(answers, description="Texts", total=len(texts))
        return list(answers)

    async def aanswers(self, texts: Sequence[str], *tasks: Task, prompt: str | None = None) -> list[Answer]:
        """``answers`` for asyncio."""
        options = self._options_of(tasks, prompt)
        client = self._async_client()
        if isinstance(texts, str) or len(texts) <= MAX_UNARY_TEXTS:
            return await client.analyze(texts, **options)
        return [answer async for answer in client.stream(texts, **options)]

    def embeddings(
        self, texts: Sequence[str], *, prompt: str | None = None, show_progress: bool = False
    ) -> NDArray[np.float32]:
        """Returns the embeddings of texts.

        Args:
            texts: The texts.
            prompt: Name of a prompt; None for that of the connection.
            show_progress: Show a progress bar.

        Returns:
            Array of float32, shape (number of texts, dimensions), in the order of the texts.

        Raises:
            ItemFailedError: A text has an error, the first of them.
            InvalidRequestError: A text is invalid; nothing was sent.
            PolyheadError: The call as a whole failed; the subclass tells how to react.
        """
        if not len(texts):  # its shape requires the number of dimensions
            return self._client.embeddings([], dimensions=self._dimensions)
        return embedding_matrix(self.answers(texts, "embedding", prompt=prompt, show_progress=show_progress))

    def vectors(self, texts: Sequence[str], prompt: str | None = None) -> list[list[float]]:
        """``embeddings`` as lists."""
        return self.embeddings(texts, prompt=prompt).tolist() if len(texts) else []

    async def avectors(self, texts: Sequence[str], prompt: str | None = None) -> list[list[float]]:
        """``vectors`` for asyncio."""
        return embedding_matrix(await self.aanswers(texts, "embedding", prompt=prompt)).tolist() if len(texts) else []

    def _options_of(self, tasks: tuple[Task, ...], prompt: str | None) -> dict[str, Any]:
        options = {**self._options, "dimensions": self._dimensions, "tasks": tasks}
        return options if prompt is None else {**options, "prompt": prompt}

    def _async_client(self) -> AsyncClient:
        """Returns the client of the running event loop: two loops cannot share one."""
        loop = asyncio.get_running_loop()
        with self._lock:
            for ended in [one for one in self._async_clients if one.is_closed()]:
                del self._async_clients[ended]
            if loop not in self._async_clients:
                self._async_clients[loop] = AsyncClient(**self._client_arguments)
            return self._async_clients[loop]
