"""The right answers: a bundle's engine in this process, one text at a time, without queue, batch or network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import polyhead_bundle as bundle
from numpy.typing import NDArray
from polyhead_client import Fingerprints, Result
from polyhead_server.inference import postprocessing
from polyhead_server.inference.model import Model, load_model, pad
from polyhead_server.settings import Settings

# What the project promises: so near are two answers to the same text, whatever else is in the batch.
TOLERANCE = 1e-5

Row = NDArray[np.float32]
# How much of a text was read: tokens seen, tokens used, code point of the cut.
Extent = tuple[int, int, int | None]


class ReferenceAnswers:
    """The right answers of some bundles, by version and text; each is computed once."""

    def __init__(self, bundles: Iterable[Path], variant: str = "auto") -> None:
        models = [
            # The size of passes is of no matter here, and measuring it takes a while.
            load_model(Settings(bundle=path, device="cpu", variant=variant, max_batch_tokens=1))
            for path in bundles
        ]
        self._models = {version(model.fingerprints): model for model in models}
        self.versions = [version(model.fingerprints) for model in models]
        self._known: dict[tuple[str, str], tuple[Row, Extent]] = {}

    def learn(self, texts: Sequence[str]) -> None:
        """Computes the answers of every version, so that nobody waits for them later."""
        for one in self.versions:
            for text in texts:
                self.answer(one, text)

    def answer(self, version: str, text: str) -> tuple[Row, Extent]:
        """The right answer of a version."""
        key = version, text
        if key not in self._known:
            self._known[key] = _compute(self._models[version], text)
        return self._known[key]

    def apart_when_padded(self, text: str, tokens: int) -> float:
        """The largest difference of any number when a text is padded to so many tokens, with the first version."""
        model = self._models[self.versions[0]]
        row, _ = self.answer(self.versions[0], text)
        return float(np.abs(_compute(model, text, tokens)[0] - row).max())

    def judge(self, text: str, result: Result) -> str:
        """``right`` or ``wrong``: the answer against that of the version which it says it comes from."""
        # Written so that NaN is wrong.
        return "right" if self.distance(text, result) <= TOLERANCE else "wrong"

    def distance(self, text: str, result: Result) -> float:
        """The largest difference of any number; infinite where a part is missing, or another part of it was read."""
        found, read = version(result.fingerprints), result.truncation
        if found not in self._models or not (
            result.embedding is not None and result.classification and result.sentiment
        ):
            return float("inf")
        row, extent = self.answer(found, text)
        if extent != (read.tokens_seen, read.tokens_used, read.cut_at_code_point):
            return float("inf")
        topic = next(head for head in self._models[found].source.manifest.heads if head.kind == "softmax")
        by_label = {score.label: score.probability for score in result.classification.scores}
        scores = [*(by_label.get(label, np.nan) for label in topic.labels), result.sentiment.probability]
        # As max() of the two would forget a NaN.
        return float(np.abs(row - np.concatenate([result.embedding, np.array(scores, np.float32)])).max())


def version(fingerprints: bundle.Fingerprints | Fingerprints) -> str:
    """The version of a model, from a bundle's fingerprints or from those of an answer."""
    return " ".join([fingerprints.embedding_space, *(one for _, one in sorted(fingerprints.heads.items()))])


def _compute(model: Model, text: str, width: int = 0) -> tuple[Row, Extent]:
    """The answer to a text alone, padded to ``width`` tokens where it has fewer."""
    (tokens,) = model.tokenizer.encode([text])
    manifest = model.source.manifest
    # Beside it rides what makes it be padded.
    batch = pad([*tokens.windows, *([[manifest.pad_token_id] * width] if width else [])], manifest.pad_token_id)
    numbers = postprocessing.postprocess(manifest.heads, model.engine.run(*batch))[0]
    if numbers is None:
        raise SystemExit("the engine alone answers with numbers that are not finite")
    # The first of each kind, as the client names them.
    chosen = [
        next(part for head, part in zip(manifest.heads, numbers.probabilities, strict=True) if head.kind == kind)
        for kind in ("softmax", "sigmoid")
    ]
    return np.concatenate([numbers.embedding, *chosen]), (tokens.seen, tokens.used, tokens.cut_at)
