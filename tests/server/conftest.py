"""A model of a few numbers: a word-level tokenizer, and an engine whose answers prove which text they belong to."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polyhead_bundle as bundle
import pytest
import tokenizers
from numpy.typing import NDArray
from polyhead_server.engines import Runtime
from polyhead_server.inference.model import Model
from polyhead_server.inference.scheduler import Batch, BatchLimits, BatchScheduler, Entry, Flow
from polyhead_server.inference.tokenization import Tokenizer
from polyhead_server.inference.types import ItemOutcome, TokenizedText
from polyhead_server.settings import Settings

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "poison", *(f"w{number}" for number in range(200))]
MAX_TOKENS = 16


class FakeEngine:
    """Embeds a text as (sum of its ids, number of its tokens) and answers every head from the sum.

    Attributes:
        passes: The (B, T) shape of every pass, in order.
        gate: Passes wait here while it is not set.
        fails: Raised in place of an answer, when it is set and the batch holds the word "poison".
        closed: Whether it was closed.
    """

    def __init__(self) -> None:
        self.runtime = Runtime("fake", "cpu", "fp32")
        self.passes: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fails: BaseException | None = None
        self.closed = False
        self._entered = threading.Event()

    async def hold(self) -> None:
        """Waits until a pass stands before the closed gate."""
        assert await asyncio.to_thread(self._entered.wait, 30)

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        self._entered.set()
        assert self.gate.wait(30)
        self.passes.append(input_ids.shape)
        sums = (input_ids * attention_mask).sum(axis=1).astype(np.float32)  # (B,)
        counts = attention_mask.sum(axis=1).astype(np.float32)  # (B,)
        if self.fails and (input_ids == WORDS.index("poison")).any():
            raise self.fails
        logits = np.stack([sums, np.zeros_like(sums), -sums], axis=1) / 100  # (B, 3)
        return [np.stack([sums, counts], axis=1), logits, (sums / 100)[:, None]]

    def close(self) -> None:
        self.closed = True


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
    # As published tokenizers come: the server must switch both off.
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
    )


@pytest.fixture
def model(manifest: bundle.Manifest, tokenizer: Tokenizer, engine: FakeEngine) -> Model:
    source = bundle.Bundle(Path("fake"), manifest, "d" * 64)
    return Model(source, tokenizer, engine, (), max_batch_tokens=256)


@pytest.fixture
def settings() -> Callable[..., Settings]:
    """Settings with one compute thread unless told otherwise."""

    def make(**values: object) -> Settings:
        return Settings(**{"bundle": Path("fake"), "threads": 1, **values})  # type: ignore[arg-type]

    return make


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets a script of a few lines play the worker processes that are started."""

    def play(source: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable} -IS\n{textwrap.dedent(source)}")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return play


@pytest.fixture
async def queue() -> BatchScheduler:
    return BatchScheduler(BatchLimits(max_tokens=100, max_padding=0.12, overhead_tokens=16))


_clock = iter(range(1_000_000))


def entry(length: int, deadline: float | None = None, call: Flow | None = None) -> Entry:
    """An entry that is younger than all before it, of a call of its own unless one is given."""
    future: asyncio.Future[ItemOutcome] = asyncio.get_running_loop().create_future()
    ids = [7] * length
    return Entry(call or Flow(), TokenizedText((ids,), length), ids, future, deadline, 0, next(_clock), 0)


def lengths(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [entry.length for entry in batch.entries]


def embedding_of(text: str) -> list[float]:
    """What the fake engine must answer for a text of known words."""
    ids = [WORDS.index("[CLS]"), *(WORDS.index(word) for word in text.split()), WORDS.index("[SEP]")]
    return [float(sum(ids)), float(len(ids))]
