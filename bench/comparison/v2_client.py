"""The client of MLServer and PyTriton: V2 inference protocol over gRPC. See ``rival_client.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from tritonclient.grpc import InferInput  # type: ignore[import-not-found]
from tritonclient.grpc.aio import InferenceServerClient  # type: ignore[import-not-found]

from .client import Answer, Ask, main


@asynccontextmanager
async def connect(target: str) -> AsyncIterator[Ask]:
    """Opens a channel."""
    async with InferenceServerClient(target) as client:

        async def ask(text: str) -> Answer:
            given = InferInput("text", [1, 1], "BYTES")
            given.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
            found = await client.infer("polyhead", [given])
            return Answer(
                found.as_numpy("embeddings").astype("<f4").tobytes(),
                found.as_numpy("probabilities")[0].tolist(),
                float(found.as_numpy("sentiments").item()),
            )

        yield ask


if __name__ == "__main__":
    main(connect)
