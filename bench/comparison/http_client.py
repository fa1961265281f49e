"""HTTP client of mosec and polyhead, with keep-alive. See ``bench/comparison/client.py`` for the command line.

The target is HOST:PORT/PATH; the path decides what a request and its answer look like.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp  # type: ignore[import-not-found]
import msgpack
import numpy as np
import orjson

from .client import Answer, Request, main


class Dialect(NamedTuple):
    """Encodes a request with one text, and decodes its answer."""

    encode: Callable[[str], bytes]
    decode: Callable[[bytes], Answer]


def _mosec_answer(body: bytes) -> Answer:
    return Answer(**msgpack.unpackb(body))


def _analyze_answer(body: bytes) -> Answer:
    (answer,) = orjson.loads(body)["answers"]
    scores = [score["probability"] for score in answer["classification"]["scores"]]
    return Answer(_float32(answer["embedding"]), scores, answer["sentiment"]["probability"])


def _openai_answer(body: bytes) -> Answer:
    return Answer(base64.b64decode(orjson.loads(body)["data"][0]["embedding"]))


def _float32(values: Any) -> bytes:
    return np.asarray(values, "<f4").tobytes()


DIALECTS = {
    "/inference": Dialect(msgpack.packb, _mosec_answer),
    "/v1/analyze": Dialect(lambda text: orjson.dumps({"text": text}), _analyze_answer),
    # As OpenAI's own client requests it.
    "/v1/embeddings": Dialect(
        lambda text: orjson.dumps({"input": text, "model": "polyhead", "encoding_format": "base64"}), _openai_answer
    ),
}


@asynccontextmanager
async def connect(target: str) -> AsyncIterator[Request]:
    """Opens a session; yields the function that sends one text."""
    address, slash, name = target.partition("/")
    path = slash + name
    dialect = DIALECTS[path]
    async with aiohttp.ClientSession(f"http://{address}", connector=aiohttp.TCPConnector(limit=0)) as session:

        async def request(text: str) -> Answer:
            async with session.post(path, data=dialect.encode(text)) as response:
                response.raise_for_status()
                return dialect.decode(await response.read())

        yield request


if __name__ == "__main__":
    main(connect)
