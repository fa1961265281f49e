"""The same text gets the same answer: from torch, from onnxruntime, alone, in any batch, through any stream."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polyhead_bundle as bundle
import pytest
import torch
from polyhead_client import Answer, Client, Result
from polyhead_export.golden import GOLDEN_TEXTS as TEXTS
from polyhead_export.runners import onnx_runner, torch_runner
from polyhead_training.model import PolyheadModel
from polyhead_training.tokenization import encode, load_tokenizer, pad

from .conftest import Server, Start

pytestmark = pytest.mark.model

# Against torch in float32, through a different engine.
ENGINE_TOLERANCE = 1e-4
# Against itself, whatever rides in the same batch.
BATCH_TOLERANCE = 1e-5

HOSTILE = [
    "",
    " ",
    "\x00",
    "\u202etxet desrever",
    "a" * 100_000,
    "word " * 5_000,
    "a megabyte of text. " * 52_429,
    "[CLS] [SEP] [MASK] </s> <pad>",
    "😀" * 3_000,
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
    "ﷺ" * 500,
    "田中さんにあげて下さい",
    "'; DROP TABLE users; --",
    "<script>alert(1)</script>",
]


def naughty_strings() -> list[str]:
    """The list of naughty strings, where the development data lie."""
    folder = os.environ.get("POLYHEAD_DATA")
    path = Path(folder or "", "blns.txt")
    lines = path.read_text(encoding="utf-8").split("\n") if folder and path.exists() else []
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [*TEXTS, *HOSTILE, *naughty_strings()]


@pytest.fixture(scope="module", params=["onnx/fp32", "onnx/int8", "torch/fp32"])
def served(request: pytest.FixtureRequest) -> str:
    """Engine and variant."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(served: str, start: Start, demo_bundle: Path) -> Server:
    engine, variant = served.split("/")
    server = start(demo_bundle, "--engine", engine, "--variant", variant, "--device", "cpu")
    server.wait_until_serving()
    return server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


@pytest.fixture(scope="module")
def reference(served: str, demo_bundle: Path, texts: list[str]) -> list[list[float]]:
    """Each text alone: embedding, probabilities by label order, probability.

    Those of the trained model; of int8, which is held to the trained model by the gate, those of its bare graph.
    """
    found = bundle.load(demo_bundle)
    if served.endswith("int8"):
        answer = onnx_runner(found.file(found.manifest.variants["int8"].file))
    else:
        answer = torch_runner(PolyheadModel.from_pretrained(demo_bundle / "torch").eval())
    topic, sentiment = found.manifest.heads
    rows = []
    for ids in encode(load_tokenizer(found.file("tokenizer.json")), texts, found.manifest.max_tokens):
        outputs = {name: torch.from_numpy(value) for name, value in answer(*pad([ids], 0)).items()}
        topics = torch.softmax(outputs[topic.output] / topic.temperature, dim=-1)
        positive = torch.sigmoid(outputs[sentiment.output] / sentiment.temperature)
        rows.append(torch.cat([outputs[found.manifest.embedding.output], topics, positive], dim=-1)[0].tolist())
    return rows


def numbers(answer: Answer) -> list[float]:
    """An answer as one row, in the layout of ``reference``."""
    result: Result = answer.unwrap()
    assert result.embedding is not None
    assert result.classification is not None
    assert result.sentiment is not None
    scores = sorted(result.classification.scores, key=lambda score: score.label)
    return [*result.embedding.tolist(), *(score.probability for score in scores), result.sentiment.probability]


def largest_difference(left: list[list[float]], right: list[list[float]]) -> float:
    assert len(left) == len(right)
    return max(float(np.abs(np.subtract(one, other)).max()) for one, other in zip(left, right, strict=True))


def test_streamed_answers_are_those_of_the_model(
    client: Client, texts: list[str], reference: list[list[float]]
) -> None:
    answers = [numbers(answer) for answer in client.stream(texts)]
    assert largest_difference(answers, reference) <= ENGINE_TOLERANCE


def test_answer_is_the_same_alone_and_in_any_batch(client: Client, texts: list[str]) -> None:
    alone = {text: numbers(client.analyze([text])[0]) for text in TEXTS}
    for seed in range(5):
        neighbours = random.Random(seed).sample(texts, k=min(40, len(texts)))
        mixed = [*TEXTS, *neighbours]
        random.Random(seed).shuffle(mixed)
        for text, answer in zip(mixed, client.analyze(mixed), strict=True):
            if text in alone:
                assert largest_difference([numbers(answer)], [alone[text]]) <= BATCH_TOLERANCE


def test_every_view_gives_what_the_whole_analysis_gives(client: Client) -> None:
    whole = client.analyze(TEXTS)
    embedded, classified, judged = map(list, (client.embed(TEXTS), client.classify(TEXTS), client.sentiment(TEXTS)))
    for one, embedding, classification, sentiment in zip(whole, embedded, classified, judged, strict=True):
        result = one.unwrap()
        assert result.embedding is not None
        assert largest_difference([_embedding(embedding)], [_embedding(one)]) <= BATCH_TOLERANCE
        assert classification.unwrap().classification is not None
        assert sentiment.unwrap().sentiment is not None
        assert classification.unwrap().embedding is None
        assert sentiment.unwrap().sentiment.label == result.sentiment.label  # type: ignore[union-attr]


def test_long_texts_say_where_they_were_cut(client: Client) -> None:
    text = "a fine parcel " * 2_000
    (cut,) = client.analyze([text])
    report = cut.unwrap().truncation
    assert report.truncated
    assert report.cut_at_code_point is not None
    (whole,) = client.analyze([text[: report.cut_at_code_point]])
    assert not whole.unwrap().truncation.truncated
    assert whole.unwrap().truncation.tokens_used == report.tokens_used
    assert largest_difference([_embedding(whole)], [_embedding(cut)]) <= BATCH_TOLERANCE
    (refused,) = client.analyze([text], truncation="error")
    assert refused.error is not None
    assert (refused.error.code, refused.error.reason) == ("OUT_OF_RANGE", "TEXT_TOO_LONG")


def test_plain_customer_texts_are_understood(client: Client) -> None:
    good, bad = client.analyze(
        [
            "The courier was friendly and the box arrived a day early, brilliant!",
            "I was charged twice and nobody refunds me.",
        ]
    )
    assert (_topic(good), _sentiment(good)) == ("delivery", "positive")
    assert (_topic(bad), _sentiment(bad)) == ("billing", "negative")


def _embedding(answer: Answer) -> list[float]:
    embedding = answer.unwrap().embedding
    assert embedding is not None
    return [float(value) for value in embedding]


def _topic(answer: Answer) -> str:
    classification = answer.unwrap().classification
    assert classification is not None
    return classification.best.label


def _sentiment(answer: Answer) -> str:
    sentiment = answer.unwrap().sentiment
    assert sentiment is not None
    return sentiment.label
