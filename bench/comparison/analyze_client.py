"""Client of polyhead, and of Ray Serve with polyhead's protocol: unary gRPC by the generated stubs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2

from .client import Answer, Request, main


@asynccontextmanager
async def connect(target: str) -> AsyncIterator[Request]:
    """Opens a channel; yields the function that sends one text."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)

        async def request(text: str) -> Answer:
            response = await stub.Analyze(pb2.AnalyzeRequest(items=[item_pb2.Item(text=text)]))
            result = response.answers[0].result
            scores = [score.probability for score in result.classification.scores]
            return Answer(result.embedding.values, scores, result.sentiment.probability)

        yield request


if __name__ == "__main__":
    main(connect)
