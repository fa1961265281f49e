"""Client of MLServer and PyTriton: V2 inference protocol over gRPC. See ``bench/comparison/client.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from tritonclient.grpc import InferInput  # type: ignore[import-not-found]
from tritonclient.grpc.aio import InferenceServerClient  # type: ignore[import-not-found]

from .client import Answer, Request, main


@asynccontextmanager
async def connect(target: str) -> AsyncIterator[Request]:
    """Opens a channel; yields the function that sends one text."""
    async with InferenceServerClient(target) as client:

        async def request(text: str) -> Answer:
            given = InferInput("text", [1, 1], "BYTES")
            given.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
            found = await client.infer("polyhead", [given])
            return Answer(
                found.as_numpy("embeddings").astype("<f4").tobytes(),
                found.as_numpy("probabilities")[0].tolist(),
                float(found.as_numpy("sentiments").item()),
            )

        yield request


if __name__ == "__main__":
    main(connect)
