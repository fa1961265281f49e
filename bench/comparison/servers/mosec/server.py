"""mosec: two worker processes behind its Rust front end, MessagePack over HTTP. Takes mosec's flags (``--port``)."""

from __future__ import annotations

from typing import Any

from mosec import Server, Worker  # type: ignore[import-not-found]
from mosec.mixin import MsgpackMixin  # type: ignore[import-not-found]

from bench.comparison.graph import Graph, Setting


class Polyhead(MsgpackMixin, Worker):  # type: ignore[misc]
    """Runs the graph on texts."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()

    def forward(self, data: Any) -> Any:
        """Runs a list of texts, or a single text where batching is off."""
        texts = data if isinstance(data, list) else [data]
        found = self.graph.run(texts)
        answers = [
            {
                "embedding": embedding.tobytes(),
                "probabilities": probabilities.tolist(),
                "sentiment": float(sentiment[0]),
            }
            for embedding, probabilities, sentiment in zip(*found, strict=True)
        ]
        return answers if isinstance(data, list) else answers[0]


if __name__ == "__main__":
    setting = Setting.from_environment()
    server = Server()
    # mosec has no zero wait: 0 means its default of 10 ms.
    server.append_worker(Polyhead, num=2, max_batch_size=setting.batch, max_wait_time=max(1, int(setting.wait_ms)))
    server.run()
