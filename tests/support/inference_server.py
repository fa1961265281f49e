"""An inference service on a real socket, its client, and what tests send to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from grpc import aio
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_server.rpc import service_names
from polyhead_server.rpc.inference_service import InferenceService

# Texts of known words and two lengths.
TEXTS = [f"w{number % 200} w1" if number % 3 else f"w{number % 200}" for number in range(100)]


class InferenceServer:
    """A service, a channel to it and a stub."""

    def __init__(self, service: InferenceService, channel: aio.Channel) -> None:
        self.service = service
        self.channel = channel
        self.stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)

    def raw_stream(self, name: str = "StreamAnalyze") -> Any:
        """Opens a stream whose requests are bytes."""
        response_type = getattr(pb2, f"{name}Response")
        return self.channel.stream_stream(
            f"/{service_names.INFERENCE}/{name}", lambda data: data, response_type.FromString
        )()


def items(texts: Iterable[str]) -> list[item_pb2.Item]:
    """Makes items whose ids are their texts."""
    return [item_pb2.Item(item_id=text, text=text) for text in texts]


async def collect(call: Any) -> list[item_pb2.Answer]:
    """Reads a stream to its end."""
    answers: list[item_pb2.Answer] = []
    await collect_into(answers, call)
    return answers


async def collect_into(answers: list[item_pb2.Answer], call: Any) -> None:
    """Reads a stream to its end; answers that came before an error are kept."""
    async for response in call:
        answers.extend(response.answers)


def embedding(answer: item_pb2.Answer) -> list[float]:
    """Returns the float32 embedding of an answer."""
    return [float(value) for value in np.frombuffer(answer.result.embedding.values, "<f4")]
