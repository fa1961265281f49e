"""Client of polyhead's text-embeddings-inference protocol over gRPC. See ``bench/comparison/client.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import numpy as np
from polyhead_server.rpc.dialects.descriptors import TYPES

from .client import Answer, Request, main


@asynccontextmanager
async def connect(target: str) -> AsyncIterator[Request]:
    """Opens a channel; yields the function that sends one text."""
    request_type = TYPES["tei.v1.EmbedRequest"]
    async with grpc.aio.insecure_channel(target) as channel:
        embed: Any = channel.unary_unary(
            "/tei.v1.Embed/Embed",
            request_serializer=request_type.SerializeToString,
            response_deserializer=TYPES["tei.v1.EmbedResponse"].FromString,
        )

        async def request(text: str) -> Answer:
            response = await embed(request_type(inputs=text.encode(), truncate=True))
            return Answer(np.asarray(response.embeddings, "<f4").tobytes())

        yield request


if __name__ == "__main__":
    main(connect)
