"""The calls that ``renew`` records: each method, kind of head and option once, on a golden bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import item_pb2
from polyhead_client import Answer, Client

TEXTS = ("Where is my refund?", "The parcel came two days late and the box was wet.", "", "🙂 Lovely soup")
LONG = "the second invoice charges me twice for one month " * 8


@dataclass(frozen=True)
class Call:
    """A call to record.

    Attributes:
        version: Format version of the golden bundle.
        method: Name of the RPC.
        requests: Request messages.
        client: The same call with the client; returns plain values. None if the client does not make such a call.
    """

    version: int
    method: str
    requests: Sequence[Message]
    client: Callable[[Client], Any] | None = None


def _items(*texts: str) -> list[item_pb2.Item]:
    return [item_pb2.Item(item_id=str(number), text=text) for number, text in enumerate(texts)]


def _values(answers: Sequence[Answer]) -> list[Any]:
    return [answer.to_dict() for answer in answers]


def _analyze(version: int) -> Call:
    request = pb2.AnalyzeRequest(items=_items(*TEXTS))
    return Call(version, "Analyze", [request], lambda client: _values(client.analyze(TEXTS)))


def _info(version: int) -> Call:
    return Call(version, "GetModelInfo", [pb2.GetModelInfoRequest()], lambda client: client.info().to_dict())


CALLS = {
    "all tasks, version 2": _analyze(2),
    "all tasks, version 3": _analyze(3),
    "all tasks, version 4": _analyze(4),
    "all tasks, version 5": _analyze(5),
    "model, version 2": _info(2),
    "model, version 3": _info(3),
    "model, version 4": _info(4),
    "model, version 5": _info(5),
    "labels and scores with a prompt": Call(
        3,
        "Analyze",
        [
            pb2.AnalyzeRequest(
                items=_items(*TEXTS),
                tasks=[item_pb2.TASK_LABELS, item_pb2.TASK_SCORE],
                options=item_pb2.ItemOptions(prompt="query"),
            )
        ],
    ),
    "novelty": Call(
        4,
        "Analyze",
        [pb2.AnalyzeRequest(items=_items(*TEXTS), options=item_pb2.ItemOptions(include_novelty=True))],
        lambda client: _values(client.analyze(TEXTS, include_novelty=True)),
    ),
    "prediction sets": Call(
        5,
        "Analyze",
        [pb2.AnalyzeRequest(items=_items(*TEXTS), options=item_pb2.ItemOptions(include_prediction_sets=True))],
        lambda client: _values(client.analyze(TEXTS, include_prediction_sets=True)),
    ),
    "a text that is too long": Call(
        4,
        "Analyze",
        [
            pb2.AnalyzeRequest(
                items=_items(LONG, TEXTS[0]),
                options=item_pb2.ItemOptions(truncation=item_pb2.TRUNCATION_POLICY_ERROR),
            )
        ],
    ),
    "windows of a long text": Call(
        4,
        "Analyze",
        [
            pb2.AnalyzeRequest(
                items=_items(LONG), options=item_pb2.ItemOptions(truncation=item_pb2.TRUNCATION_POLICY_WINDOW)
            )
        ],
    ),
    "a stream of all tasks": Call(
        4,
        "StreamAnalyze",
        [pb2.StreamAnalyzeRequest(items=_items(*TEXTS), order=item_pb2.ANSWER_ORDER_REQUEST)],
    ),
    "a stream of classes": Call(2, "StreamClassify", [pb2.StreamClassifyRequest(items=_items(*TEXTS))]),
    "a stream of sentiments": Call(2, "StreamSentiment", [pb2.StreamSentimentRequest(items=_items(*TEXTS))]),
    **{
        f"a stream of {name} embeddings": Call(
            4,
            "StreamEmbed",
            [
                pb2.StreamEmbedRequest(
                    items=_items(*TEXTS),
                    embedding_options=item_pb2.EmbeddingOptions(encoding=encoding, dimensions=dimensions),
                )
            ],
        )
        for name, encoding, dimensions in (
            ("float16", item_pb2.EMBEDDING_ENCODING_FLOAT16_LE, 0),
            ("int8", item_pb2.EMBEDDING_ENCODING_INT8, 0),
            ("short", item_pb2.EMBEDDING_ENCODING_FLOAT32_LE, 4),
        )
    },
}
