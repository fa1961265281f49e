"""The same text gets the same result with torch and onnxruntime, alone, in any batch and in any stream."""

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
from polyhead_export.runners import Runner, onnx_runner, torch_runner
from polyhead_training.model import PolyheadModel
from polyhead_training.tokenization import encode, load_tokenizer, pad

from .conftest import Server, Start

pytestmark = pytest.mark.model

# Maximum difference to torch in float32 with another engine.
ENGINE_TOLERANCE = 1e-4
# Maximum difference to the same text in another batch.
BATCH_TOLERANCE = 1e-5

ADVERSARIAL_TEXTS = [
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
    """Reads the Big List of Naughty Strings, if the development data are available."""
    folder = os.environ.get("POLYHEAD_DATA")
    path = Path(folder or "", "blns.txt")
    lines = path.read_text(encoding="utf-8").split("\n") if folder and path.exists() else []
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module", params=["onnx/int8", "onnx/fp32", "torch/fp32"])
def served(request: pytest.FixtureRequest) -> str:
    """Engine and variant, as ``engine/variant``."""
    return str(request.param)


@pytest.fixture(scope="module")
def texts(served: str) -> list[str]:
    """The texts; hundreds more for the variant that is served by default, as no engine knows a text from its tokens."""
    more = naughty_strings() if served == "onnx/int8" else []
    return [*TEXTS, *ADVERSARIAL_TEXTS, *more]


# For tests of what does not depend on the engine; the first of the parameters, which order the tests.
by_one_engine = pytest.mark.parametrize("served", ["onnx/int8"], indirect=True)


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


def compute_alone(demo: bundle.Bundle, run: Runner, texts: list[str]) -> list[list[float]]:
    """Computes each text by itself: embedding, class probabilities in label order, probability of the sentiment."""
    topic, sentiment = demo.manifest.heads
    rows = []
    for ids in encode(load_tokenizer(demo.file("tokenizer.json")), texts, demo.manifest.max_tokens):
        outputs = {name: torch.from_numpy(value) for name, value in run(*pad([ids], 0)).items()}
        topics = torch.softmax(outputs[topic.output] / topic.temperature, dim=-1)
        positive = torch.sigmoid(outputs[sentiment.output] / sentiment.temperature)
        rows.append(torch.cat([outputs[demo.manifest.embedding.output], topics, positive], dim=-1)[0].tolist())
    return rows


@pytest.fixture(scope="module")
def trained(demo_bundle: Path) -> list[list[float]]:
    """The results of the trained model, for the texts of both engines in float32."""
    model = PolyheadModel.from_pretrained(demo_bundle / "torch").eval()
    return compute_alone(bundle.load(demo_bundle), torch_runner(model), [*TEXTS, *ADVERSARIAL_TEXTS])


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest, served: str, demo_bundle: Path, texts: list[str]) -> list[list[float]]:
    """The results of the trained model.

    For int8, which the export gate compares with the trained model, those of the ONNX graph without a server.
    """
    if not served.endswith("int8"):
        found: list[list[float]] = request.getfixturevalue("trained")
        return found
    demo = bundle.load(demo_bundle)
    return compute_alone(demo, onnx_runner(demo.file(demo.manifest.variants["int8"].file)), texts)


def row_of(answer: Answer) -> list[float]:
    """Returns an answer as one row in the layout of ``reference``."""
    result: Result = answer.unwrap()
    assert result.embedding is not None
    assert result.classification is not None
    assert result.sentiment is not None
    scores = sorted(result.classification.scores, key=lambda score: score.label)
    return [*result.embedding.tolist(), *(score.probability for score in scores), result.sentiment.probability]


def max_difference(left: list[list[float]], right: list[list[float]]) -> float:
    assert len(left) == len(right)
    return max(float(np.abs(np.subtract(one, other)).max()) for one, other in zip(left, right, strict=True))


def test_streamed_results_equal_the_model(client: Client, texts: list[str], reference: list[list[float]]) -> None:
    answers = [row_of(answer) for answer in client.stream(texts)]
    assert max_difference(answers, reference) <= ENGINE_TOLERANCE


def test_result_is_the_same_alone_and_in_any_batch(client: Client, texts: list[str]) -> None:
    alone = {text: row_of(client.analyze([text])[0]) for text in TEXTS}
    for seed in range(5):
        batch_mates = random.Random(seed).sample(texts, k=min(40, len(texts)))
        mixed = [*TEXTS, *batch_mates]
        random.Random(seed).shuffle(mixed)
        for text, answer in zip(mixed, client.analyze(mixed), strict=True):
            if text in alone:
                assert max_difference([row_of(answer)], [alone[text]]) <= BATCH_TOLERANCE


@by_one_engine
@pytest.mark.parametrize("prefix", ["", "stream_"])
def test_single_tasks_equal_the_full_analysis(client: Client, prefix: str) -> None:
    analyzed = client.analyze(TEXTS)
    embedded, classified, rated = (
        list(getattr(client, prefix + method)(TEXTS)) for method in ("embed", "classify", "sentiment")
    )
    for full, embedding, classification, sentiment in zip(analyzed, embedded, classified, rated, strict=True):
        result = full.unwrap()
        assert result.embedding is not None
        assert max_difference([_embedding(embedding)], [_embedding(full)]) <= BATCH_TOLERANCE
        assert classification.unwrap().classification is not None
        assert sentiment.unwrap().sentiment is not None
        assert classification.unwrap().embedding is None
        assert sentiment.unwrap().sentiment.label == result.sentiment.label  # type: ignore[union-attr]


@by_one_engine
def test_truncated_text_reports_where_it_was_cut(client: Client) -> None:
    text = "a fine parcel " * 2_000
    (cut,) = client.analyze([text])
    report = cut.unwrap().truncation
    assert report.truncated
    assert report.cut_at_code_point is not None
    (whole,) = client.analyze([text[: report.cut_at_code_point]])
    assert not whole.unwrap().truncation.truncated
    assert whole.unwrap().truncation.tokens_used == report.tokens_used
    assert max_difference([_embedding(whole)], [_embedding(cut)]) <= BATCH_TOLERANCE
    (rejected,) = client.analyze([text], truncation="error")
    assert rejected.error is not None
    assert (rejected.error.code, rejected.error.reason) == ("OUT_OF_RANGE", "TEXT_TOO_LONG")


@by_one_engine
def test_plain_customer_texts_are_classified_correctly(client: Client) -> None:
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
