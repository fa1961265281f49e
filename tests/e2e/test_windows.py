"""A long text is answered from all of its windows, as one would pool them by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import polyhead_bundle as bundle
import pytest
from polyhead.v1 import inference_service_pb2 as pb2
from polyhead.v1 import inference_service_pb2_grpc, item_pb2
from polyhead_export.runners import onnx_runner
from polyhead_server.engines.collate import pad
from polyhead_server.inference.tokenization import Tokenizer

from .conftest import Start

pytestmark = pytest.mark.model

SENTENCES = ["The parcel came late.", "I was charged twice!", "Where do I change my password?", "Love the quality."]
LONG = " ".join(SENTENCES[number % 4] for number in range(300))


def test_long_text_is_answered_from_all_its_windows(start: Start, demo_bundle: Path) -> None:
    server = start(demo_bundle, "--variant", "fp32", "--max-windows", "5")
    server.wait_until_serving()
    source = bundle.load(demo_bundle)
    manifest = source.manifest
    tokenizer = Tokenizer(source.file("tokenizer.json"), manifest.max_tokens, 10**6)
    options = item_pb2.ItemOptions(truncation=item_pb2.TRUNCATION_POLICY_WINDOW)
    texts = [SENTENCES[0], LONG[:900], LONG]
    request = pb2.AnalyzeRequest(items=[item_pb2.Item(text=text) for text in texts], options=options)
    with grpc.insecure_channel(server.target) as channel:
        stub: Any = inference_service_pb2_grpc.InferenceServiceStub(channel)
        limits = stub.GetModelInfo(pb2.GetModelInfoRequest(), timeout=60).model.limits
        answers = [answer.result for answer in stub.Analyze(request, timeout=60).answers]
    assert limits.max_windows == 5
    short, whole, cut = (answer.truncation for answer in answers)
    assert (short.windows, whole.windows > 1, cut.windows) == (1, True, 5)
    assert [one.truncated for one in (short, whole, cut)] == [False, False, True]
    # The unread part begins with a word.
    assert LONG[cut.cut_at_code_point :].strip().split()[0] in " ".join(SENTENCES)

    run = onnx_runner(source.file(manifest.variants["fp32"].file))
    names = [manifest.embedding.output, *(head.output for head in manifest.heads)]
    for answer, tokens in zip(answers, tokenizer.encode(texts, 5), strict=True):
        assert answer.truncation.tokens_used == tokens.used
        weights = np.array([len(window) for window in tokens.windows]) / tokens.used
        outputs = run(*pad([*tokens.windows], manifest.pad_token_id))
        embedding, topic, mood = (weights @ outputs[name] for name in names)
        embedding /= np.linalg.norm(embedding)
        np.testing.assert_allclose(np.frombuffer(answer.embedding.values, "<f4"), embedding, atol=1e-5)
        scaled = np.exp(topic / manifest.heads[0].temperature)
        scores = {one.label: one.probability for one in answer.classification.scores}
        expected = dict(zip(manifest.heads[0].labels, scaled / scaled.sum(), strict=True))
        assert scores == pytest.approx(expected, abs=1e-5)
        probability = 1 / (1 + np.exp(-mood[0] / manifest.heads[1].temperature))
        assert answer.sentiment.probability == pytest.approx(probability, abs=1e-5)
