"""mosec: two worker processes behind its Rust front, MessagePack over HTTP. Its own flags follow (``--port``)."""

from __future__ import annotations

from typing import Any

from mosec import Server, Worker  # type: ignore[import-not-found]
from mosec.mixin import MsgpackMixin  # type: ignore[import-not-found]

from bench.comparison.graph import Graph, Setting


class Polyhead(MsgpackMixin, Worker):  # type: ignore[misc]
    """Answers texts."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = Graph()

    def forward(self, data: Any) -> Any:
        """A list of texts, or one text where batches have no more than one."""
        texts = data if isinstance(data, list) else [data]
        found = self.graph.answer(texts)
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
    setting = Setting.read()
    server = Server()
    # No wait at all is not to be had: 0 means 10 ms.
    server.append_worker(Polyhead, num=2, max_batch_size=setting.batch, max_wait_time=max(1, int(setting.wait_ms)))
    server.run()
