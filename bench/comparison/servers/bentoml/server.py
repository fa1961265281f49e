"""BentoML: two workers, JSON over HTTP; the embedding is base64 in it. Run by ``bentoml serve server:Polyhead``."""

from __future__ import annotations

import base64
from typing import Any

import bentoml  # type: ignore[import-not-found]

from bench.comparison.graph import Graph, Setting

setting = Setting.read()


@bentoml.service(workers=2, traffic={"timeout": 60})
class Polyhead:
    """Answers texts."""

    def __init__(self) -> None:
        self.graph = Graph()

    # The latency is what BentoML's dispatcher tries to keep to, not a wait; below 60 s it refuses what would miss it.
    @bentoml.api(  # type: ignore[untyped-decorator]
        # A size of 1 is refused, also where there are no batches.
        batchable=setting.batch > 1,
        max_batch_size=max(2, setting.batch),
        max_latency_ms=60_000,
    )
    def analyze(self, texts: list[str]) -> list[dict[str, Any]]:
        """The answer of each text."""
        return [
            {
                "embedding": base64.b64encode(embedding.tobytes()).decode(),
                "probabilities": probabilities.tolist(),
                "sentiment": float(sentiment[0]),
            }
            for embedding, probabilities, sentiment in zip(*self.graph.answer(texts), strict=True)
        ]
