"""BentoML: two workers, JSON over HTTP with base64 embeddings. Run by ``bentoml serve server:Polyhead``."""

from __future__ import annotations

import base64
from typing import Any

import bentoml  # type: ignore[import-not-found]

from bench.comparison.graph import Graph, Setting

setting = Setting.from_environment()


@bentoml.service(workers=2, traffic={"timeout": 60})
class Polyhead:
    """Runs the graph on texts."""

    def __init__(self) -> None:
        self.graph = Graph()

    # max_latency_ms is a target of BentoML's dispatcher, not a wait; it rejects requests that would miss a lower one.
    @bentoml.api(  # type: ignore[untyped-decorator]
        # BentoML rejects a size of 1, even without batching.
        batchable=setting.batch > 1,
        max_batch_size=max(2, setting.batch),
        max_latency_ms=60_000,
    )
    def analyze(self, texts: list[str]) -> list[dict[str, Any]]:
        """Returns the answer to each text."""
        return [
            {
                "embedding": base64.b64encode(embedding.tobytes()).decode(),
                "probabilities": probabilities.tolist(),
                "sentiment": float(sentiment[0]),
            }
            for embedding, probabilities, sentiment in zip(*self.graph.run(texts), strict=True)
        ]
