"""Client of the V2 (Open Inference) protocol over gRPC: MLServer, PyTriton and polyhead. See ``client.py`` here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from .client import Answer, Request, main


@asynccontextmanager
async def connect(target: str) -> AsyncIterator[Request]:
    """Opens a channel; yields the function that sends one text."""
    async with InferenceServerClient(target) as client:

        async def request(text: str) -> Answer:
            given = InferInput("text", [1, 1], "BYTES")
            given.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
            found = await client.infer("polyhead", [given])
            # The servers name their outputs differently, but return the numbers in the same order.
            names = [one.name for one in found.get_response().outputs if one.datatype == "FP32"]
            embedding, probabilities, sentiment = map(found.as_numpy, names)
            return Answer(embedding.astype("<f4").tobytes(), probabilities[0].tolist(), float(sentiment.ravel()[-1]))

        yield request


if __name__ == "__main__":
    main(connect)
