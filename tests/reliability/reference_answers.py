"""Correct answers: the engine of a bundle in this process, one text at a time, without queue, batching or network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray
from polyhead_client import Fingerprints, Result
from polyhead_server.engines.collate import pad
from polyhead_server.inference import postprocessing
from polyhead_server.inference.model import Model, load_model
from polyhead_server.settings import Settings

# The guarantee of the project: two answers to the same text differ by at most this, whatever else is in the batch.
TOLERANCE = 1e-5

Row = NDArray[np.float32]
# How much of a text was read: tokens seen, tokens used, code point of the cut.
Extent = tuple[int, int, int | None]


class ReferenceAnswers:
    """The correct answers of some bundles by version and text; each is computed once.

    Args:
        bundles: Paths of the bundles.
        variant: Variant of the bundles to load.
    """

    def __init__(self, bundles: Iterable[Path], variant: str = "auto") -> None:
        models = [
            # A fixed batch size skips its measurement, which takes a while and has no influence here.
            load_model(Settings(bundle=path, device="cpu", variant=variant, max_batch_tokens=1))
            for path in bundles
        ]
        self._models = {version(model.fingerprints): model for model in models}
        self.versions = [version(model.fingerprints) for model in models]
        self._cache: dict[tuple[str, str], tuple[Row, Extent]] = {}

    def precompute(self, texts: Sequence[str]) -> None:
        """Computes the answers of every version, so that later comparisons do not block."""
        for one in self.versions:
            for text in texts:
                self.answer(one, text)

    def answer(self, version: str, text: str) -> tuple[Row, Extent]:
        """Returns the correct answer of a version: the numbers, and how much of the text was read."""
        key = version, text
        if key not in self._cache:
            self._cache[key] = _compute(self._models[version], text)
        return self._cache[key]

    def padding_difference(self, text: str, tokens: int) -> float:
        """Returns the largest difference of any number when the first version gets a text padded to ``tokens``."""
        model = self._models[self.versions[0]]
        row, _ = self.answer(self.versions[0], text)
        return float(np.abs(_compute(model, text, tokens)[0] - row).max())

    def judge(self, text: str, result: Result) -> str:
        """Compares an answer with that of the version it names; returns ``correct`` or ``incorrect``."""
        # The comparison is written so that NaN is incorrect.
        return "correct" if self.difference(text, result) <= TOLERANCE else "incorrect"

    def difference(self, text: str, result: Result) -> float:
        """Returns the largest difference of any number.

        The difference is infinite if a part of the answer is missing or if another part of the text was read.
        """
        name, truncation = version(result.fingerprints), result.truncation
        if name not in self._models or not (
            result.embedding is not None and result.classification and result.sentiment
        ):
            return float("inf")
        row, extent = self.answer(name, text)
        if extent != (truncation.tokens_seen, truncation.tokens_used, truncation.cut_at_code_point):
            return float("inf")
        topic = next(head for head in self._models[name].source.manifest.heads if head.kind == "softmax")
        by_label = {score.label: score.probability for score in result.classification.scores}
        scores = [*(by_label.get(label, np.nan) for label in topic.labels), result.sentiment.probability]
        # One array, because Python's max() over two maxima would lose a NaN.
        return float(np.abs(row - np.concatenate([result.embedding, np.array(scores, np.float32)])).max())


def version(fingerprints: bundle.Fingerprints | Fingerprints) -> str:
    """Returns the version of a model from the fingerprints of a bundle or of an answer."""
    return " ".join([fingerprints.embedding_space, *(one for _, one in sorted(fingerprints.heads.items()))])


def _compute(model: Model, text: str, min_width: int = 0) -> tuple[Row, Extent]:
    """Computes the answer to a single text, padded to ``min_width`` tokens if it has fewer."""
    (tokens,) = model.tokenizer.encode([text])
    manifest = model.source.manifest
    # A row of padding tokens in the same batch forces the width.
    padding = [[manifest.pad_token_id] * min_width] if min_width else []
    batch = pad([*tokens.windows, *padding], manifest.pad_token_id)
    output = postprocessing.postprocess(manifest.heads, model.engine.run(*batch))[0]
    if output is None:
        raise SystemExit("the engine alone returns numbers that are not finite")
    # The first head of each kind, as in the client.
    probabilities = [
        next(part for head, part in zip(manifest.heads, output.probabilities, strict=True) if head.kind == kind)
        for kind in ("softmax", "sigmoid")
    ]
    return np.concatenate([output.embedding, *probabilities]), (tokens.seen, tokens.used, tokens.cut_at)
