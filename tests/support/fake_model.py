"""A model with a word-level tokenizer and a fake engine.

The ``conftest.py`` of each folder that uses the fixtures imports them.
"""

from __future__ import annotations

from pathlib import Path

import polyhead_bundle as bundle
import pytest
import tokenizers
from polyhead_server.inference.model import Model
from polyhead_server.inference.tokenization import Tokenizer

from tests.support.fake_engine import MAX_TOKENS, WORDS, FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    # Published tokenizers often enable both: the server must switch them off.
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(max_length=12)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer(tokenizer_file, MAX_TOKENS, max_characters=1000)


@pytest.fixture
def manifest() -> bundle.Manifest:
    heads = (
        bundle.Head("topic", "softmax", "logits", ("a", "b", "c")),
        bundle.Head("sentiment", "sigmoid", "sentiment_logits", ("negative", "positive"), threshold=0.5),
    )
    fingerprints = bundle.Fingerprints("e" * 16, {"topic": "t" * 16, "sentiment": "s" * 16})
    return bundle.Manifest(
        name="fake",
        files={},
        inputs=(),
        outputs=(),
        embedding=bundle.Embedding("sentence_embedding", 2, "mean", normalized=False),
        heads=heads,
        max_tokens=MAX_TOKENS,
        pad_token_id=0,
        variants={"fp32": bundle.Variant("model.onnx", True, 1e-3, fingerprints, (), (), {})},
        built_with={},
        prompts={"passage": "w8 w9 ", "query": "w7 "},
    )


@pytest.fixture
def model(manifest: bundle.Manifest, tokenizer: Tokenizer, engine: FakeEngine) -> Model:
    source = bundle.Bundle(Path("fake"), manifest, "d" * 64)
    return Model(source, tokenizer, engine, (), max_batch_tokens=256)
