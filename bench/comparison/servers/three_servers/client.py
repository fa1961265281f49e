"""Three polyhead servers, HOST:PORT,HOST:PORT,HOST:PORT, each asked for one task of every text.

A text counts when all three have answered. See ``rival_client.py`` for the command line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2

from bench.comparison.client import Answer, Ask, main

_TASKS = (item_pb2.TASK_EMBEDDING, item_pb2.TASK_CLASSIFICATION, item_pb2.TASK_SENTIMENT)


@asynccontextmanager
async def connect(targets: str) -> AsyncIterator[Ask]:
    """Opens a channel to each server."""
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(one)) for one in targets.split(",")]
        stubs: list[Any] = [inference_service_pb2_grpc.InferenceServiceStub(channel) for channel in channels]

        async def ask(text: str) -> Answer:
            items = [item_pb2.Item(text=text)]
            responses = await asyncio.gather(
                *(
                    stub.Analyze(pb2.AnalyzeRequest(items=items, tasks=[task]))
                    for stub, task in zip(stubs, _TASKS, strict=True)
                )
            )
            embedding, topic, sentiment = (response.answers[0].result for response in responses)
            scores = [score.probability for score in topic.classification.scores]
            return Answer(embedding.embedding.values, scores, sentiment.sentiment.probability)

        yield ask


if __name__ == "__main__":
    main(connect)
