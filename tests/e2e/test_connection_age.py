"""The capacity of several workers comes back after one was killed, although clients keep their connections."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_client import Client

from .conftest import START_S, Start

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers require two cores"),
]

OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


def test_streams_survive_the_age_of_their_connection(start: Start, demo_bundle: Path) -> None:
    flags = ("--max-connection-age-s", "1", "--max-connection-age-grace-s", "2")
    server = start(demo_bundle, *flags)
    server.wait_until_serving()
    texts, done = 0, threading.Event()

    def endless() -> Any:
        nonlocal texts
        while not done.wait(0.01):
            texts += 1
            yield str(texts), f"text {texts}"

    ends: Counter[str] = Counter()

    def plain() -> None:
        """Streams of a plain stub end gracefully, after the answers to all items that they accepted.

        While the second lasts, the stream of the client reaches its age too.
        """
        try:
            for _ in range(2):
                plain_stream()
        finally:
            done.set()

    def plain_stream() -> None:
        with grpc.insecure_channel(server.target, OPTIONS) as channel:
            stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
            try:
                for _ in stub.StreamAnalyze(_endless(), timeout=START_S):
                    ends["responses"] += 1
            except grpc.RpcError as error:
                ends[error.details() or ""] += 1

    thread = threading.Thread(target=plain)
    thread.start()
    with Client(server.target) as client:
        answers = list(client.stream(endless()))
    thread.join(START_S)
    assert [answer.item_id for answer in answers] == [str(number) for number in range(1, texts + 1)]
    assert all(answer.error is None for answer in answers)
    assert ends["responses"] > 0
    assert any("has reached its maximum age" in text for text in ends)
    assert server.stop() == 0


def _endless() -> Any:
    pause = threading.Event()
    while not pause.wait(0.01):
        yield pb2.StreamAnalyzeRequest(items=[item_pb2.Item(text="one text")])
