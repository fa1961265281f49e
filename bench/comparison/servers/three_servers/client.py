"""Client of three polyhead servers, HOST:PORT,HOST:PORT,HOST:PORT: one task of every text is requested from each.

A text counts as answered when all three have answered. See ``bench/comparison/client.py`` for the command line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2

from bench.comparison.client import Answer, Request, main

_TASKS = (item_pb2.TASK_EMBEDDING, item_pb2.TASK_CLASSIFICATION, item_pb2.TASK_SENTIMENT)


@asynccontextmanager
async def connect(targets: str) -> AsyncIterator[Request]:
    """Opens a channel to each server; yields the function that sends one text."""
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(one)) for one in targets.split(",")]
        stubs: list[Any] = [inference_service_pb2_grpc.InferenceServiceStub(channel) for channel in channels]

        async def request(text: str) -> Answer:
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

        yield request


if __name__ == "__main__":
    main(connect)
