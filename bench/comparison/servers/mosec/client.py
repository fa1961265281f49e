"""mosec client: HTTP with keep-alive, MessagePack. See ``bench/comparison/client.py`` for the command line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp  # type: ignore[import-not-found]
import msgpack

from bench.comparison.client import Answer, Request, main


@asynccontextmanager
async def connect(target: str) -> AsyncIterator[Request]:
    """Opens a session; yields the function that sends one text."""
    async with aiohttp.ClientSession(f"http://{target}", connector=aiohttp.TCPConnector(limit=0)) as session:

        async def request(text: str) -> Answer:
            async with session.post("/inference", data=msgpack.packb(text)) as response:
                response.raise_for_status()
                return Answer(**msgpack.unpackb(await response.read()))

        yield request


if __name__ == "__main__":
    main(connect)
